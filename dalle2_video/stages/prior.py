"""Prior stage: from a caption's CLIP text embedding to the CLIP video embedding of its clip."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle2_video.config import PriorConfig
from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages.denoising import denoise
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.stage import Batch, Metrics, Model


class PriorStage:
    """Diffusion over the unit-norm embedding times sqrt(d), so that its elements have unit variance."""

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, PriorConfig)
        self.optim = self.config.optim
        self.clip = FrozenClip(inputs.exports["clip"])

    def build(self) -> nn.Module:
        """Return the causal transformer."""
        return build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP."""
        self.clip.to(device)

    def dataset(self, split: Split) -> WindowDataset:
        """Embeddings and captions; no frames are read."""
        assert self.inputs.embeddings is not None
        return self.inputs.samples(split, None, embeddings=self.inputs.embeddings)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the predicted embedding; metric: its cosine to the true one."""
        text = self.clip.encode_text(batch["tokens"], batch["length"])
        x0 = batch["embedding"] * math.sqrt(batch["embedding"].shape[-1])

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return model(noised, logsnr, text.embedding_bd, text.encodings_bld, text.mask_bl, keep)

        losses, prediction = denoise(predict, x0, draws, self.config.diffusion)
        return losses.mean(), {"cosine": F.cosine_similarity(prediction.float(), x0, dim=-1).mean()}

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files("prior", self.config, self.clip.dims, fps=self.clip.fps)
