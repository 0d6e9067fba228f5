"""Temporal super-resolution stage: the frames between those of a low-rate video."""

from __future__ import annotations

from einops import repeat
from torch import Tensor

from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.stages.stage import Batch, Metrics, Model
from dalle2_video.stages.super_resolution import SuperResolution


def repeat_frames(low_bcthw: Tensor, factor: int) -> Tensor:
    """Bring a low-rate video to the full rate by repeating each frame `factor` times (Ho et al. 2022, Imagen Video)."""
    return repeat(low_bcthw, "b c t h w -> b c (t factor) h w", factor=factor)


class TemporalSrStage(SuperResolution):
    """Given every factor-th frame, makes all of them."""

    name = "temporal_sr"

    def dataset(self, split: Split) -> WindowDataset:
        """Windows at the full rate."""
        return self.inputs.samples(split, self.config.window)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the prediction."""
        video = to_float(batch["video"])
        low, logsnr = self.augment(video[:, :, :: self.config.factor], draws)
        given = repeat_frames(low, self.config.factor)
        return self.denoising_loss(model, batch, draws, video, given, logsnr)
