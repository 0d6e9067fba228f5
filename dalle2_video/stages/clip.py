"""CLIP stage: video and text encoder by contrastive loss over the global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dalle2_video.config import ClipConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split, Store
from dalle2_video.data.tokenizer import Tokenizer, from_folder
from dalle2_video.evaluation import retrieval
from dalle2_video.models.clip import Clip
from dalle2_video.models.contrastive import contrastive_loss, sigmoid_loss
from dalle2_video.models.factory import ModelDims, build, export_files
from dalle2_video.models.pretrained import load_text_tower
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
        if self.config.text.pretrained:
            assert inputs.text_tower is not None
            _check_tokenizer(store, self.tokenizer, inputs.text_tower)
        self.dims = ModelDims(
            vocab_size=self.tokenizer.vocab_size,
            text_context=store.config.text_context,
            embed_dim=self.config.embed_dim,
            text_dim=self.config.text.dim,
        )

    def build(self) -> nn.Module:
        """Return the two encoders."""
        module = build(self.config, self.dims, activation_checkpointing=self.inputs.activation_checkpointing)
        if self.inputs.text_tower is not None:
            assert isinstance(module, Clip)
            load_text_tower(module.text, self.inputs.text_tower, self.config.text.pretrained)
        return module

    def to(self, device: torch.device) -> None:
        """Nothing lies beside the model."""

    def dataset(self, split: Split) -> WindowDataset:
        """Windows at any start, one caption each."""
        return self.inputs.samples(split, self.config.window)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Contrastive loss; metrics: top-1 accuracy within the global batch, the logit scale and, if any, its bias."""
        video, text, scale, *bias = model(to_float(batch["video"]), batch["tokens"], batch["length"])
        if not bias:
            loss, accuracy = contrastive_loss(video, text, scale)
            return loss, {"accuracy": accuracy, "logit_scale": scale.squeeze()}
        loss, accuracy = sigmoid_loss(video, text, scale, *bias)
        return loss, {"accuracy": accuracy, "logit_scale": scale.squeeze(), "logit_bias": bias[0].squeeze()}

    def judged(self, num_clips: int) -> int:
        """All clips of the split, one window and one text each."""
        return num_clips

    def judge(self, model: Model, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embed a batch."""
        video, text, *_ = model(to_float(batch["video"]), batch["tokens"], batch["length"])
        return {"video": video, "text": text}

    def figures(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Retrieval: share of texts, and of videos, whose own counterpart is among the k nearest of the split."""
        video, text = rows["video"].numpy(), rows["text"].numpy()
        if not (np.isfinite(video).all() and np.isfinite(text).all()):
            return {}  # the loss says so
        of_text, of_video = retrieval.places(video, text)
        return {
            f"{direction}_top{k}": float(places.hits(k).mean())
            for direction, places in (("text_to_video", of_text), ("video_to_text", of_video))
            for k in retrieval.TOP
        }

    def export_files(self) -> dict[str, str]:
        """Config and tokenizer."""
        return export_files("clip", self.config, self.dims, fps=self.fps, tokenizer_json=self.tokenizer.to_json())


def _check_tokenizer(store: Store, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise ValueError with the remedy unless the store holds the ids of the pretrained text tower's tokenizer."""
    if from_folder(folder).to_json() != tokenizer.to_json():
        raise ValueError(
            f"the tokens in {store.path} were made by {store.config.tokenizer}, and the text tower in {folder} reads "
            f"those of its own tokenizer; preprocess with --data.tokenizer {folder}, and give that here too"
        )
