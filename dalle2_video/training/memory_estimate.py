"""The memory that one rank of a training will take at its peak, told before it starts.

States are arithmetic. Activations are counted: the stage's own loss runs forward and backward on fake tensors
(`live_memory`), so that checkpointing, precision, sizes and micro-batch are all in it. The remaining constants are
measured, see tools/bench/memory.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_video.config import ClipConfig, DecoderConfig, Recipe, SpatialSrConfig, SuperResolutionConfig
from dalle2_video.models.clip import Clip
from dalle2_video.models.factory import ModelDims, StageConfig, build
from dalle2_video.runtime import Checkpointing
from dalle2_video.stages import STAGES
from dalle2_video.stages.distillation import Teacher
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.teaching import VideoConfig, teachers_config
from dalle2_video.training import allocation
from dalle2_video.training.live_memory import LiveMemory, fake_tensors

PROCESS_BYTES = 420 * 2**20
"""Resident memory of a rank beside its tensors: Python, torch, DeepSpeed, gloo, the code of kernels."""
HEAP_WASTE = 1.4
"""Size of the C library's heap over what was in it at most: holes between tensors."""
BUCKET = {False: 1_000_000, True: 50_000_000}
"""Elements of ZeRO's buckets on CPUs and on GPUs, as `engine.deepspeed_config` sets them."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank."""

    parameters: int
    """Number of trained and frozen parameters of the model."""
    states: int
    """Weights, gradients, masters, moments and EMA, as the ZeRO stage shares them out."""
    buckets: int
    """Gathered weights and gradients on their way between ranks."""
    frozen: int
    """CLIP's weights, where a stage is conditioned on it, and a teacher's: whole on every rank."""
    activations: int
    """Highest sum of all other tensors in a forward and backward pass."""
    process: int
    """The process itself; 0 on a GPU, where only allocated memory is counted."""

    @property
    def peak(self) -> int:
        """All of it."""
        return self.states + self.buckets + self.frozen + self.activations + self.process


def dims_of(recipe: Recipe) -> ModelDims:
    """Return the sizes that models take from their parents, with a vocabulary as large as the recipe allows."""
    return ModelDims(
        vocab_size=recipe.data.vocab_size,
        text_context=recipe.data.text_context,
        embed_dim=recipe.clip.embed_dim,
        text_dim=recipe.clip.text.dim,
    )


def estimate(
    recipe: Recipe,
    stage: str,
    *,
    micro_batch: int,
    world_size: int,
    zero_stage: int,
    checkpointing: Checkpointing,
    cuda: bool = False,
) -> MemoryEstimate:
    """Return what a rank of a training stage will take."""
    config, dims = getattr(recipe, stage), dims_of(recipe)
    bf16 = config.optim.precision == "bf16"
    with fake_tensors():
        with _default_dtype(torch.bfloat16 if bf16 else torch.float32):
            module = build(config, dims, activation_checkpointing=checkpointing)
        count = _count(module)
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        clip = None if stage == "clip" else Clip(recipe.clip, dims.vocab_size, dims.text_context)
        teacher = _teacher(config, dims)
        heap_below = 0 if cuda else allocation.USUAL_BYTES if checkpointing == "none" else allocation.THRIFTY_BYTES
        memory = LiveMemory(heap_below=heap_below, heap_waste=HEAP_WASTE)
        activations = _peak_of_step(memory, stage, config, dims, module, clip, teacher, micro_batch)
    return MemoryEstimate(
        parameters=count,
        states=states(trained, world_size=world_size, zero_stage=zero_stage, bf16=bf16)
        + (count - trained) * (2 if bf16 else 4) // (world_size if zero_stage == 3 else 1),
        buckets=_buckets(count, _largest_whole(module), zero_stage=zero_stage, bf16=bf16, cuda=cuda),
        frozen=4 * sum(_count(one) for one in (clip, teacher.module if teacher else None) if one is not None),
        activations=activations,
        process=0 if cuda else PROCESS_BYTES,
    )


