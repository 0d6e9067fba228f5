"""CLIP over videos: two encoders into one unit sphere, and the symmetric contrastive loss over the global batch.

Invariant: the loss and its gradient, averaged over ranks as the engine does, do not depend on how the global batch is
split over ranks. Two clips of a batch with the same caption count as negatives of each other, as in the original.
The trained encoders are frozen parents of the prior and the decoder.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch.nn import functional

from dalle2_video.config import ClipConfig
from dalle2_video.models.text_encoder import TextEncoder
from dalle2_video.models.video_encoder import VideoEncoder

MAX_LOG_SCALE = math.log(100.0)


class Clip(nn.Module):
    """Text and video encoder with a learned temperature."""

    def __init__(
        self, config: ClipConfig, vocab_size: int, text_context: int, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.text = TextEncoder(
            config.text, vocab_size, text_context, config.embed_dim, activation_checkpointing=activation_checkpointing
        )
        self.video = VideoEncoder(config, activation_checkpointing=activation_checkpointing)
        # shape [1]: ZeRO-3 cannot partition a parameter without dimensions
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def encode_text(self, tokens_bl: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return encodings (b, l, text dim) fp32, 0 beyond the length, and the unit-norm embedding (b, d) fp32."""
        encodings, embedding = self.text(tokens_bl, lengths_b)
        return encodings, functional.normalize(embedding, dim=-1)

    def encode_video(self, video_bcthw: Tensor) -> Tensor:
        """Return the unit-norm embedding (b, d) fp32 of (b, 3, t, h, w) in [-1, 1]."""
        return functional.normalize(self.video(video_bcthw), dim=-1)

    def forward(self, video_bcthw: Tensor, tokens_bl: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit-norm video and text embeddings (b, d) fp32 and the scale of the logits (1,), at most 100."""
        _, text_bd = self.encode_text(tokens_bl, lengths_b)
        scale = self.logit_scale.float().clamp(max=MAX_LOG_SCALE).exp()
        return self.encode_video(video_bcthw), text_bd, scale


def _global_batch(local_bd: Tensor) -> Tensor:
    """Concatenate the ranks' rows; gradients flow back to the rank they belong to."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return torch.cat(dist_nn.all_gather(local_bd.contiguous()))
    return local_bd


def contrastive_loss(video_bd: Tensor, text_bd: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross entropy over the global batch (Radford et al. 2021, fig. 3).

    video_bd, text_bd: (b, d) unit-norm rows of this rank, pairs at the same row, b the same on all ranks; scale: (1,).
    Returns the loss and the top-1 accuracy in [0, 1] (mean of both directions), () fp32, the same on every rank.
    Every rank computes the whole loss: a gathered embedding's gradient is then summed over the ranks, which the
    engine's average over ranks divides out again.
    """
    video, text = _global_batch(video_bd.float()), _global_batch(text_bd.float())
    logits = scale.float() * video @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    with torch.no_grad():
        hits = (logits.argmax(1) == labels).float() + (logits.argmax(0) == labels).float()
    return loss, hits.mean() / 2
