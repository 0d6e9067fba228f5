"""AdamW that clips and that leaves everything as it is where the gradient is not finite.

DeepSpeed's ZeRO optimisers do so themselves; at ZeRO stage 0 in fp32 it calls the optimiser as it is and would put NaN
into the weights. What happened is told by the attributes that DeepSpeed reads from any optimiser: `overflow` and
`_global_grad_norm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class SkippingAdamW(torch.optim.AdamW):
    """AdamW for gradients that are equal on all ranks, as after an all-reduce."""

    def __init__(self, params: Any, *, max_grad_norm: float, **settings: Any) -> None:
        """max_grad_norm: gradients are scaled down to this 2-norm over all parameters; 0: never."""
        super().__init__(params, **settings)
        self.max_grad_norm = max_grad_norm
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Clip the gradients and update, unless their norm is not finite."""
        assert closure is None
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not bool(torch.isfinite(norm))
        if self.overflow:
            return
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        super().step()
