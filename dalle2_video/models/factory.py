"""Building a stage's model from its config, fresh or from an export folder.

An export folder holds `model.safetensors` (full fp32 EMA weights), `config.json` (stage, config, dimensions) and, for
CLIP, `tokenizer.json`. It is all that sampling and child stages read of a trained stage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dalle2_video import json_file
from dalle2_video.config import ClipConfig, DecoderConfig, PriorConfig, SpatialSrConfig, TemporalSrConfig
from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.models.clip import Clip
from dalle2_video.models.prior import Prior
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.runtime import Checkpointing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"

StageConfig = ClipConfig | PriorConfig | DecoderConfig | TemporalSrConfig | SpatialSrConfig
CONFIG_TYPES: dict[str, type[StageConfig]] = {
    "clip": ClipConfig,
    "prior": PriorConfig,
    "decoder": DecoderConfig,
    "temporal_sr": TemporalSrConfig,
    "spatial_sr": SpatialSrConfig,
}


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Sizes that a model takes from its parents rather than from its own config."""

    vocab_size: int
    text_context: int
    embed_dim: int
    """Dimension of CLIP's shared embedding."""
    text_dim: int
    """Width of CLIP's text encodings."""


def build(config: StageConfig, dims: ModelDims, *, activation_checkpointing: Checkpointing = "none") -> nn.Module:
    """Return a stage's model with fresh weights; works under `torch.device("meta")` too."""
    if isinstance(config, ClipConfig):
        return Clip(config, dims.vocab_size, dims.text_context, activation_checkpointing=activation_checkpointing)
    if isinstance(config, PriorConfig):
        return Prior(
            config.transformer, dims.embed_dim, dims.text_dim, activation_checkpointing=activation_checkpointing
        )
    return Unet3D(
        config.unet,
        embedding_dim=dims.embed_dim if isinstance(config, DecoderConfig) else None,
        text_dim=dims.text_dim,
        low_res=not isinstance(config, DecoderConfig),
        fps=bool(config.strides),
        learned_variance=config.diffusion.learned_variance != "none",
        activation_checkpointing=activation_checkpointing,
    )


def export_files(
    stage: str, config: StageConfig, dims: ModelDims, *, fps: float, tokenizer_json: str | None = None
) -> dict[str, str]:
    """Return the texts of an export folder by file name.

    fps: frames per second of the store that the stage was trained on.
    """
    content = {"stage": stage, "config": to_dict(config), "dims": asdict(dims), "fps": fps}
    files = {CONFIG: json.dumps(content, indent=1, sort_keys=True)}
    return files if tokenizer_json is None else files | {TOKENIZER: tokenizer_json}


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What an export folder says of a trained stage, without its weights."""

    stage: str
    config: Any
    dims: ModelDims
    fps: float
    """Frames per second of the store that the stage was trained on."""


@dataclass(frozen=True, kw_only=True)
class Exported(ExportFacts):
    """A trained stage as loaded from its export folder."""

    module: nn.Module


def read_export(folder: Path, stage: str) -> ExportFacts:
    """Read what an export of `stage` says of itself. Raises ValueError naming the folder where it is no such export."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} is no export folder: {CONFIG} or {WEIGHTS} is missing")
    content = json_file.read(path)
    with json_file.as_written_here(path, "export it again"):
        if content["stage"] != stage:
            raise ValueError(f"{folder} is an export of stage {content['stage']}, wanted {stage}")
        try:
            config = from_dict(CONFIG_TYPES[stage], content["config"])
            dims, fps = from_dict(ModelDims, content["dims"]), float(content["fps"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return ExportFacts(stage=stage, config=config, dims=dims, fps=fps)


def load_export(folder: Path, stage: str) -> Exported:
    """Load an export of `stage`: EMA weights in fp32, evaluation mode, no gradients, on the CPU.

    Raises ValueError naming the folder where it is no export of that stage.
    """
    facts, weights = read_export(folder, stage), folder / WEIGHTS
    # Without memory first: sizes in a damaged config may have any value.
    with torch.device("meta"):
        module = build(facts.config, facts.dims)
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
            if stored != wanted:
                raise ValueError(
                    f"{weights} does not hold the weights that {folder / CONFIG} tells of; export it again"
                )
            # Copied: what is read lies in the mapped file, which may be replaced or removed while the model is in use.
            copies = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in wanted}
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}; copy or export it again") from error
    module.load_state_dict(copies, assign=True)
    assert not any(value.is_meta for value in (*module.parameters(), *module.buffers())), "not all lies in the file"
    return Exported(**vars(facts), module=module.eval().requires_grad_(False))
