"""Where a DeepSpeed engine keeps its fp32 masters: the one file that touches DeepSpeed's private attributes.

A rank holds a range of every flattened parameter, cut as the ZeRO stage cuts: stage 3 each parameter in equal pieces;
stages 1 and 2 the concatenation of a parameter group, so that a rank may hold nothing of a parameter; stage 0
everything on every rank. `layout_of` finds out which it is. tests/unit/test_zero_state.py fails first when a DeepSpeed
release moves something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn


def equal_cuts(numel: int, pieces: int) -> list[int]:
    """Return pieces + 1 ascending bounds that cut a flat parameter as ZeRO-3 does: ceil(numel / pieces) each."""
    chunk = math.ceil(numel / pieces)
    return [min(piece * chunk, numel) for piece in range(pieces + 1)]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter: who keeps which range of it, and where this rank's lies in memory."""

    shape: tuple[int, ...]
    cuts: list[int]
    """Rank r keeps [cuts[r], cuts[r + 1]) of the flattened parameter: its part of the EMA and of a checkpoint."""
    held: tuple[int, int]
    """The range of master and moments that this rank has in memory: what it keeps, or everything at stage 0."""
    flat: int
    """Number of the flat tensor that the range lies in."""
    offset: int
    """Where the range begins in that tensor."""
    group: int
    """Number of its parameter group in AdamW."""


class Layout(Protocol):
    """The masters of one engine."""

    adamw: torch.optim.Optimizer

    @property
    def masters(self) -> list[Tensor]:
        """Flat fp32 masters in this rank's memory: what AdamW steps."""

    def slots(self, rank: int, world_size: int) -> dict[str, Slot]:
        """Return a slot for every parameter that is trained, by name."""

    def kept(self) -> list[Tensor]:
        """Return the part of each flat master that this rank keeps, as views."""

    def refresh(self) -> None:
        """Make the forward pass use the masters, cast to the compute precision. Collective."""


def layout_of(engine: Any) -> Layout:
    """Return the layout of a DeepSpeed engine."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _Zero3(optimizer, names)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return _FlatGroups(
            optimizer,
            names,
            masters=optimizer.single_partition_of_fp32_groups,
            groups=optimizer.round_robin_bit16_groups,
            flats=optimizer.bit16_groups_flat,
        )
    if isinstance(optimizer, BF16_Optimizer):
        return _FlatGroups(
            optimizer,
            names,
            masters=optimizer.fp32_groups_flat_partition,
            groups=optimizer.bf16_groups,
            flats=optimizer.bf16_groups_flat,
        )
    assert isinstance(optimizer, torch.optim.AdamW), type(optimizer)
    return _Replicated(optimizer, names)


def gradient_norm_of(engine: Any) -> Callable[[], float]:
    """Return what tells the whole gradient's norm, before clipping, while a ZeRO optimiser calls the AdamW inside."""
    return lambda: float(engine.optimizer._global_grad_norm)


@contextmanager
def whole(parameter: nn.Parameter, *, writing: bool = False) -> Iterator[Tensor]:
    """Make a parameter that is not trained whole for a moment, on every rank; stage 3 cuts it like the others.

    writing: what rank 0 writes into it is kept. Collective.
    """
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if writing else None):
        yield parameter.detach()


