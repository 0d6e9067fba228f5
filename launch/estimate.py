"""What a run will take, told before anything is submitted: parameters and the peak of memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dalle2_video import text_tower
from dalle2_video.teaching import VideoConfig, students_optim
from launch.arguments import Arguments
from launch.stages import StageInfo

if TYPE_CHECKING:
    from dalle2_video.training.memory_estimate import MemoryEstimate

GIB = 2**30


def show(console: Console, info: StageInfo, arguments: Arguments) -> None:
    """Print the sizes of a training stage; other stages have nothing that is known beforehand."""
    if not info.training:
        return
    config, runtime = getattr(arguments.recipe, info.name), arguments.runtime
    world = arguments.placement.world_size
    micro, accumulation = runtime.accumulation(config.optim.batch_size, world)
    told = memory(info, arguments)
    parts = {"states": told.states + told.buckets, "frozen parents": told.frozen, "activations": told.activations}
    parts["process"] = told.process
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    console.print(
        f"  {info.name}: {told.parameters / 1e6:.2f} M parameters; peak memory a rank about {told.peak / GIB:.2f} GiB "
        f"({listed}) {'on the GPU' if on_gpus(arguments) else 'on CPUs'}, activation checkpointing "
        f"{runtime.activation_checkpointing}\n"
        f"  {steps_of(config)} steps of {config.optim.batch_size} samples = {world} ranks x micro-batch {micro} x "
        f"accumulation {accumulation}; precision {config.optim.precision}"
    )


def steps_of(config: Any) -> int:
    """Return the optimiser steps of a training stage."""
    return students_optim(config).steps if isinstance(config, VideoConfig) else config.optim.steps


def on_gpus(arguments: Arguments) -> bool:
    """Whether a rank would have a GPU."""
    import torch

    placement = arguments.placement
    return placement.gpus_per_node > 0 or (placement.resolved_cluster() == "local" and torch.cuda.is_available())


def memory(info: StageInfo, arguments: Arguments) -> MemoryEstimate:
    """Return the memory that a rank of a training stage would take: counted, nothing is allocated for it."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is trained here
    from dalle2_video.training import memory_estimate

    world, runtime = arguments.placement.world_size, arguments.runtime
    micro, _ = runtime.accumulation(getattr(arguments.recipe, info.name).optim.batch_size, world)
    return memory_estimate.estimate(
        text_tower.resolved(arguments.recipe),
        info.name,
        micro_batch=micro,
        world_size=world,
        zero_stage=runtime.zero_stage,
        checkpointing=runtime.activation_checkpointing,
        cuda=on_gpus(arguments),
    )


def deepspeed_config(info: StageInfo, arguments: Arguments) -> dict[str, Any]:
    """Return the config that DeepSpeed would get; ValueError for a stage that trains nothing."""
    if not info.training:
        raise ValueError(f"--dump-deepspeed-config: {info.name} trains nothing and has no DeepSpeed config")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is trained here
    from dalle2_video.training import engine

    optim, placement = getattr(arguments.recipe, info.name).optim, arguments.placement
    micro, accumulation = arguments.runtime.accumulation(optim.batch_size, placement.world_size)
    return engine.deepspeed_config(
        optim,
        micro,
        accumulation,
        placement.world_size,
        cuda=on_gpus(arguments),
        zero_stage=arguments.runtime.zero_stage,
    )
