"""Decoder stage: from CLIP's video embedding and the caption's encodings to a low-rate, low-resolution video."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import DecoderConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages import joint
from dalle2_video.stages.denoising import Noised
from dalle2_video.stages.distillation import Network, Teacher, learn, load_teacher
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.rates import fps_condition
from dalle2_video.stages.stage import Batch, Metrics, Model
from dalle2_video.teaching import students_optim


class DecoderStage:
    """3D U-Net that inverts CLIP's video encoder."""

    teacher: Teacher | None = None

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, DecoderConfig)
        self.optim = students_optim(self.config)
        self.clip = FrozenClip(inputs.exports["clip"])
        self.teacher = load_teacher(self.config, "decoder", inputs.teacher)

    def build(self) -> nn.Module:
        """Return the U-Net, a student's with its teacher's weights."""
        unet = build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)
        return unet if self.teacher is None else self.teacher.begin(unet)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP and the teacher."""
        self.clip.to(device)
        if self.teacher is not None:
            self.teacher.to(device)

    def dataset(self, split: Split) -> WindowDataset:
        """Windows whose start has an embedding, and images beside them."""
        assert self.inputs.embeddings is not None
        return self.inputs.samples(
            split,
            self.config.window,
            embeddings=self.inputs.embeddings,
            images=self.config.joint_images if self.teacher is None else 0,
            strides=self.config.strides,
        )

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the prediction, and the loss of a learned variance; of images too where they come along."""
        tokens, lengths, embeddings = joint.texts(batch)
        text = self.clip.encode_text(tokens, lengths)
        conditions = {
            "encodings_bld": text.encodings_bld,
            "text_mask_bl": text.mask_bl,
            "embedding_bd": embeddings,
            **fps_condition(self.config, self.clip.fps, batch.get("stride"), images=len(tokens) - len(batch["tokens"])),
        }
        x0, valid = to_float(batch["video"]), batch.get("valid")

        def predict_by(network: Network, noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return network(noised, logsnr, keep_b=keep, **conditions)

        def predict_both(videos: Noised, images: Noised) -> tuple[Tensor, Tensor]:
            logsnr, keep = (
                torch.cat(pair) for pair in ((videos.logsnr_b, images.logsnr_b), (videos.keep_b, images.keep_b))
            )
            return model(videos.noised, logsnr, keep_b=keep, images_nchw=images.noised, **conditions)

        if "images" in batch:
            images = joint.images_nchw(batch["images"])
            found = joint.denoise_jointly(predict_both, x0, images, draws, self.config.diffusion, valid)
        else:
            found = learn(self.teacher, predict_by, model, x0, draws, self.config, valid)
        return found.loss, found.metrics

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files("decoder", self.config, self.clip.dims, fps=self.clip.fps)
