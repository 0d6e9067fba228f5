"""Training metrics between two records: means over the updates, and what the machine did meanwhile.

What the run learnt (loss, gradient norm, the stage's own metrics, skipped steps) travels with each checkpoint, so that
a run interrupted in mid-window writes the same record as an undisturbed one. What tells of the machine starts anew
with each attempt; `MACHINE_METRICS` names it.
"""

from __future__ import annotations

import resource
import statistics
from typing import Any

import torch

MACHINE_METRICS = frozenset({"samples_per_second", "step_s", "data_s", "checkpoint_s", "memory_gib"})
"""Metrics that two runs of the same training need not share."""


class Window:
    """What happened since the last record."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """state: what `state` of an interrupted window gave."""
        state = state or {"sums": {}, "updates": 0, "skipped": 0}
        self._sums: dict[str, float] = dict(state["sums"])
        self.updates: int = state["updates"]
        """Steps that changed the weights; a record needs one."""
        self._skipped: int = state["skipped"]
        self._step_s: list[float] = []
        self._data_s: list[float] = []
        self._checkpoint_s = 0.0

    def add(self, values: dict[str, float], *, applied: bool) -> None:
        """Count a step in. values: its metrics, by the same names at each step; left out where it was skipped."""
        if not applied:
            self._skipped += 1
            return
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self.updates += 1

    def add_times(self, step_s: float, data_s: float) -> None:
        """Count a step's seconds in; data_s: the part of them spent waiting for data."""
        self._step_s.append(step_s)
        self._data_s.append(data_s)

    def add_checkpoint(self, seconds: float) -> None:
        """Count the time in for which a save held the training up."""
        self._checkpoint_s += seconds

    def state(self) -> dict[str, Any]:
        """Return what a resumed window needs, as JSON types."""
        return {"sums": self._sums, "updates": self.updates, "skipped": self._skipped}

    def record(self, batch_size: int) -> dict[str, Any]:
        """Return the means; at least one update and one timed step are needed.

        step_s is the median time of a step, data_s the mean part of it spent waiting for data, checkpoint_s the time
        lost to saves in the whole window, memory_gib this rank's peak so far: the GPU's allocations, on a CPU the
        process's resident memory.
        """
        means = {name: value / self.updates for name, value in self._sums.items()}
        return means | {
            "skipped": self._skipped,
            "samples_per_second": batch_size * len(self._step_s) / sum(self._step_s),
            "step_s": statistics.median(self._step_s),
            "data_s": statistics.fmean(self._data_s),
            "checkpoint_s": self._checkpoint_s,
            "memory_gib": _peak_memory_gib(),
        }


def _peak_memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
