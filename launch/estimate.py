"""What a run will take, told before anything is submitted: parameters and memory of the model states."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

from dalle2_video import text_tower
from dalle2_video.config import Recipe
from launch.arguments import Arguments
from launch.stages import StageInfo

BYTES_PER_PARAMETER = {"fp32": 20, "bf16": 18}
"""ZeRO-3 states of one parameter over all ranks: weights, gradient, fp32 master (bf16), two moments, EMA."""


def show(console: Console, info: StageInfo, arguments: Arguments) -> None:
    """Print the sizes of a training stage; other stages have nothing that is known beforehand."""
    if not info.training:
        return
    config = getattr(arguments.recipe, info.name)
    count = parameters(arguments.recipe, info.name)
    world = arguments.placement.world_size
    states = count * BYTES_PER_PARAMETER[config.optim.precision] / world
    micro, accumulation = arguments.runtime.accumulation(config.optim.batch_size, world)
    console.print(
        f"  {info.name}: {count / 1e6:.2f} M parameters; model states {states / 2**20:.0f} MiB a rank on {world} "
        f"rank{'s' * (world > 1)} (activations come on top)\n"
        f"  {config.optim.steps} steps of {config.optim.batch_size} samples = {world} ranks x micro-batch {micro} x "
        f"accumulation {accumulation}; precision {config.optim.precision}"
    )


def deepspeed_config(info: StageInfo, arguments: Arguments) -> dict[str, Any]:
    """Return the config that DeepSpeed would get; ValueError for a stage that trains nothing."""
    if not info.training:
        raise ValueError(f"--dump-deepspeed-config: {info.name} trains nothing and has no DeepSpeed config")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is trained here
    import torch

    from dalle2_video.training import engine

    optim, placement = getattr(arguments.recipe, info.name).optim, arguments.placement
    micro, accumulation = arguments.runtime.accumulation(optim.batch_size, placement.world_size)
    return engine.deepspeed_config(
        optim,
        micro,
        accumulation,
        placement.world_size,
        cuda=placement.gpus_per_node > 0 or (placement.resolved_cluster() == "local" and torch.cuda.is_available()),
        zero_stage=arguments.runtime.zero_stage,
    )


def parameters(recipe: Recipe, stage: str) -> int:
    """Number of parameters of a stage's model, counted on the meta device: no memory, any size."""
    import torch

    from dalle2_video.models.factory import ModelDims, build

    recipe = text_tower.resolved(recipe)
    dims = ModelDims(
        vocab_size=recipe.data.vocab_size,
        text_context=recipe.data.text_context,
        embed_dim=recipe.clip.embed_dim,
        text_dim=recipe.clip.text.dim,
    )
    with torch.device("meta"):
        module = build(getattr(recipe, stage), dims)
    return sum(parameter.numel() for parameter in module.parameters())
