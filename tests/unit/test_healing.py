"""Which runs `tools/runs.py heal` resumes: a table."""

from __future__ import annotations

from typing import Any

import pytest
from registry_fixtures import attempt

from experiments.healing import Facts, verdict
from experiments.reconcile import Action, Decision


def facts(action: Action, *ends: Any, **changes: Any) -> Facts:
    known: dict[str, Any] = {
        "decision": Decision(action=action, reason="so it is"),
        "launched": True,
        "barren": 0,
        "stop_requested": False,
        "attempts": list(ends),
        "cancelled": "",
        "end_known": True,
        "silent_s": 600.0,
    }
    return Facts(**(known | changes))


STOPPED, FAILED, SILENT = attempt(1, "stopped"), attempt(1, "error"), attempt(1, None)
USERS = attempt(1, "error", exit_code=2, message="--micro-batch 3 does not divide\nmore")
GROUPS = [attempt(1, "done", group=0), attempt(2, "error", group=1), attempt(3, "stopped", group=2)]


@pytest.mark.parametrize(
    ("known", "resume", "event", "say"),
    [
        (facts("finished"), False, None, False),
        (facts("attach", FAILED), False, None, False),
        (facts("launch", SILENT), True, "failed", False),
        (facts("launch", FAILED), True, "failed", False),
        (facts("launch", attempt(1, "hang")), True, "failed", False),
        (facts("launch", attempt(1, "preempted")), True, None, False),
        (facts("launch", attempt(1, "timeout")), True, None, False),
        # Its job went before it started an attempt, or was never submitted.
        (facts("launch"), True, None, False),
        (facts("launch", end_known=False), True, None, False),
        (facts("launch", barren=1), True, "failed", False),
        # Nothing would ever poison it.
        (facts("launch", barren=3), False, "failed", True),
        (facts("launch", launched=False), False, None, False),
        # A person's doing.
        (facts("launch", STOPPED, stop_requested=True), False, None, False),
        (facts("launch", STOPPED, cancelled=" by me"), False, None, False),
        (facts("launch", SILENT, cancelled=" by me"), False, None, False),
        (facts("launch", USERS), False, "failed", True),
        # Preempted without notice it ends `stopped` too; then accounting tells.
        (facts("launch", STOPPED), True, None, False),
        (facts("launch", STOPPED, end_known=False), False, None, True),
        (facts("launch", SILENT, end_known=False), True, "failed", False),
        (facts("poisoned", FAILED), False, "poisoned", True),
        (facts("poisoned", FAILED, stop_requested=True), False, None, False),
        (facts("unknown", SILENT), False, None, False),
        # Too fresh, and long forgotten.
        (facts("launch", FAILED, silent_s=100.0), False, None, False),
        (facts("launch", FAILED, silent_s=1e6), False, None, False),
        # Of an array each group counts.
        (facts("launch", *GROUPS), True, "failed", False),
        (facts("launch", *GROUPS, end_known=False), False, None, True),
        (facts("launch", *GROUPS, attempt(4, "error", group=3, exit_code=2)), False, "failed", True),
    ],
)
def test_a_run_is_resumed_unless_a_person_ended_it(known: Facts, resume: bool, event: str | None, say: bool) -> None:
    told = verdict(known, older_than_s=120.0, newer_than_s=86400.0)
    assert (told.resume, told.event, told.say) == (resume, event, say), told.reason


def test_the_reason_is_told_in_a_line() -> None:
    told = verdict(facts("launch", USERS), older_than_s=0.0, newer_than_s=1e9)
    assert told.reason == "mend the cause, then launch it again: --micro-batch 3 does not divide"