def states(count: int, *, world_size: int, zero_stage: int, bf16: bool) -> int:
    """Bytes of weights, gradients, masters, two moments and EMA of so many parameters, on one rank.

    In bf16 the stage is at least 1, see `engine.deepspeed_config`. The EMA is shared out at every stage.
    """
    zero_stage = max(zero_stage, 1) if bf16 else zero_stage
    weight, gradient, master, moments, ema = (2 if bf16 else 4), 4, 4, 8, 4
    if zero_stage == 0:
        master = 0  # the weights themselves
    shared = ema
    whole = 0
    for size, from_stage in ((weight, 3), (gradient, 2), (master, 1), (moments, 1)):
        if zero_stage >= from_stage:
            shared += size
        else:
            whole += size
    return count * whole + -(-count // world_size) * shared


def _largest_whole(module: nn.Module) -> int:
    """Number of weights of the largest part that ZeRO-3 fetches at once, see `engine`."""
    parts = (part for part in module.modules() if getattr(part, "gathered_whole", False))
    return max((_count(part) for part in parts), default=0)


def _buckets(count: int, largest_whole: int, *, zero_stage: int, bf16: bool, cuda: bool) -> int:
    if zero_stage == 0:
        return 0
    bucket = min(count, BUCKET[cuda])
    gathered = (bucket + max(bucket, largest_whole)) * (2 if bf16 else 4) if zero_stage == 3 else 0
    return 4 * bucket + gathered


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Have new weights made in a precision; fake ones cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _teacher(config: StageConfig, dims: ModelDims) -> Teacher | None:
    """Return the teacher of a distilled stage, with weights of no content."""
    if not isinstance(config, VideoConfig):
        return None
    its = teachers_config(config)
    return Teacher(config, its, build(its, dims)) if its is not None else None


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Draws:
    """Random numbers of the right shapes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.empty((self.count, *shape))

    def uniform(self, purpose: str) -> Tensor:
        return torch.empty(self.count)

    def of_images(self, images: int) -> _Draws:
        return _Draws(self.count * images)

    def keep(self, purpose: str, drop_probability: float) -> Tensor:
        return torch.empty(self.count, dtype=torch.bool)


def _peak_of_step(
    memory: LiveMemory,
    stage: str,
    config: StageConfig,
    dims: ModelDims,
    module: nn.Module,
    clip: Clip | None,
    teacher: Teacher | None,
    count: int,
) -> int:
    """Highest number of bytes in a forward and backward pass over `count` samples, beside weights and their gradients.

    ZeRO hands a gradient on as soon as it is there.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with memory:
        _loss(stage, config, dims, module, clip, teacher, count).backward()
    return memory.peak


def _loss(
    stage: str,
    config: Any,
    dims: ModelDims,
    module: nn.Module,
    clip: Clip | None,
    teacher: Teacher | None,
    count: int,
) -> Tensor:
    """The stage's loss, of a batch without content."""
    kind: Any = STAGES[stage]
    learner = kind.__new__(kind)  # its parents and its store are not there yet
    learner.config, draws = config, _Draws(count)
    if clip is not None:
        frozen = FrozenClip.__new__(FrozenClip)
        frozen.module, frozen.dims, frozen.fps = clip.eval().requires_grad_(False), dims, 1.0
        learner.clip, learner.teacher = frozen, teacher
    batch = {
        "tokens": torch.empty((count, dims.text_context), dtype=torch.int64),
        "length": torch.empty(count, dtype=torch.int64),
        "embedding": torch.empty((count, dims.embed_dim)),
    }
    if isinstance(config, ClipConfig | DecoderConfig | SuperResolutionConfig):
        size = config.window.size
        batch["video"] = torch.empty((count, config.window.num_frames, size, size, 3), dtype=torch.uint8)
    if isinstance(config, VideoConfig):
        batch["stride"] = torch.empty(count, dtype=torch.int64)
    if isinstance(config, DecoderConfig) and config.joint_images and teacher is None:
        images = (count, config.joint_images)
        batch |= {
            "images": torch.empty((*images, size, size, 3), dtype=torch.uint8),
            "image_tokens": torch.empty((*images, dims.text_context), dtype=torch.int64),
            "image_lengths": torch.empty(images, dtype=torch.int64),
            "image_embeddings": torch.empty((*images, dims.embed_dim)),
        }
    if isinstance(config, SpatialSrConfig):
        # Crops are cut by numbers, which fake tensors have none of.
        video = torch.empty((count, 3, config.window.num_frames, config.window.size, config.window.size))
        shape = (*video.shape[:3], config.crop_size, config.crop_size)
        high, given = torch.empty(shape), torch.empty(shape)
        return learner.denoising_loss(module, batch, draws, high, given, torch.empty(count))[0]
    return learner.loss(module, batch, draws)[0]
