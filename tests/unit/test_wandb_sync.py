"""`tools/wandb_sync.py` sends what W&B does not have, and nothing twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec
from wandb_server import Server, serving

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from slurm import tracking
from slurm.local import process_record
from tools import wandb_sync

REPOSITORY = Path(__file__).resolve().parents[2]
GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        yield found


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "f00dfeed" * 5)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return Registry(tmp_path / "home")


def trained(registry: Registry, name: str, mode: str | None, *steps: int, alive: bool = False) -> Run:
    """Return a run that was launched with --wandb MODE, None: before there was such an option, and did some steps."""
    run = registry.create(make_spec(id=name))
    runtime = {} if mode is None else {"wandb": mode, "wandb_project": "faces", "wandb_entity": None}
    assert run.claim_intent(1, {"launcher": GONE, "groups": [[]], "placement": {}, "runtime": runtime})
    run.resolve_intent(1, process_record(os.getpid()) if alive else GONE)
    more_steps(run, *steps)
    return run


def more_steps(run: Run, *steps: int) -> None:
    attempt = run.claim_attempt({"intent": 1, "group": 0, "supervised": True})
    for step in steps:
        attempt.append("metrics", {"step": step, "split": "train", "loss": 1 / step})
    if steps:
        attempt.append("metrics", {"step": steps[-1], "split": "val", "loss": 2.0})
        attempt.end("error")


def sync(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool as its user does; in this process wandb would remember the server of another test."""
    command = [sys.executable, "tools/wandb_sync.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_what_is_sent_once_is_not_sent_again_and_new_steps_are(registry: Registry, server: Server) -> None:
    run = trained(registry, "aaaa000001", "offline", 10, 20)
    said = sync("--all", "--dry-run")
    assert said.returncode == 0 and "3 records" in said.stdout and not server.runs
    said = sync("--all")
    assert said.returncode == 0 and "3 of 3 records" in said.stdout, said.stderr
    stored = server.runs[run.spec.tracking_id]
    assert stored.points("train") == [(10, 0.1), (20, 0.05)] and stored.points("val") == [(20, 2.0)]
    assert server.projects == {("me", "faces")}
    assert stored.exit_codes == [1]

    more_steps(run, 20, 30)  # resumed from a checkpoint before step 20
    run.mark_done({"digest": "0"})
    said = sync(run.id)
    assert said.returncode == 0 and "2 of 5 records" in said.stdout, said.stderr
    assert stored.points("train") == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
    assert stored.points("val") == [(20, 2.0), (30, 2.0)]
    assert stored.exit_codes == [1, 0]


def test_all_means_the_runs_that_were_told_to_be_mirrored(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(registry, "aaaa000001", "online", 10)
    trained(registry, "aaaa000002", "disabled", 10)
    trained(registry, "aaaa000003", None, 10)
    trained(registry, "aaaa000004", "offline")
    assert wandb_sync.main(["--all", "--dry-run", "--entity", "lab"]) == 0
    said = capsys.readouterr().out
    assert "clip/tiny-aaaa000001: would send what lab/faces does not have of 2 records" in said
    assert said.count("would send") == 1
    assert wandb_sync.main(["aaaa000003", "--dry-run"]) == 0
    assert "what dalle2-video does not have" in capsys.readouterr().out


def test_a_run_with_a_living_mirror_is_left_to_it_until_the_mirror_gave_up(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(registry, "aaaa000001", "online", 10, alive=True)
    attempt = run.claim_attempt({"intent": 1, "group": 0, "supervised": True})
    assert wandb_sync.main([run.id, "--dry-run"]) == 0
    assert "mirrored already" in capsys.readouterr().out
    attempt.append("events", {"event": tracking.EVENT, "message": "gave up"})
    assert wandb_sync.main([run.id, "--dry-run"]) == 0
    assert "would send" in capsys.readouterr().out


def test_a_server_that_does_not_answer_costs_exit_code_1_and_one_line_a_run(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(registry, "aaaa000001", "offline", 10)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    said = sync(run.id)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith(f"error: {run.name} could not be sent to faces: CommError")


def test_a_run_without_metrics_is_an_error_of_the_user(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(registry, "aaaa000001", "offline")
    assert wandb_sync.main([run.id]) == wandb_sync.USER_ERROR
    assert "no metrics" in capsys.readouterr().err


def test_validations_between_steps_that_w_and_b_has_do_not_make_it_forget_the_later_ones(
    registry: Registry, server: Server
) -> None:
    run = trained(registry, "aaaa000001", "offline", 10, 20, 30)
    path = run.folder / "metrics.0001.jsonl"
    whole = path.read_text()
    path.write_text("".join(line for line in whole.splitlines(keepends=True) if '"val"' not in line))
    assert sync(run.id).returncode == 0
    path.write_text(whole.replace('"loss": 2.0, "split": "val", "step": 30', '"loss": 2.0, "split": "val", "step": 20'))
    assert "1 of 4 records" in sync(run.id).stdout
    assert "0 of 4 records" in sync(run.id).stdout
    stored = server.runs[run.spec.tracking_id]
    assert [step for step, _ in stored.points("train")] == [10, 20, 30] and stored.points("val") == [(20, 2.0)]
