"""Pure decisions: what the registry says and what the queue says, to the next action. No I/O, tested by tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.run import AttemptRecord, Commit

Liveness = Literal["alive", "gone", "unknown"]
Action = Literal["finished", "attach", "launch", "poisoned", "unknown"]
State = Literal["done", "running", "queued", "stopped", "failed", "poisoned", "unknown"]

FAILURES_TO_POISON = 3
FREE_ENDS = frozenset({"preempted", "timeout", "stopped", "done"})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a launcher does next, and why, in words for its user."""

    action: Action
    reason: str


def fruitless_failures(
    attempts: Sequence[AttemptRecord],
    commits: Iterable[Commit],
    *,
    group: int,
    after: int = 0,
) -> list[AttemptRecord]:
    """Return the newest attempts in a row that ended in error, hang or without a word and committed nothing.

    group: the array group looked at (0 for training); after: attempts up to this number are forgiven (`--retry`).
    Preemption, time limits and stops are free. So is a supervised attempt without a word: its supervisor records a
    rank's death, so silence means that the machine went away under both. And so is one whose Slurm job has started
    again, whatever it said: Slurm does that after a preemption, a node's failure or somebody's requeue, never after a
    job's own death; the ranks on the other nodes then often ended in a connection's error.
    """
    fruitful = {commit.attempt for commit in commits}
    row: list[AttemptRecord] = []
    started_again: set[tuple[str, ...]] = set()
    for attempt in reversed(attempts):
        if attempt.claim.get("group", 0) != group:
            continue
        job = _slurm_job(attempt)
        taken_away = bool(job) and job in started_again
        started_again.add(job)
        if taken_away or attempt.number <= after or attempt.number in fruitful or (attempt.end or {}).get("progress"):
            break
        if attempt.claim.get("supervised") if attempt.end is None else attempt.end["kind"] in FREE_ENDS:
            break
        row.append(attempt)
    return row


def _slurm_job(attempt: AttemptRecord) -> tuple[str, ...]:
    """Return what names the Slurm job of an attempt, in an array the task; () elsewhere."""
    slurm = attempt.claim.get("slurm") or {}
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    return tuple(slurm.get(name, "") for name in names) if slurm.get("SLURM_JOB_ID") else ()


def poison(
    attempts: Sequence[AttemptRecord], commits: Iterable[Commit], *, after: int = 0
) -> list[AttemptRecord] | None:
    """Return the failures that poison a run, or None: three in a row of one group."""
    commits = list(commits)
    groups: dict[int, list[AttemptRecord]] = {}
    for attempt in attempts:  # one pass: an array may have a thousand groups
        groups.setdefault(attempt.claim.get("group", 0), []).append(attempt)
    for group in sorted(groups):
        row = fruitless_failures(groups[group], commits, group=group, after=after)
        if len(row) >= FAILURES_TO_POISON:
            return row
    return None


def decide(
    *,
    done: bool,
    liveness: Iterable[Liveness],
    attempts: Sequence[AttemptRecord],
    commits: Sequence[Commit],
    retry: bool,
    forgiven: int = 0,
    tasks_done: int = 0,
) -> Decision:
    """Decide what a launch command does.

    liveness: what the queue says of each job that was ever submitted for the run; retry: the user gave `--retry`;
    forgiven: newest attempt at the time of an earlier `--retry`; tasks_done: finished tasks of an array.
    """
    states = list(liveness)
    if done:
        return Decision(action="finished", reason="done already")
    if "alive" in states:
        return Decision(action="attach", reason="running or queued already")
    if "unknown" in states and not retry:
        return Decision(
            action="unknown",
            reason="an earlier job cannot be asked about from here and may be alive; run the command on the host that "
            "started it, or give --retry to start a new attempt (the old one can then no longer commit)",
        )
    failures = None if retry else poison(attempts, commits, after=forgiven)
    if failures:
        last = failures[0].end or {"message": "it ended without a word (killed, or its machine went away)"}
        return Decision(
            action="poisoned",
            reason=f"{len(failures)} attempts in a row failed without a new commit; the last: "
            f"{last.get('message', last.get('kind'))}; mend the cause, then give --retry",
        )
    if commits:
        return Decision(action="launch", reason=f"resumes at step {commits[-1].step}")
    if tasks_done:
        return Decision(action="launch", reason=f"goes on; finished tasks stay: {tasks_done}")
    return Decision(action="launch", reason="starts" if not attempts else "starts again: nothing was committed yet")


def at_work(attempts: Sequence[AttemptRecord], *, newest_intent: int) -> frozenset[int]:
    """Return the attempts that the job of the newest intent, if it is alive, is at work on.

    They are the newest of their array group and have not ended; an older one without an end died without a word.
    """
    return frozenset(
        attempt.number
        for attempt in newest_of_groups(attempts)
        if attempt.end is None and attempt.claim.get("intent") == newest_intent
    )


def state(decision: Decision, attempts: Sequence[AttemptRecord], *, newest_intent: int) -> State:
    """Name the state of a run in which a launch without `--retry` would decide `decision`.

    running: a job is there and an attempt that it started has not ended; queued: the job has yet to start one, perhaps
    again; failed: the newest attempt (of any array group) ended in error, hang or without a word; stopped: nothing
    works on the run and nothing failed, though the job that was asked to stop may still be on its way out.
    """
    if decision.action == "finished":
        return "done"
    if decision.action in ("poisoned", "unknown"):
        return decision.action
    if decision.action == "attach":
        if at_work(attempts, newest_intent=newest_intent):
            return "running"
        ours = [attempt for attempt in newest_of_groups(attempts) if attempt.claim.get("intent") == newest_intent]
        kinds = {(attempt.end or {}).get("kind") for attempt in ours}
        return "stopped" if "stopped" in kinds and kinds <= {"stopped", "done"} else "queued"
    ends = [attempt.end for attempt in newest_of_groups(attempts)]
    return "failed" if any(end is None or end["kind"] not in FREE_ENDS for end in ends) else "stopped"


def newest_of_groups(attempts: Sequence[AttemptRecord]) -> list[AttemptRecord]:
    """Return the newest attempt of each array group (one for a training) of the newest intent that has any attempt.

    Each intent shares out what is missing anew: group 3 of one is not group 3 of the next.
    """
    newest = max((attempt.claim.get("intent", 0) for attempt in attempts), default=0)
    ours = [attempt for attempt in attempts if attempt.claim.get("intent", 0) == newest]
    return list({attempt.claim.get("group", 0): attempt for attempt in ours}.values())
