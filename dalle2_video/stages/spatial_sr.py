"""Spatial super-resolution stage: the same frames at a larger size, trained on crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.stages.stage import Batch, Metrics, Model
from dalle2_video.stages.super_resolution import SuperResolution


def upsample(low_bcthw: Tensor, size: int) -> Tensor:
    """Bring frames to `size` pixels bilinearly (Ho et al. 2022, Imagen Video)."""
    frames = rearrange(low_bcthw, "b c t h w -> (b t) c h w")
    larger = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
    return rearrange(larger, "(b t) c h w -> b c t h w", b=low_bcthw.shape[0])


class SpatialSrStage(SuperResolution):
    """Given small frames, makes large ones; fully convolutional enough to train on crops and run on whole frames."""

    name = "spatial_sr"

    def dataset(self, split: Split) -> WindowDataset:
        """Windows at both sizes."""
        return self.inputs.samples(
            split, self.config.window, low_size=self.config.low_size, strides=self.config.strides
        )

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the prediction on a random crop."""
        low, high = self._crops(to_float(batch["low_video"]), to_float(batch["video"]), draws)
        low, logsnr = self.augment(low, draws)
        return self.denoising_loss(model, batch, draws, high, upsample(low, self.config.crop_size), logsnr)

    def _crops(self, low: Tensor, high: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Cut the same random square from the small and the large frames of each sample."""
        factor = self.config.window.size // self.config.low_size
        side = self.config.crop_size // factor
        places = self.config.low_size - side + 1
        tops = (draws.uniform("crop top") * places).long().tolist()
        lefts = (draws.uniform("crop left") * places).long().tolist()
        lows = [video[..., y : y + side, x : x + side] for video, y, x in zip(low, tops, lefts, strict=True)]
        span = self.config.crop_size
        highs = [
            video[..., factor * y : factor * y + span, factor * x : factor * x + span]
            for video, y, x in zip(high, tops, lefts, strict=True)
        ]
        return torch.stack(lows), torch.stack(highs)
