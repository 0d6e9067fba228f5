"""CLIP's frozen text encoder as the later stages use it: outside the engine, EMA weights, no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle2_video.config import ClipConfig
from dalle2_video.models.clip import Clip
from dalle2_video.models.factory import ModelDims, load_export


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """A batch of texts as conditions."""

    encodings_bld: Tensor
    """(b, l, text_dim) fp32."""
    mask_bl: Tensor
    """(b, l) bool, True at tokens of the text."""
    embedding_bd: Tensor
    """(b, embed_dim) fp32, unit norm."""


class FrozenClip:
    """A trained CLIP."""

    def __init__(self, folder: Path) -> None:
        """folder: export of a CLIP run."""
        exported = load_export(folder, "clip")
        assert isinstance(exported.module, Clip)
        self.config: ClipConfig = exported.config
        self.dims: ModelDims = exported.dims
        self.fps = exported.fps
        self.module = exported.module

    def to(self, device: torch.device) -> None:
        """Move the weights to `device`."""
        self.module.to(device)

    @torch.no_grad()
    def encode_text(self, tokens_bl: Tensor, lengths_b: Tensor) -> TextCondition:
        """Encode tokens (b, l) int64 of lengths (b,)."""
        encodings, embedding = self.module.encode_text(tokens_bl, lengths_b)
        mask = torch.arange(tokens_bl.shape[1], device=tokens_bl.device)[None] < lengths_b[:, None]
        return TextCondition(encodings_bld=encodings, mask_bl=mask, embedding_bd=embedding)

    @torch.no_grad()
    def encode_video(self, video_bcthw: Tensor) -> Tensor:
        """Return unit-norm embeddings (b, embed_dim) of videos in [-1, 1]."""
        return self.module.encode_video(video_bcthw)
