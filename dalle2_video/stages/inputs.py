"""What every trainable stage is made from: its part of the recipe and where its parents lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """Inputs of one training run."""

    config: Any
    """The stage's config dataclass."""
    seed: int
    store: Path
    """Zarr store of the preprocess run."""
    exports: dict[str, Path] = field(default_factory=dict)
    """Export folders of trained parents, by stage."""
    embeddings: str | None = None
    """Name of the video embeddings in the store."""
    activation_checkpointing: bool = False
