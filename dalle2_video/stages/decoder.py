"""Decoder stage: from CLIP's video embedding and the caption's encodings to a low-rate, low-resolution video."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import DecoderConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages.denoising import denoise
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.stage import Batch, Metrics, Model


class DecoderStage:
    """3D U-Net that inverts CLIP's video encoder."""

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, DecoderConfig)
        self.optim = self.config.optim
        self.clip = FrozenClip(inputs.exports["clip"])

    def build(self) -> nn.Module:
        """Return the U-Net."""
        return build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP."""
        self.clip.to(device)

    def dataset(self, split: Split) -> WindowDataset:
        """Windows whose start has an embedding."""
        assert self.inputs.embeddings is not None
        return self.inputs.samples(split, self.config.window, embeddings=self.inputs.embeddings)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the prediction, and the loss of a learned variance."""
        text = self.clip.encode_text(batch["tokens"], batch["length"])

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return model(
                noised,
                logsnr,
                encodings_bld=text.encodings_bld,
                text_mask_bl=text.mask_bl,
                keep_b=keep,
                embedding_bd=batch["embedding"],
            )

        found = denoise(predict, to_float(batch["video"]), draws, self.config.diffusion, batch.get("valid"))
        return found.loss, found.metrics

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files("decoder", self.config, self.clip.dims, fps=self.clip.fps)
