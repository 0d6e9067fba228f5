"""`tools/runs.py logs` of Slurm jobs: any rank, the part of one attempt of a requeued job, a group of an array."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from slurm import logs
from slurm.local import process_record
from tools import runs, runs_logs


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    made = Registry(tmp_path / "home").create(make_spec())
    made.claim_intent(1, {"launcher": {}, "groups": [[], [], []], "training": True})
    made.resolve_intent(1, process_record(os.getpid()))
    logs.folder_of(made.folder).mkdir()
    return made


def claim(run: Run, restart: int, group: int = 0, **array: str) -> int:
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)} | array
    return run.claim_attempt({"intent": 1, "group": group, "slurm": job}).number


def start(run: Run, restart: int, text: str, *, job: str = "7", rank: int = 1) -> None:
    """Append to a log what a real start of a job prints first, and then some text."""
    environment = os.environ | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart), "SLURM_PROCID": str(rank)}
    code = f"from slurm import logs; logs.try_print_start(); print({text!r}, end='')"
    with (logs.folder_of(run.folder) / f"{job}_{rank}_log.out").open("ab") as file:
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=file, check=True)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert runs.main(["logs", "0123", "--rank", "1", *arguments]) == 0
    return capsys.readouterr().out


def test_of_a_requeued_job_each_attempt_has_its_own_part(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    start(run, 0, "first\nkilled here")
    # The second start came to nothing before it could claim an attempt.
    start(run, 1, "")
    start(run, 2, "third\n=== start of something else\n")
    claim(run, 0)
    claim(run, 2)
    assert output(capsys, "--attempt", "2").splitlines()[1:] == ["third", "=== start of something else"]
    assert output(capsys).startswith("=== start 2 of Slurm job 7, rank 1, on ")
    first = output(capsys, "--attempt", "1")
    assert "third" not in first and first.splitlines()[1:3] == ["first", "killed here"]


def test_a_part_that_cannot_be_told_is_all_of_it_and_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (logs.folder_of(run.folder) / "7_1_log.out").write_text("one\ntwo\n")
    claim(run, 0)
    claim(run, 1)
    assert runs.main(["logs", "0123", "--rank", "1"]) == 0
    answer = capsys.readouterr()
    assert answer.out == "one\ntwo\n" and "which part is attempt 2's cannot be told" in answer.err


def test_a_group_of_an_array_has_its_own_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for group in (0, 2):
        claim(run, 0, group, SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID=str(group))
        (logs.folder_of(run.folder) / f"6_{group}_1_log.out").write_text(f"group {group}\n")
    claim(run, 1, 0, SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="0")
    assert output(capsys, "--group", "2") == "group 2\n"
    assert output(capsys, "--group", "0") == "group 0\n"
    assert runs.main(["logs", "0123", "--group", "1"]) == 2
    assert "group 1 has started no attempt; those that have: 0, 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        runs.main(["logs", "0123", "--group", "1", "--attempt", "1"])


def test_follow_prints_one_attempts_part_as_it_comes(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_logs, "FOLLOW_POLL_S", 0.02)
    monkeypatch.setattr(runs_logs, "FOLLOW_ASK_S", 60.0)  # it is the next start that ends it
    start(run, 0, "old\n")
    start(run, 1, "new\n")
    claim(run, 1)
    path = logs.folder_of(run.folder) / "7_1_log.out"

    def grow() -> None:
        for piece in ("half ", "a line\n", "=== st", "art 2 of Slurm job 7, rank 1, on n1 ===\n", "of the next\n"):
            time.sleep(0.1)
            with path.open("a") as log:
                log.write(piece)

    writer = threading.Thread(target=grow)
    writer.start()
    told = output(capsys, "--follow").splitlines()
    writer.join()
    assert told[1:] == ["new", "half a line"]


def test_a_job_that_started_no_attempt_has_logs_of_its_ranks(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        (logs.folder_of(run.folder) / f"7_{rank}_log.out").write_text(f"rank {rank}: ImportError\n")
    assert output(capsys) == "rank 1: ImportError\n"


def test_nothing_is_printed_at_a_start_outside_of_slurm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    logs.try_print_start()
    assert capsys.readouterr().out == ""
