"""Exponential moving average of the fp32 masters, sharded at every ZeRO stage: no gather in the step.

decay(step) = min(decay, (1 + step) / (10 + step)): early on the average follows the weights, so that short runs have
a usable one.
"""

from __future__ import annotations

import torch

from dalle2_video.training.zero_state import ShardedState


def decay_at(step: int, decay: float) -> float:
    """Decay used after optimiser step `step` (1 is the first)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(state: ShardedState, step: int, decay: float) -> None:
    """Move the average towards the masters after optimiser step `step`; not to be called after a skipped one."""
    torch._foreach_lerp_(state.ema_flats, state.averaged_flats, 1 - decay_at(step, decay))
