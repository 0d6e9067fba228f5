"""Decisions by table: registry and queue to the next action, failures to poison, decision to the state shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fixtures import attempt

from experiments.reconcile import Decision, at_work, decide, fruitless_failures, poison, state
from experiments.run import AttemptRecord, Commit

ERROR = "error"


def ends(*kinds: str | None, **options: bool) -> list[AttemptRecord]:
    return [attempt(number, kind, **options) for number, kind in enumerate(kinds, 1)]


def commit(step: int, number: int) -> Commit:
    return Commit(step=step, attempt=number, path=Path(f"step-{step}"))


POISONED = ends(ERROR, "hang", None)


@pytest.mark.parametrize(
    ("done", "liveness", "attempts", "retry", "action"),
    [
        (False, [], [], False, "launch"),
        (False, [], [], True, "launch"),
        (True, [], ends("done"), False, "finished"),
        (True, ["alive"], ends("done"), True, "finished"),
        (True, ["unknown"], POISONED, False, "finished"),
        (False, ["alive"], ends(None), False, "attach"),
        (False, ["gone", "alive"], ends(None), False, "attach"),
        (False, ["alive"], ends(None), True, "attach"),
        (False, ["alive", "unknown"], POISONED, True, "attach"),
        (False, ["unknown"], ends(None), False, "unknown"),
        (False, ["unknown", "gone"], [], False, "unknown"),
        (False, ["unknown"], POISONED, False, "unknown"),
        (False, ["unknown"], ends(None), True, "launch"),
        (False, ["gone"], ends("stopped"), False, "launch"),
        (False, ["gone"], ends(ERROR, ERROR), False, "launch"),
        (False, ["gone"], POISONED, False, "poisoned"),
        (False, ["gone"], POISONED, True, "launch"),
    ],
)
def test_decision(done: bool, liveness: list[str], attempts: list[AttemptRecord], retry: bool, action: str) -> None:
    decision = decide(done=done, liveness=liveness, attempts=attempts, commits=[], retry=retry)  # type: ignore[arg-type]
    assert decision.action == action
    assert decision.reason


def test_an_earlier_retry_forgives_the_failures_before_it_and_no_later_ones() -> None:
    def action(attempts: list[AttemptRecord]) -> str:
        return decide(done=False, liveness=["gone"], attempts=attempts, commits=[], retry=False, forgiven=3).action

    assert action(ends(*[ERROR] * 5)) == "launch"
    assert action(ends(*[ERROR] * 6)) == "poisoned"


def test_the_reason_tells_what_a_launch_starts_from_and_what_the_last_failure_was() -> None:
    def reason(attempts: list[AttemptRecord], commits: list[Commit]) -> str:
        return decide(done=False, liveness=[], attempts=attempts, commits=commits, retry=False).reason

    assert reason([], []) == "starts"
    assert "nothing was committed" in reason(ends("stopped"), [])
    assert "resumes at step 40" in reason(ends("stopped"), [commit(20, 1), commit(40, 1)])
    failures = [*ends(ERROR, ERROR), attempt(3, ERROR, message="CUDA out of memory")]
    assert "3 attempts" in reason(failures, []) and "CUDA out of memory" in reason(failures, [])
    assert "--retry" in reason(failures, [])
    assert "without a word" in reason(POISONED, [])


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        ([], 0),
        ([ERROR], 1),
        ([ERROR, ERROR, ERROR], 3),
        ([ERROR, "hang", None], 3),
        ([ERROR, ERROR, "preempted"], 0),
        ([ERROR, "timeout", ERROR], 1),
        ([ERROR, "stopped", ERROR, ERROR], 2),
        (["preempted"] * 5, 0),
        (["done", ERROR], 1),
    ],
)
def test_failures_in_a_row(kinds: list[str | None], count: int) -> None:
    assert len(fruitless_failures(ends(*kinds), [], group=0)) == count


def test_a_commit_ends_the_row_of_failures() -> None:
    attempts = ends(*[ERROR] * 4)
    assert [one.number for one in fruitless_failures(attempts, [commit(10, 2)], group=0)] == [4, 3]
    assert poison(attempts, [commit(10, 2)]) is None
    assert poison(attempts, [commit(10, 1)]) is not None


def test_finished_tasks_of_an_array_end_the_row_as_a_commit_does() -> None:
    attempts = [*ends(ERROR, ERROR), attempt(3, ERROR, progress=2)]
    assert poison(attempts, []) is None
    assert poison([*ends(ERROR, ERROR), attempt(3, ERROR, progress=0)], []) is not None


def test_silence_counts_only_where_no_supervisor_could_have_spoken() -> None:
    assert poison(ends(None, None, None), []) is not None
    assert poison(ends(None, None, None, supervised=True), []) is None


@pytest.mark.parametrize("end", [None, {"kind": "error", "message": "another rank died without a word"}])
def test_an_attempt_whose_slurm_job_was_started_again_counts_for_nothing(end: dict[str, str] | None) -> None:
    def ended(number: int, job: str) -> AttemptRecord:
        return AttemptRecord(number=number, claim={"slurm": {"SLURM_JOB_ID": job}}, end=end)

    assert poison([ended(number, "7") for number in range(1, 6)], []) is None  # nodes failed under it
    assert poison([ended(number, str(number)) for number in range(1, 4)], []) is not None  # each died by itself
    assert [one.number for one in fruitless_failures([ended(1, "7"), ended(2, "7")], [], group=0)] == [2]


def test_groups_of_an_array_are_poisoned_each_by_its_own_failures() -> None:
    mixed = [attempt(number, ERROR, group=number % 2) for number in range(1, 5)]
    assert poison(mixed, []) is None
    found = poison([*mixed, attempt(5, ERROR, group=1)], [])
    assert found is not None
    assert [one.number for one in found] == [5, 3, 1]


@pytest.mark.parametrize(
    ("action", "attempts", "shown"),
    [
        ("finished", ends("done"), "done"),
        ("poisoned", POISONED, "poisoned"),
        ("unknown", ends(None), "unknown"),
        ("attach", [], "queued"),
        ("attach", [attempt(1, None, intent=2)], "running"),
        ("attach", [attempt(1, None, intent=1)], "queued"),
        ("attach", [attempt(1, None, intent=2), attempt(2, "preempted", intent=2)], "queued"),
        ("attach", [attempt(1, "done", intent=2), attempt(2, None, group=1, intent=2)], "running"),
        ("attach", [attempt(1, "stopped", intent=2)], "stopped"),
        ("attach", [attempt(1, "done", intent=2), attempt(2, "stopped", group=1, intent=2)], "stopped"),
        ("attach", [attempt(1, "stopped", intent=2), attempt(2, "preempted", group=1, intent=2)], "queued"),
        ("attach", [attempt(1, "stopped", intent=1)], "queued"),
        ("launch", [], "stopped"),
        ("launch", ends("stopped"), "stopped"),
        ("launch", ends(ERROR, "preempted"), "stopped"),
        ("launch", ends("stopped", ERROR), "failed"),
        ("launch", ends(None), "failed"),
        ("launch", [attempt(1, ERROR, group=0), attempt(2, "done", group=1)], "failed"),
    ],
)
def test_state_shown_for_a_decision(action: str, attempts: list[AttemptRecord], shown: str) -> None:
    assert state(Decision(action=action, reason="r"), attempts, newest_intent=2) == shown  # type: ignore[arg-type]


def test_only_the_newest_attempt_of_a_group_can_be_at_work() -> None:
    attempts = [
        attempt(1, None, intent=1),
        attempt(2, None, intent=2),
        attempt(3, None, intent=2),
        attempt(4, None, group=1, intent=2),
        attempt(5, None, group=2, intent=1),
    ]
    assert at_work(attempts, newest_intent=2) == {3, 4}
