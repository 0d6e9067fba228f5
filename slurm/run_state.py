"""Where runs stand: the registry's files and the queue's word, brought together for `experiments.reconcile`.

Launchers decide by it and `tools/runs.py` shows it, so that a listing never says something else than a launch would do.
Of many runs the queue is asked once, and of each only those files are read that its state depends on. Only reads;
imports neither torch nor submitit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments import reconcile
from experiments.reconcile import Decision, Liveness, State
from experiments.run import AttemptRecord, Intent, Run
from slurm import job_state


def forgiven(intents: Sequence[Intent]) -> int:
    """Newest attempt at the time of the last `--retry`; 0 where there was none."""
    return max((intent.request.get("forgiven", 0) for intent in intents), default=0)


def decision(run: Run, intents: Sequence[Intent], *, retry: bool) -> Decision:
    """Decide what a launch would do, as of the given intents; asks the queue unless the run is done."""
    # An older job cannot be alive where a newer one was let go ahead. The queue is asked before DONE is looked for the
    # last time: a job records DONE and then goes, so one that ends in between is never taken for unfinished.
    liveness = [] if run.is_done() else [job_state.of_intent(intent) for intent in intents[-1:]]
    return reconcile.decide(
        done=run.is_done(),
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
    attempts: tuple[AttemptRecord, ...]
    """The newest attempts, those that the state depends on; none where the run is done."""

    @property
    def idle(self) -> bool:
        """Whether it is certain that nothing works on the run: no job of it is in the queue, or it is done."""
        return self.decision.action not in ("attach", "unknown")


_DONE = Standing(
    state="done", decision=Decision(action="finished", reason="done already"), at_work=frozenset(), attempts=()
)


def standing(run: Run) -> Standing:
    """Tell where a run stands; asks the queue unless the run is done."""
    intents = run.intents()
    return _standing(run, decision(run, intents, retry=False), run.attempts(), len(intents))


def standings(runs: Sequence[Run]) -> list[Standing]:
    """Tell where each of many runs stands, asking the queue once.

    The words of a decision may count fewer failed attempts than there were.
    """
    found: list[Standing | None] = [_DONE if run.is_done() else None for run in runs]
    intents = {
        index: run.intent(number)
        for index, run in enumerate(runs)
        if found[index] is None and (number := run.newest_intent())
    }
    liveness = job_state.of_intents(intents)
    for index, run in enumerate(runs):
        if found[index] is None:
            found[index] = _told(run, intents.get(index), liveness.get(index))
    return [one for one in found if one is not None]


def _told(run: Run, intent: Intent | None, liveness: Liveness | None) -> Standing:
    """Tell where a run that was not done stands, by its newest intent and what the queue said of that."""
    # Each request to launch carries on what earlier ones forgave.
    after = intent.request.get("forgiven", 0) if intent is not None else 0
    training = intent is not None and intent.request.get("training", False)
    commits = run.commits()
    if training:
        # Its last attempt tells how a training stands, unless that failed: then it takes some more to poison it.
        attempts = run.attempts(1)
        if reconcile.fruitless_failures(attempts, commits, group=0, after=after):
            attempts = run.attempts(reconcile.FAILURES_TO_POISON)
    else:
        attempts = run.attempts()
    decided = reconcile.decide(
        done=run.is_done(),
        liveness=[liveness] if liveness is not None else [],
        attempts=attempts,
        commits=commits,
        retry=False,
        forgiven=after,
        tasks_done=0 if training else len(run.tasks_done()),
    )
    return _standing(run, decided, attempts, 0 if intent is None else intent.number)


def _standing(run: Run, decided: Decision, attempts: Sequence[AttemptRecord], newest_intent: int) -> Standing:
    state = reconcile.state(decided, attempts, newest_intent=newest_intent)
    working = reconcile.at_work(attempts, newest_intent=newest_intent) if state == "running" else frozenset()
    return Standing(state=state, decision=decided, at_work=working, attempts=tuple(attempts))
