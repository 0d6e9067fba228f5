"""A chain with fresh weights, as export folders: what sampling costs and does, does not hang on what was learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dalle2_video.chain_folder import STAGES
from dalle2_video.config import Recipe, SpatialSrConfig, TextEncoderConfig, TransformerConfig, UnetConfig
from dalle2_video.data.tokenizer import train_bpe
from dalle2_video.data_config import WindowConfig
from dalle2_video.models.factory import WEIGHTS, ModelDims, build, export_files
from experiments.recipes import tiny

WORDS = ("a red circle moves left", "a blue square moves up", "a green star moves right")
VOCABULARY = 300


def smallest() -> Recipe:
    """Return a recipe whose every stage takes milliseconds: 4 frames of 8 px at 4 fps, then 8 at 8 fps, then 16 px."""
    recipe = tiny.recipe()
    low, middle, high = (WindowConfig(size=size, num_frames=n, stride=8 // n) for size, n in ((8, 4), (8, 8), (16, 8)))
    narrow = TransformerConfig(dim=16, depth=1, heads=2)
    flags: dict[str, Any] = dict.fromkeys(("spatial_attention", "cross_attention", "temporal_attention"), (False, True))
    unet = UnetConfig(dim=8, dim_mults=(1, 2), blocks=1, head_dim=8, temporal_convolution=(True, False), **flags)
    temporal = recipe.temporal_sr
    assert temporal is not None
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, frame_sizes=(8, 16), text_context=16),
        clip=dataclasses.replace(
            recipe.clip,
            window=low,
            embed_dim=16,
            text=TextEncoderConfig(dim=16, depth=1, heads=2),
            spatial=narrow,
            temporal=narrow,
        ),
        prior=dataclasses.replace(recipe.prior, transformer=narrow),
        decoder=dataclasses.replace(recipe.decoder, window=low, unet=unet),
        temporal_sr=dataclasses.replace(temporal, window=middle, unet=unet),
        spatial_sr=SpatialSrConfig(
            window=high, low_size=8, crop_size=16, unet=unet, diffusion=temporal.diffusion, optim=temporal.optim
        ),
    )


def make(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Write the exports of a recipe's stages into `folder`; return them by stage.

    Layers that begin at zero get small weights, so that every condition acts.
    """
    tokenizer = train_bpe(WORDS, VOCABULARY)
    dims = ModelDims(
        vocab_size=tokenizer.vocab_size,
        text_context=recipe.data.text_context,
        embed_dim=recipe.clip.embed_dim,
        text_dim=recipe.clip.text.dim,
    )
    torch.manual_seed(recipe.seed)
    found = {}
    for stage in STAGES:
        config = getattr(recipe, stage)
        if config is None:
            continue
        weights = {
            name: torch.randn_like(tensor) * 0.02 if tensor.is_floating_point() and not tensor.any() else tensor
            for name, tensor in build(config, dims).state_dict().items()
        }
        found[stage] = folder / stage
        found[stage].mkdir(parents=True)
        save_file(weights, found[stage] / WEIGHTS)
        text = tokenizer.to_json() if stage == "clip" else None
        for name, content in export_files(stage, config, dims, fps=recipe.data.fps, tokenizer_json=text).items():
            (found[stage] / name).write_text(content)
    return found
