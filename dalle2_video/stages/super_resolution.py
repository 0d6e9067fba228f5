"""What both super-resolution stages share: conditioning on a noised video of lower rate or size.

Noise-conditioning augmentation (Ho et al. 2021, Cascaded Diffusion Models, sec. 4.2): in training the given video is
noised to a random time in [0, max_augmentation], and the network is told how much; in sampling to a small fixed time.
That makes the stage forgive the faults of the stage before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import SpatialSrConfig, TemporalSrConfig
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages.distillation import Network, Teacher, learn, load_teacher
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.rates import fps_condition
from dalle2_video.stages.stage import Batch, Metrics, Model
from dalle2_video.teaching import students_optim


class SuperResolution:
    """Base of the two stages: text-conditioned denoising of a video given a worse one."""

    name: str
    teacher: Teacher | None = None

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, TemporalSrConfig | SpatialSrConfig)
        self.optim = students_optim(self.config)
        self.clip = FrozenClip(inputs.exports["clip"])
        self.teacher = load_teacher(self.config, self.name, inputs.teacher)

    def build(self) -> nn.Module:
        """Return the U-Net, a student's with its teacher's weights."""
        unet = build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)
        return unet if self.teacher is None else self.teacher.begin(unet)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP and the teacher."""
        self.clip.to(device)
        if self.teacher is not None:
            self.teacher.to(device)

    def denoising_loss(
        self, model: Model, batch: Batch, draws: Draws, x0: Tensor, given: Tensor, augmentation_logsnr: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean loss over the batch, and its parts where it has several.

        x0, given: (b, 3, t, h, w); `given` is noised to augmentation_logsnr (b,) and brought to the shape of x0.
        """
        text = self.clip.encode_text(batch["tokens"], batch["length"])
        rate = fps_condition(self.config, self.clip.fps, batch.get("stride"))

        def predict_by(network: Network, noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return network(
                noised,
                logsnr,
                encodings_bld=text.encodings_bld,
                text_mask_bl=text.mask_bl,
                keep_b=keep,
                low_res_bcthw=given,
                low_res_logsnr_b=augmentation_logsnr,
                **rate,
            )

        found = learn(self.teacher, predict_by, model, x0, draws, self.config, batch.get("valid"))
        return found.loss, found.metrics

    def augment(self, low_bcthw: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Noise the given video to a random time in [0, max_augmentation]; return it and its log SNR (b,)."""
        logsnr = log_snr(draws.uniform("augmentation time") * self.config.max_augmentation, self.config.diffusion)
        noise = draws.normal("augmentation noise", tuple(low_bcthw.shape[1:]))
        return add_noise(low_bcthw, noise, logsnr), logsnr

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files(self.name, self.config, self.clip.dims, fps=self.clip.fps)
