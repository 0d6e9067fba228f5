"""Stages without training: a CLIP, or any stage, with fresh weights in an export folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dalle2_video.config import ClipConfig
from dalle2_video.models.factory import TOKENIZER, WEIGHTS, ModelDims, build, export_files


def dims_of(config: ClipConfig, *, vocab_size: int = 300, text_context: int = 8) -> ModelDims:
    """Sizes of what is conditioned on a CLIP."""
    return ModelDims(
        vocab_size=vocab_size, text_context=text_context, embed_dim=config.embed_dim, text_dim=config.text.dim
    )


def export_stage(folder: Path, stage: str, config: Any, dims: ModelDims, *, tokenizer: str | None = None) -> Path:
    """Return the export folder of a stage with fresh weights; layers that start at zero are moved."""
    torch.manual_seed(0)
    module = build(config, dims)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    path = folder / "export"
    path.mkdir(parents=True)
    save_file(module.state_dict(), str(path / WEIGHTS))
    for name, text in export_files(stage, config, dims, fps=8.0, tokenizer_json=tokenizer).items():
        (path / name).write_text(text)
    assert (path / TOKENIZER).exists() == (tokenizer is not None)
    return path


def export_clip(folder: Path, config: ClipConfig) -> Path:
    """Return the export of a CLIP with fresh weights and without a tokenizer."""
    return export_stage(folder, "clip", config, dims_of(config))
