"""What an attempt records outlives a disk without room, in order and without half lines."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from experiments.registry import Registry
from experiments.run import Attempt, read_jsonl
from slurm import records
from slurm.records import Records
from slurm.tracking import NoTracker
from slurm.training_job import Control


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Registry(tmp_path).create(make_spec()).claim_attempt({})


@contextlib.contextmanager
def room(file_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: a write that would is cut there and then fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(attempt: Attempt) -> list[int]:
    return [record["step"] for record in read_jsonl(attempt.run.folder / f"metrics.{attempt.number:04d}.jsonl")]


@pytest.mark.parametrize("more_bytes", [0, 20], ids=["not one byte", "half a line"])
def test_records_without_room_are_written_in_order_once_there_is_some(attempt: Attempt, more_bytes: int) -> None:
    written = Records(attempt)
    written.append("metrics", {"step": 1})
    size = (attempt.run.folder / "metrics.0001.jsonl").stat().st_size
    with room(size + more_bytes):
        for step in (2, 3):
            written.append("metrics", {"step": step})
        assert steps(attempt) == [1]
    written.append("metrics", {"step": 4})
    assert steps(attempt) == [1, 2, 3, 4]


def test_a_commit_comes_after_what_waits_or_not_at_all(attempt: Attempt) -> None:
    control = Control(attempt, NoTracker(), keep_every=0)
    control.append("metrics", {"step": 1})
    staged = control.stage_commit()
    with room((attempt.run.folder / "metrics.0001.jsonl").stat().st_size):
        control.append("metrics", {"step": 2})
        with pytest.raises(OSError, match="too large"):
            control.commit_checkpoint(2, staged)
    assert (steps(attempt), attempt.run.commits()) == ([1], [])
    control.commit_checkpoint(2, staged)
    assert steps(attempt) == [1, 2] and [commit.step for commit in attempt.run.commits()] == [2]


def test_damaged_checkpoints_do_not_count_as_kept(attempt: Attempt) -> None:
    control = Control(attempt, NoTracker(), keep_every=5)
    for step in (1, 2, 5, 6, 7):
        control.commit_checkpoint(step, control.stage_commit())
    assert [step for step, _ in control.checkpoints()] == [5, 6, 7]
    control.skipped(control.checkpoints()[-1][1])
    control.commit_checkpoint(8, control.stage_commit())
    assert [step for step, _ in control.checkpoints()] == [5, 6, 7, 8]
    control.commit_checkpoint(9, control.stage_commit())
    assert [step for step, _ in control.checkpoints()] == [5, 8, 9]


def test_a_milestone_of_an_earlier_launch_stays_where_a_later_one_says_nothing_of_milestones(attempt: Attempt) -> None:
    run = attempt.run
    for number, every in ((1, 5), (2, 0)):
        run.claim_intent(number, {"runtime": {"keep_every": every}})
        control = Control(run.claim_attempt({"intent": number}), NoTracker(), keep_every=every)
        for step in range(5 * number, 5 * number + 4):
            control.commit_checkpoint(step, control.stage_commit())
    assert [commit.step for commit in run.commits()] == [5, 12, 13]


def test_of_too_many_waiting_records_the_newest_are_kept(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WAITING", 3)
    written = Records(attempt)
    with room(0):
        for step in range(1, 6):
            written.append("metrics", {"step": step})
    written.append("metrics", {"step": 6})
    assert steps(attempt) == [4, 5, 6]


def test_a_beat_without_room_is_no_error(attempt: Attempt) -> None:
    with room(0):
        Records(attempt).beat({"step": 1, "steps": 2})
    assert attempt.run.beat(attempt.number) is None
    Records(attempt).beat({"step": 2, "steps": 2})
    assert (attempt.run.beat(attempt.number) or {})["step"] == 2
