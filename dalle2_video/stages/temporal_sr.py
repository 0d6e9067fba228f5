"""Temporal super-resolution stage: the frames between those of a low-rate video."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from dalle2_video.config import TemporalSrConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.stages.stage import Batch, Metrics, Model
from dalle2_video.stages.super_resolution import SuperResolution


def to_full_rate(low_bcthw: Tensor, config: TemporalSrConfig) -> Tensor:
    """Bring a low-rate video, noised as it is given, to the full rate (Ho et al. 2022, Imagen Video, sec. 2.3).

    Between its frames each is repeated or, with conditioning blank, all is 0, which the noise of a frame never is.
    Returns (b, c, t * factor, h, w).
    """
    full = repeat(low_bcthw, "b c t h w -> b c (t factor) h w", factor=config.factor)
    if config.conditioning == "repeat":
        return full
    given = torch.arange(full.shape[2], device=full.device) % config.factor == 0
    return torch.where(given[:, None, None], full, 0.0)


class TemporalSrStage(SuperResolution):
    """Given every factor-th frame, makes all of them."""

    name = "temporal_sr"

    def dataset(self, split: Split) -> WindowDataset:
        """Windows at the full rate."""
        return self.inputs.samples(split, self.config.window, strides=self.config.strides)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the prediction."""
        video = to_float(batch["video"])
        low, logsnr = self.augment(video[:, :, :: self.config.factor], draws)
        return self.denoising_loss(model, batch, draws, video, to_full_rate(low, self.config), logsnr)
