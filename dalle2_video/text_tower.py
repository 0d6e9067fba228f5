"""A pretrained CLIP text tower in a folder of `transformers`: its sizes for the recipe, and the digest of its content.

A recipe names the folder; what a run is made from names the digest and the sizes (`resolved`), so that the same tower
in another place is the same run. `models.pretrained` reads the weights. Imports no torch by itself.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from dalle2_video import json_file
from dalle2_video.config import Recipe
from dalle2_video.digests import file_digest

CONFIG, WEIGHTS = "config.json", "*.safetensors"
DIGEST_MARK = "sha256:"
MODEL_TYPES = ("clip", "clip_text_model")
FLAG = "--clip.text.pretrained"
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
_READ = (*_SIZES, "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of config.json that are read: others name code to run, such as attention kernels from the network."""


def text_config(folder: Path) -> Any:
    """Return the folder's CLIPTextConfig with the width of the shared embedding as its `projection_dim`.

    Raises ValueError with the remedy where the folder has no text tower that can be used.
    """
    name = f"{FLAG} {folder}"
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{name}: no {CONFIG} there; give the folder of a CLIPTextModelWithProjection or a CLIPModel")
    if not list(folder.glob(WEIGHTS)):
        raise ValueError(f"{name}: no {WEIGHTS} there; save the model again: model.save_pretrained(DIR)")
    content = json_file.read(folder / CONFIG)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in MODEL_TYPES:
        raise ValueError(f"{name}: model_type is {kind!r}, wanted one of {', '.join(MODEL_TYPES)}")
    if "quantization_config" in content:
        raise ValueError(f"{name}: its weights are quantised by {CONFIG}; give a tower of floating-point weights")
    from transformers import CLIPTextConfig  # a second to import, and only this needs it

    try:
        if kind == "clip":
            shared = {"projection_dim": content["projection_dim"]} if "projection_dim" in content else {}
            content = (content.get("text_config") or {}) | shared
        config = CLIPTextConfig(**{field: content[field] for field in _READ if field in content})
    except Exception as error:  # the library raises kinds of its own
        raise ValueError(f"{name}: {CONFIG} describes no text tower: {error}") from error
    for field in _SIZES:
        size = getattr(config, field)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: {field}={size} in {CONFIG} must be a whole number of 1 or more")
    held = sum(file.stat().st_size for file in folder.glob(WEIGHTS))
    if 12 * config.num_hidden_layers * config.hidden_size**2 > held:  # a byte a weight would be the least
        raise ValueError(f"{name}: {CONFIG} describes more weights than the {held} bytes of {WEIGHTS} hold")
    known = {
        "hidden_act": (config.hidden_act, ("gelu", "quick_gelu")),
        "intermediate_size": (config.intermediate_size, (4 * config.hidden_size,)),
        "layer_norm_eps": (config.layer_norm_eps, (1e-5,)),
    }
    for field, (value, wanted) in known.items():
        if value not in wanted:
            raise ValueError(f"{name}: {field} is {value}, the text encoder knows {' and '.join(map(str, wanted))}")
    return config


def digest(folder: Path) -> str:
    """sha256 over what is read of a folder, its config and weights."""
    files = sorted([folder / CONFIG, *folder.glob(WEIGHTS)])
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _digest(folder, tuple(facts))


@functools.lru_cache(maxsize=8)
def _digest(folder: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    content = hashlib.sha256()
    for name, *_ in facts:
        content.update(f"{name} {file_digest(folder / name)}\n".encode())
    return DIGEST_MARK + content.hexdigest()


def folder_of(recipe: Recipe) -> Path | None:
    """Return the folder that a recipe names, absolute; None where the text encoder begins from scratch."""
    named = recipe.clip.text.pretrained
    return Path(named).expanduser().absolute() if named else None


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with the text tower's digest and sizes in place of its folder; others are returned as they are.

    Raises ValueError with the remedy where folder and recipe do not fit.
    """
    folder = folder_of(recipe)
    if folder is None:
        return recipe
    config = text_config(folder)
    if recipe.clip.embed_dim != config.projection_dim:
        raise ValueError(
            f"clip.embed_dim={recipe.clip.embed_dim}, but the text tower in {folder} embeds into "
            f"{config.projection_dim} dimensions; give --clip.embed-dim {config.projection_dim}"
        )
    if recipe.data.text_context > config.max_position_embeddings:
        raise ValueError(
            f"data.text_context={recipe.data.text_context}, but the text tower in {folder} reads at most "
            f"{config.max_position_embeddings} tokens; preprocess with --data.text-context "
            f"{config.max_position_embeddings}, and give it here too"
        )
    text = replace(
        recipe.clip.text,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        attention_bias=True,
        pretrained=digest(folder),
    )
    return replace(recipe, clip=replace(recipe.clip, text=text))
