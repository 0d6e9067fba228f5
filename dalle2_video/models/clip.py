"""CLIP over videos: two encoders into one unit sphere, and the learned temperature of the loss that brings them there.

The losses are in `contrastive`. The trained encoders are frozen parents of the prior and the decoder.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dalle2_video.config import ClipConfig
from dalle2_video.models.text_encoder import TextEncoder
from dalle2_video.models.video_encoder import VideoEncoder
from dalle2_video.runtime import Checkpointing

MAX_LOG_SCALE = math.log(100.0)
FIRST_LOG_SCALE = {"softmax": math.log(1 / 0.07), "sigmoid": math.log(10.0)}
"""Radford et al. 2021, sec. 2.5; Zhai et al. 2023, sec. 3.2, whose bias begins at -10."""
FIRST_BIAS = -10.0


class Clip(nn.Module):
    """Text and video encoder with a learned temperature, and for the sigmoid loss a learned bias."""

    def __init__(
        self,
        config: ClipConfig,
        vocab_size: int,
        text_context: int,
        *,
        activation_checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.text = TextEncoder(
            config.text, vocab_size, text_context, config.embed_dim, activation_checkpointing=activation_checkpointing
        )
        self.video = VideoEncoder(config, activation_checkpointing=activation_checkpointing)
        # shape [1]: ZeRO-3 cannot partition a parameter without dimensions
        self.logit_scale = nn.Parameter(torch.full((1,), FIRST_LOG_SCALE[config.loss]))
        if config.loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.full((1,), FIRST_BIAS))

    def encode_text(self, tokens_bl: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return encodings (b, l, text dim) fp32, 0 beyond the length, and the unit-norm embedding (b, d) fp32."""
        encodings, embedding = self.text(tokens_bl, lengths_b)
        return encodings, functional.normalize(embedding, dim=-1)

    def encode_video(self, video_bcthw: Tensor) -> Tensor:
        """Return the unit-norm embedding (b, d) fp32 of (b, 3, t, h, w) in [-1, 1]."""
        return functional.normalize(self.video(video_bcthw), dim=-1)

    def forward(self, video_bcthw: Tensor, tokens_bl: Tensor, lengths_b: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of the loss.

        Unit-norm video and text embeddings (b, d) fp32, the scale of the logits (1,), at most 100, and for the sigmoid
        loss their bias (1,).
        """
        _, text_bd = self.encode_text(tokens_bl, lengths_b)
        scale = _Bounded.apply(self.logit_scale.float(), MAX_LOG_SCALE).exp()
        logits = (scale, self.logit_bias.float()) if hasattr(self, "logit_bias") else (scale,)
        return self.encode_video(video_bcthw), text_bd, *logits


class _Bounded(torch.autograd.Function):
    """Clamp from above that a parameter beyond the bound can leave again: `clamp` would hold it there for good."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, greatest: float) -> Tensor:
        ctx.save_for_backward(value > greatest)
        return value.clamp(max=greatest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (beyond,) = ctx.saved_tensors
        return torch.where(beyond & (gradient < 0), 0.0, gradient), None
