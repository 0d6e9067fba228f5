"""A rank that fails ends all ranks, and the record says which one, where and why."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import end_of, train
from launching import REPOSITORY, Chain, ranks_of, with_parents

from experiments.run import Run
from slurm import run_state

FAULTS = {
    1: {"kind": "error", "rank": 1, "steps": [3]},
    2: {"kind": "crash", "rank": 1, "steps": [2]},
    3: {"kind": "hang", "rank": 1, "steps": [4]},
}
HANG = ["--hang-min-s", "10", "--hang-factor", "2"]


@pytest.fixture(scope="module")
def failed(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A training whose three attempts end in an exception, a crash and a hang of rank 1."""
    home = with_parents(chain, tmp_path_factory.mktemp("failed") / "home")
    answer, run = train(home, FAULTS, *HANG)
    assert answer.returncode == 1, (answer.stdout, answer.stderr)
    return answer.stdout + answer.stderr, run


def log_of(run: Run, attempt: int, rank: int) -> str:
    return (run.folder / f"logs/attempt-{attempt:04d}.rank{rank}.log").read_text()


def test_an_exception_on_one_rank_is_recorded_with_that_ranks_traceback(failed: tuple[str, Run]) -> None:
    _, run = failed
    end = end_of(run, 1)
    assert (end["kind"], end["rank"]) == ("error", 1)
    assert end["message"] == "RuntimeError: injected: the loss is broken"
    assert "sitecustomize.py" in end["traceback"] and "in loss" in end["traceback"]
    assert "injected" not in log_of(run, 1, 0), "rank 0 has no such error of its own"


def test_a_crash_of_one_rank_is_recorded_with_its_stack(failed: tuple[str, Run]) -> None:
    _, run = failed
    end = end_of(run, 2)
    assert (end["kind"], end["rank"]) == ("error", 1)
    assert "rank 1 was killed by signal 11 (SIGSEGV)" in end["message"]
    assert "Segmentation fault" in end["traceback"] and "sitecustomize.py" in end["traceback"]


def test_a_hang_is_recorded_with_who_hangs_where_and_who_waits_for_it(failed: tuple[str, Run]) -> None:
    _, run = failed
    end = end_of(run, 3)
    assert (end["kind"], end["rank"], end["step"]) == ("hang", 1, 3)
    assert re.search(r"rank 1 stuck at \S*sitecustomize.py:\d+ in loss \(step 4\)", end["message"])
    assert re.search(r"rank 0 waiting for other ranks at [^;]* \(step 4\)", end["message"])
    assert end["seconds"] > 10 and "--hang-min-s" in end["message"]
    assert "in loss" in end["traceback"]
    for rank in (0, 1):
        assert "most recent call first" in log_of(run, 3, rank), "stacks of all threads"


def test_three_fruitless_attempts_with_a_hang_among_them_poison_the_run_and_end_its_processes(
    failed: tuple[str, Run],
) -> None:
    said, run = failed
    assert run_state.standing(run).state == "poisoned"
    assert run.newest_attempt() == 3 and ranks_of(run) == []
    assert "hang" in said or "no progress" in said


@pytest.mark.parametrize("command", ["why", "show"])
def test_the_tool_tells_what_each_rank_died_of(failed: tuple[str, Run], command: str) -> None:
    _, run = failed
    answer = subprocess.run(
        [sys.executable, "tools/runs.py", command, run.id],
        cwd=REPOSITORY,
        env={"DALLE2_VIDEO_HOME": str(run.folder.parents[2]), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    for words in ("injected: the loss is broken", "killed by signal 11", "rank 1 stuck"):
        assert words in answer.stdout


def test_an_error_in_a_loader_worker_is_recorded_and_a_loss_that_is_nan_on_one_rank_is_skipped_on_all(
    chain: Chain, tmp_path: Path
) -> None:
    faults = {
        1: {"kind": "reading", "rank": 1, "sample": 24},
        2: {"kind": "nan", "rank": 1, "steps": [4, 5]},
    }
    flags = ["--prior.optim.steps", "8", "--workers", "1", "--log-every", "3", "--max-skipped", "3"]
    answer, run = train(with_parents(chain, tmp_path / "home"), faults, *flags)
    assert answer.returncode == 0, (answer.stdout, answer.stderr)
    end = end_of(run, 1)
    assert end["rank"] == 1 and "injected: the shard cannot be read" in end["message"].splitlines()[0]
    assert "loader worker" in end["message"]
    skipped = [event for event in run.events() if event["event"] == "skipped step"]
    assert [(event["step"], event["in_row"], event["loss"]) for event in skipped] == [(4, 1, "nan"), (5, 2, "nan")]
    training = {record["step"]: record for record in run.metrics() if record["split"] == "train"}
    assert {step: record["skipped"] for step, record in training.items()} == {3: 0, 6: 2, 8: 0}
    assert all(record["loss"] < 1e3 for record in training.values()), "finite: skipped steps are left out of the means"
    assert '"updates": 6' in (run.commits()[-1].path / "state.json").read_text()
