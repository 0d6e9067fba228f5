"""Whether a run that nothing works on should be brought to work again without a person: pure, tested by a table.

What a person ended stays ended: by the STOP switch or by scancel; so does what only a person can mend. Where nobody can
tell who ended an attempt that was `stopped`, it counts as a person's doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.reconcile import FAILURES_TO_POISON, FREE_ENDS, Decision
from experiments.run import AttemptRecord

USER_ERROR = 2


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run and of its newest launch."""

    decision: Decision
    """What a launch would do."""
    launched: bool
    barren: int
    """Newest launches in a row that had a job and started no attempt."""
    stop_requested: bool
    attempts: Sequence[AttemptRecord]
    """Of the newest launch the newest attempt of each array group (a training has one)."""
    cancelled: str
    """Who cancelled its job, in words; "" where nobody did or it is not known."""
    end_known: bool
    """Whether the queue's accounting knows how its job ended."""
    silent_s: float
    """Time since anything was heard of it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do about a run."""

    resume: bool
    reason: str
    event: Literal["failed", "poisoned"] | None = None
    """What its users should hear of."""
    say: bool = False
    """Left alone, and a person should know: said once."""


def verdict(facts: Facts, *, older_than_s: float, newer_than_s: float) -> Verdict:
    """Decide about a run.

    older_than_s: leave alone what was heard of more recently, since its job may just be ending; newer_than_s: and what
    was not heard of for longer, since everybody has forgotten it.
    """
    decision = facts.decision
    if decision.action in ("finished", "attach"):
        return Verdict(resume=False, reason=decision.reason)
    if not facts.launched:
        return Verdict(resume=False, reason="it was never launched; its launch command starts it")
    if facts.silent_s > newer_than_s:
        return Verdict(
            resume=False, reason=f"nothing was heard of it for {facts.silent_s / 86400:.0f} days (see --since)"
        )
    if facts.silent_s < older_than_s:
        return Verdict(resume=False, reason=f"it was heard of {facts.silent_s:.0f} s ago (see --older-than)")
    if facts.stop_requested:
        return Verdict(resume=False, reason="somebody asked it to stop")
    if facts.cancelled:
        return Verdict(resume=False, reason=f"its job was cancelled{facts.cancelled}")
    if decision.action == "unknown":
        return Verdict(resume=False, reason=decision.reason)  # perhaps Slurm does not answer just now
    ends = [attempt.end for attempt in facts.attempts]
    failed = facts.barren > 0 or any(end is None or end["kind"] not in FREE_ENDS for end in ends)
    if decision.action == "poisoned":
        return Verdict(resume=False, reason=decision.reason, event="poisoned", say=True)
    for end in ends:
        if end is not None and end["kind"] == "error" and end.get("exit_code") == USER_ERROR:
            message = (end.get("message") or "see its log").splitlines()[0]
            reason = f"mend the cause, then launch it again: {message}"
            return Verdict(resume=False, reason=reason, event="failed", say=True)
    if facts.barren >= FAILURES_TO_POISON:
        reason = (
            f"{facts.barren} launches in a row ended before they started an attempt; see the job's log, then launch it"
        )
        return Verdict(resume=False, reason=reason, event="failed", say=True)
    if not facts.end_known and any(end is not None and end["kind"] == "stopped" for end in ends):
        reason = "it was stopped, and nobody can tell whether by a person; its launch command goes on"
        return Verdict(resume=False, reason=reason, say=True)
    return Verdict(resume=True, reason=decision.reason, event="failed" if failed else None)
