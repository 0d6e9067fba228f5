"""CLIP stage: video and text encoder by symmetric contrastive loss over the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import ClipConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split, Store
from dalle2_video.models.clip import contrastive_loss
from dalle2_video.models.factory import ModelDims, build, export_files
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.stage import Batch, Metrics, Model


class ClipStage:
    """Learns that a caption belongs to its clip and to no other of the batch."""

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, ClipConfig)
        self.optim = self.config.optim
        store = Store(inputs.store)
        self.fps = store.config.fps
        self.tokenizer = store.tokenizer()
        self.dims = ModelDims(
            vocab_size=self.tokenizer.vocab_size,
            text_context=store.config.text_context,
            embed_dim=self.config.embed_dim,
            text_dim=self.config.text.dim,
        )

    def build(self) -> nn.Module:
        """Return the two encoders."""
        return build(self.config, self.dims, activation_checkpointing=self.inputs.activation_checkpointing)

    def to(self, device: torch.device) -> None:
        """Nothing lies beside the model."""

    def dataset(self, split: Split) -> WindowDataset:
        """Windows at any start, one caption each."""
        return self.inputs.samples(split, self.config.window)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Symmetric cross entropy; metrics: top-1 accuracy within the global batch and the logit scale."""
        video, text, scale = model(to_float(batch["video"]), batch["tokens"], batch["length"])
        loss, accuracy = contrastive_loss(video, text, scale)
        return loss, {"accuracy": accuracy, "logit_scale": scale.squeeze()}

    def export_files(self) -> dict[str, str]:
        """Config and tokenizer."""
        return export_files("clip", self.config, self.dims, fps=self.fps, tokenizer_json=self.tokenizer.to_json())
