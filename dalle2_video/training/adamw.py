"""AdamW that leaves everything as it is where the gradient is not fit for an update.

`LimitedAdamW` lies inside DeepSpeed's ZeRO optimisers, which skip gradients that are not finite themselves, and passes
over a step whose gradient norm is beyond a limit. `SkippingAdamW` does all of that, and clips: at ZeRO stage 0 in fp32
DeepSpeed calls the optimiser as it is and would put NaN into the weights. What happened is told by the attributes that
DeepSpeed reads from any optimiser: `overflow` and `_global_grad_norm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class LimitedAdamW(torch.optim.AdamW):
    """AdamW that does nothing where the norm of the whole gradient is beyond a limit."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.norm_limit = math.inf
        """Set before each step."""
        self.norm: Callable[[], float] = lambda: 0.0
        """Norm of the whole gradient before clipping, equal on all ranks; known when `step` is called."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update; called once a part of the parameters, with the same verdict each time."""
        assert closure is None
        if self.norm_limit == math.inf or self.norm() <= self.norm_limit:
            super().step()


class SkippingAdamW(torch.optim.AdamW):
    """AdamW for gradients that are equal on all ranks, as after an all-reduce."""

    def __init__(self, params: Any, *, max_grad_norm: float, **settings: Any) -> None:
        """max_grad_norm: gradients are scaled down to this 2-norm over all parameters; 0: never."""
        super().__init__(params, **settings)
        self.max_grad_norm = max_grad_norm
        self.norm_limit = math.inf
        """Set before each step: a gradient with a larger norm is passed over."""
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Clip the gradients and update, unless their norm is not finite or beyond the limit."""
        assert closure is None
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow or self._global_grad_norm > self.norm_limit:
            return
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        super().step()
