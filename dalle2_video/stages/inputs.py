"""What every trainable stage is made from: its part of the recipe, where its parents lie, and its samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.store import Split
from dalle2_video.data_config import AugmentConfig, CaptionConfig, WindowConfig
from dalle2_video.runtime import Checkpointing


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """Inputs of one training run."""

    config: Any
    """The stage's config dataclass."""
    seed: int
    store: Path
    """Zarr store of the preprocess run."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """Text of a sample."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Changes to a training sample."""
    exports: dict[str, Path] = field(default_factory=dict)
    """Export folders of trained parents, by stage."""
    teacher: Path | None = None
    """Export folder of the run of the same stage that a student learns from."""
    embeddings: str | None = None
    """Name of the video embeddings in the store."""
    text_tower: Path | None = None
    """Folder of the pretrained text tower that CLIP starts from."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again instead of finding it kept; see models/recompute.py."""

    def samples(
        self,
        split: Split,
        window: WindowConfig | None,
        *,
        low_size: int | None = None,
        embeddings: str | None = None,
        images: int = 0,
        strides: tuple[int, ...] = (),
    ) -> WindowDataset:
        """Return the run's samples of a split; see WindowDataset."""
        return WindowDataset(
            self.store,
            split,
            self.seed,
            window,
            low_size=low_size,
            embeddings=embeddings,
            captions=self.captions,
            images=images,
            strides=strides,
            mirror=self.augment.mirror and split == "train" and window is not None,
        )
