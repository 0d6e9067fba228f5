"""Where a run stands: the registry's files and the queue's word, brought together for `experiments.reconcile`.

Launchers decide by it and `tools/runs.py` shows it, so that a listing never says something else than a launch would do.
Only reads; imports neither torch nor submitit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments import reconcile
from experiments.reconcile import Decision, State
from experiments.registry import Intent, Run
from slurm import job_state


def forgiven(intents: Sequence[Intent]) -> int:
    """Newest attempt at the time of the last `--retry`; 0 where there was none."""
    return max((intent.request.get("forgiven", 0) for intent in intents), default=0)


def decision(run: Run, intents: Sequence[Intent], *, retry: bool) -> Decision:
    """Decide what a launch would do, as of the given intents; asks the queue unless the run is done."""
    # An older job cannot be alive where a newer one was let go ahead. The queue is asked before DONE is looked for the
    # last time: a job records DONE and then goes, so one that ends in between is never taken for unfinished.
    liveness = [] if run.done() is not None else [job_state.of_intent(intent) for intent in intents[-1:]]
    return reconcile.decide(
        done=run.done() is not None,
        liveness=liveness,
        attempts=run.attempts(),
        commits=run.commits(),
        retry=retry,
        forgiven=forgiven(intents),
        tasks_done=len(run.tasks_done()),
    )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands."""

    state: State
    decision: Decision
    """What a launch without `--retry` would do."""
    at_work: frozenset[int]
    """Attempts that a living job is at work on."""


def standing(run: Run) -> Standing:
    """Tell where a run stands; asks the queue unless the run is done."""
    intents = run.intents()
    decided = decision(run, intents, retry=False)
    attempts = run.attempts()
    state = reconcile.state(decided, attempts, newest_intent=len(intents))
    working = reconcile.at_work(attempts, newest_intent=len(intents)) if state == "running" else frozenset()
    return Standing(state=state, decision=decided, at_work=working)
