"""Embedding of log SNR, the networks' only notion of diffusion time, and of the frame rate.

Sinusoids in fp32 (bf16 could not tell neighbouring steps apart), then two layers in the weights' precision. Used by the
prior, and by the U-Nets for their own noise level, for that of a conditioning video and for its rate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Radians a unit of log SNR: from an eighth of a turn over the whole range [-15, 15] to a turn each unit.
MIN_FREQUENCY, MAX_FREQUENCY = 0.025, 6.0
# Less signal than this looks like none; a schedule with zero terminal SNR ends at -inf, which has no sine.
MIN_LOGSNR = -15.0


class LogSnrEmbedding(nn.Module):
    """Log SNR to a vector: sinusoids, then linear, SiLU, linear."""

    def __init__(self, dim: int, *, num_frequencies: int = 32) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.expand = nn.Linear(2 * num_frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, logsnr_b: Tensor) -> Tensor:
        """Embed (b,) float, -inf too, as (b, dim) in the precision of the weights."""
        exponents = torch.linspace(0, 1, self.num_frequencies, dtype=torch.float32, device=logsnr_b.device)
        frequencies = MIN_FREQUENCY * torch.exp(exponents * math.log(MAX_FREQUENCY / MIN_FREQUENCY))
        angles = logsnr_b.float().clamp(min=MIN_LOGSNR)[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.out(functional.silu(self.expand(waves.to(self.expand.weight.dtype))))


class FpsEmbedding(LogSnrEmbedding):
    """Frames a second to a vector, as `LogSnrEmbedding`: twice the rate is as far from a rate as half of it."""

    def forward(self, fps_b: Tensor) -> Tensor:
        """Embed (b,) float, 0 or more, as (b, dim); 0 is a frame of its own, without a rate."""
        return super().forward(2 * torch.log2(fps_b.float()))