class _Zero3:
    """Every parameter cut in equal pieces; this rank's pieces of a sub-group lie one after the other."""

    def __init__(self, optimizer: Any, names: Mapping[int, str]) -> None:
        self.optimizer, self.adamw, self.names = optimizer, optimizer.optimizer, names

    @property
    def masters(self) -> list[Tensor]:
        return self.optimizer.fp32_partitioned_groups_flat

    def slots(self, rank: int, world_size: int) -> dict[str, Slot]:
        found = {}
        sub_groups = zip(self.optimizer.fp16_groups, self.optimizer.fp16_partitioned_groups, strict=True)
        for flat, (parameters, partitions) in enumerate(sub_groups):
            offset = 0
            for parameter, partition in zip(parameters, partitions, strict=True):
                cuts = equal_cuts(parameter.ds_numel, world_size)
                found[self.names[id(parameter)]] = Slot(
                    shape=tuple(parameter.ds_shape),
                    cuts=cuts,
                    held=(cuts[rank], cuts[rank + 1]),
                    flat=flat,
                    offset=offset,
                    group=self.optimizer.sub_group_to_group_id[flat],
                )
                # With the padding that makes all ranks' pieces equally long.
                offset += partition.numel()
        return found

    def kept(self) -> list[Tensor]:
        return self.masters

    def refresh(self) -> None:
        optimizer = self.optimizer
        optimizer.checkpoint_event_prologue()
        for index, flat in enumerate(self.masters):
            optimizer.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            partitions = optimizer.fp16_partitioned_groups[index]
            unflattened = optimizer.unflatten(optimizer.fp16_partitioned_groups_flat[index], partitions)
            for partition, view in zip(partitions, unflattened, strict=True):
                partition.data = view.data
        optimizer.checkpoint_event_epilogue()


class _FlatGroups:
    """Stages 1 and 2: the parameters of a group one after the other, cut across them in equal pieces."""

    def __init__(
        self,
        optimizer: Any,
        names: Mapping[int, str],
        *,
        masters: list[Tensor],
        groups: list[list[nn.Parameter]],
        flats: list[Tensor],
    ) -> None:
        self.optimizer, self.adamw, self.names = optimizer, optimizer.optimizer, names
        self.masters, self.groups, self.flats = masters, groups, flats

    def slots(self, rank: int, world_size: int) -> dict[str, Slot]:
        found = {}
        for flat, (parameters, together) in enumerate(zip(self.groups, self.flats, strict=True)):
            piece = together.numel() // world_size
            for parameter in parameters:
                # Where DeepSpeed put the parameter, whatever it aligns.
                start = (parameter.data_ptr() - together.data_ptr()) // together.element_size()
                cuts = [min(max(edge * piece - start, 0), parameter.numel()) for edge in range(world_size + 1)]
                assert cuts[0] == 0 and cuts[-1] == parameter.numel(), (start, piece)
                found[self.names[id(parameter)]] = Slot(
                    shape=tuple(parameter.shape),
                    cuts=cuts,
                    held=(cuts[rank], cuts[rank + 1]),
                    flat=flat,
                    offset=max(start + cuts[rank] - rank * piece, 0),
                    group=flat,
                )
        return found

    def kept(self) -> list[Tensor]:
        return self.masters

    def refresh(self) -> None:
        self.optimizer.update_lp_params()


class _Replicated:
    """Stage 0: the parameters are the masters, on every rank."""

    def __init__(self, adamw: torch.optim.AdamW, names: Mapping[int, str]) -> None:
        self.adamw: torch.optim.Optimizer = adamw
        self.names = names
        self.masters: list[Tensor] = [master for group in adamw.param_groups for master in group["params"]]

    def slots(self, rank: int, world_size: int) -> dict[str, Slot]:
        groups = [number for number, group in enumerate(self.adamw.param_groups) for _ in group["params"]]
        return {
            self.names[id(master)]: Slot(
                shape=tuple(master.shape),
                cuts=equal_cuts(master.numel(), world_size),
                held=(0, master.numel()),
                flat=flat,
                offset=0,
                group=group,
            )
            for flat, (master, group) in enumerate(zip(self.masters, groups, strict=True))
        }

    def kept(self) -> list[Tensor]:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        views = []
        for master in self.masters:
            cuts = equal_cuts(master.numel(), world_size)
            views.append(master.view(-1)[cuts[rank] : cuts[rank + 1]])
        return views

    def refresh(self) -> None:
        """Nothing to do: the forward pass uses the masters themselves."""
