"""Whether the steps of a training are sound: NaN and infinity, too many of them in a row, spikes.

Fed with values that are reduced over the ranks, so that every rank comes to the same verdict. The count in a row and
the norms that a spike is measured by travel with each checkpoint: a resumed run judges as an undisturbed one.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor

SPIKE_FACTOR = 10.0
SPIKE_HISTORY = 100
SPIKE_LEAST = 10
"""Norms needed before any is called a spike."""


class Diverged(ValueError):  # noqa: N818 - a state of the training that its user has to mend
    """Too many steps gave no update."""


def spread_nonfinite(loss: Tensor) -> Tensor:
    """Return the loss to the bit, but so that a NaN or infinite one makes every gradient NaN.

    The gradient of such a loss may be finite, or so on one rank: then that rank alone would have had reason to skip.
    """
    value = loss.detach()
    return loss * torch.where(value.isfinite(), torch.ones_like(value), torch.full_like(value, math.nan))


class StepHealth:
    """The verdict on each step, and what it needs to remember."""

    def __init__(
        self,
        *,
        on_nonfinite: Literal["skip", "stop"],
        on_spike: Literal["record", "stop"],
        skip_spikes: float,
        max_skipped: int,
        remedy: str,
    ) -> None:
        """skip_spikes: in medians, 0: none is; remedy: what to do about a training that diverges, for the message."""
        self._on_nonfinite, self._on_spike = on_nonfinite, on_spike
        self._skip_spikes = skip_spikes or math.inf
        self._max_skipped = max_skipped
        self._remedy = remedy
        self._skipped_in_row = 0
        self._allowed = max_skipped
        self._norms: deque[float] = deque(maxlen=SPIKE_HISTORY)
        self._last = ""
        self._step = 0

    def norm_limit(self) -> float:
        """Return the gradient norm beyond which the next step must not change the weights."""
        factor = min(self._skip_spikes, SPIKE_FACTOR if self._on_spike == "stop" else math.inf)
        return factor * self._median() if factor < math.inf else math.inf

    def _median(self) -> float:
        return statistics.median(self._norms) if len(self._norms) >= SPIKE_LEAST else math.inf

    def judge(self, step: int, loss: float, grad_norm: float, *, applied: bool) -> dict[str, Any] | None:
        """Judge step `step` (1 is the first); return the event to record, or None.

        applied: whether the weights changed. They do not where loss or gradient is not finite, nor where the norm was
        beyond `norm_limit`.
        """
        self._step = step
        shown = {"step": step, "loss": _json(loss), "grad_norm": _json(grad_norm)}
        median = self._median()
        history = f"median of the last {len(self._norms)} steps {median:.4g}"
        if applied:
            self._skipped_in_row = 0
            self._norms.append(grad_norm)
            if grad_norm <= SPIKE_FACTOR * median:
                return None
            message = f"gradient norm {grad_norm:.4g}, {history}"
            return {"event": "loss spike", "message": message, "median_grad_norm": median} | shown
        self._skipped_in_row += 1
        self._last = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        if self.norm_limit() < grad_norm < math.inf:
            self._last += f", {history}"
            stops = self._skip_spikes == math.inf or grad_norm <= self._skip_spikes * median
        else:
            stops = self._on_nonfinite == "stop"
        self._allowed = 1 if stops else self._max_skipped
        return {"event": "skipped step", "message": self._last, "in_row": self._skipped_in_row} | shown

    def check(self) -> None:
        """Raise Diverged where the last step was one skipped step too many."""
        if self._skipped_in_row < self._allowed:
            return
        first = self._step - self._skipped_in_row + 1
        steps = f"step {first}" if first == self._step else f"steps {first} to {self._step}"
        raise Diverged(f"{steps} gave no update, the last one: {self._last}; {self._remedy}")

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs, as JSON types."""
        return {"skipped_in_row": self._skipped_in_row, "grad_norms": list(self._norms)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._skipped_in_row = state["skipped_in_row"]
        self._norms = deque(state["grad_norms"], maxlen=SPIKE_HISTORY)


def _json(value: float) -> float | str:
    """JSON has no word for NaN and infinity."""
    return value if math.isfinite(value) else str(value)
