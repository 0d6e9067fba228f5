"""How far a run is and where it works, as figures: for the tables of `tools/runs.py list`, with and without --watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.reconcile import State
from experiments.run import AttemptRecord, Run
from launch.array_progress import ArrayWatch
from launch.stages import STAGES
from slurm.run_state import Standing


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One look at a run; None: not known (yet), or it does not apply."""

    done: int | None = None
    """Steps of a training, tasks of an array."""
    of: int | None = None
    per_second: float | None = None
    """Samples a second; of an array clips, or tasks where its work is not clips. None unless it is at work."""
    left_s: float | None = None
    loss: float | None = None

    @property
    def share(self) -> float:
        """Share of the work done, in [0, 1]."""
        return self.done / self.of if self.done is not None and self.of else 0.0


class Looker:
    """Looks at runs again and again; of arrays what cannot change is read once."""

    def __init__(self) -> None:
        self._arrays: dict[str, ArrayWatch] = {}

    def look(self, run: Run, state: State) -> Facts:
        """Return how far a run is."""
        return self._of_training(run, state) if STAGES[run.stage].training else self._of_array(run, state)

    def _of_training(self, run: Run, state: State) -> Facts:
        # The newest attempt may not have said anything yet.
        newest = run.newest_attempt()
        beat: dict[str, Any] = next(filter(None, map(run.beat, range(newest, 0, -1))), {})
        done, of = beat.get("step"), beat.get("steps")
        latest = run.latest_training_metrics() or {}
        rate = latest.get("samples_per_second") if state == "running" else None
        return Facts(
            done=of if state == "done" and of else done,
            of=of,
            per_second=rate,
            left_s=time_left(latest, done, of) if rate else None,
            loss=latest.get("loss"),
        )

    def _of_array(self, run: Run, state: State) -> Facts:
        found = self._arrays.setdefault(run.name, ArrayWatch(run)).look()
        if found is None:
            return Facts()
        at_work = state == "running" and found.per_second > 0
        return Facts(
            done=found.done,
            of=found.tasks,
            per_second=found.per_second if at_work else None,
            left_s=found.left_s if at_work else None,
        )


def time_left(latest: dict[str, Any], step: int | None, steps: int | None) -> float | None:
    """Return the seconds left at the rate of the newest metrics, None where they do not tell."""
    if step is None or steps is None or not latest.get("step") or not latest.get("samples"):
        return None
    steps_a_second = latest["samples_per_second"] * latest["step"] / latest["samples"]
    return (steps - step) / steps_a_second if steps_a_second > 0 else None


def nodes(standing: Standing) -> str:
    """Return the nodes that a run is at work on, in Slurm's short form."""
    at_work = [attempt for attempt in standing.attempts if attempt.number in standing.at_work]
    return ",".join(dict.fromkeys(filter(None, (_slurm(one).get("SLURM_JOB_NODELIST") for one in at_work))))


def restarts(attempts: Sequence[AttemptRecord]) -> int:
    """Return how often Slurm has started the newest attempt's job again."""
    return int(_slurm(attempts[-1]).get("SLURM_RESTART_COUNT", "0")) if attempts else 0


def _slurm(attempt: AttemptRecord) -> dict[str, str]:
    return attempt.claim.get("slurm") or {}
