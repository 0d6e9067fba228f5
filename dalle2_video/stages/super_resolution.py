"""What both super-resolution stages share: conditioning on a noised video of lower rate or size.

Noise-conditioning augmentation (Ho et al. 2021, Cascaded Diffusion Models, sec. 4.2): in training the given video is
noised to a random time in [0, max_augmentation], and the network is told how much; in sampling to a small fixed time.
That makes the stage forgive the faults of the stage before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import SuperResolutionConfig
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages.denoising import denoise
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.stage import Batch, Metrics, Model


class SuperResolution:
    """Base of the two stages: text-conditioned denoising of a video given a worse one."""

    name: str

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, SuperResolutionConfig)
        self.optim = self.config.optim
        self.clip = FrozenClip(inputs.exports["clip"])

    def build(self) -> nn.Module:
        """Return the U-Net."""
        return build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP."""
        self.clip.to(device)

    def denoising_loss(
        self, model: Model, batch: Batch, draws: Draws, x0: Tensor, given: Tensor, augmentation_logsnr: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean loss over the batch, and its parts where it has several.

        x0, given: (b, 3, t, h, w); `given` is noised to augmentation_logsnr (b,) and brought to the shape of x0.
        """
        text = self.clip.encode_text(batch["tokens"], batch["length"])

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return model(
                noised,
                logsnr,
                encodings_bld=text.encodings_bld,
                text_mask_bl=text.mask_bl,
                keep_b=keep,
                low_res_bcthw=given,
                low_res_logsnr_b=augmentation_logsnr,
            )

        found = denoise(predict, x0, draws, self.config.diffusion, batch.get("valid"))
        return found.loss, found.metrics

    def augment(self, low_bcthw: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Noise the given video to a random time in [0, max_augmentation]; return it and its log SNR (b,)."""
        logsnr = log_snr(draws.uniform("augmentation time") * self.config.max_augmentation, self.config.diffusion)
        noise = draws.normal("augmentation noise", tuple(low_bcthw.shape[1:]))
        return add_noise(low_bcthw, noise, logsnr), logsnr

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files(self.name, self.config, self.clip.dims, fps=self.clip.fps)
