"""The state that a ZeRO-3 engine shards, as named views: the one file that touches DeepSpeed's private attributes.

Rank r of W holds the flat slice [r*c, (r+1)*c), c = ceil(numel/W), of every parameter, for the fp32 master, both Adam
moments and the EMA alike. `ShardedState` names those slices without the padding, so that checkpoint, EMA and export
need not know how DeepSpeed stores them. tests/unit/test_zero_state.py fails first when a DeepSpeed release moves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

MASTER, EXP_AVG, EXP_AVG_SQ, EMA = "fp32", "exp_avg", "exp_avg_sq", "ema"
KINDS = (MASTER, EXP_AVG, EXP_AVG_SQ, EMA)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a parameter's local slice lies in the flat tensors of its sub-group."""

    sub_group: int
    offset: int
    numel: int
    shape: tuple[int, ...]


def slice_bounds(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return [begin, end) of the flat parameter that a rank holds, without padding."""
    chunk = math.ceil(numel / world_size)
    return min(rank * chunk, numel), min((rank + 1) * chunk, numel)


class ShardedState:
    """Named local slices of masters, moments and EMA of one engine; `engine` is a DeepSpeed engine at ZeRO stage 3."""

    def __init__(self, engine) -> None:
        self._optimizer = engine.optimizer
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        names = {parameter.ds_id: name for name, parameter in engine.module.named_parameters()}
        self.slots: dict[str, Slot] = {}
        sub_groups = zip(self._optimizer.fp16_groups, self._optimizer.fp16_partitioned_groups, strict=True)
        for index, (parameters, partitions) in enumerate(sub_groups):
            offset = 0
            for parameter, partition in zip(parameters, partitions, strict=True):
                self.slots[names[parameter.ds_id]] = Slot(
                    sub_group=index, offset=offset, numel=parameter.ds_numel, shape=tuple(parameter.ds_shape)
                )
                offset += partition.numel()
        self._create_moments()
        self.ema_flats = [flat.detach().clone() for flat in self.master_flats]

    @property
    def master_flats(self) -> list[Tensor]:
        """Flat fp32 masters, one a sub-group, on this rank."""
        return self._optimizer.fp32_partitioned_groups_flat

    @property
    def param_groups(self) -> list[dict]:
        """Parameter groups of the AdamW inside."""
        return self._optimizer.optimizer.param_groups

    def _create_moments(self) -> None:
        # AdamW makes its state at the first step; a checkpoint is loaded before that.
        for flat in self.master_flats:
            self._optimizer.optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                EXP_AVG: torch.zeros_like(flat),
                EXP_AVG_SQ: torch.zeros_like(flat),
            }

    def _flats(self, kind: str) -> list[Tensor]:
        if kind == MASTER:
            return self.master_flats
        if kind == EMA:
            return self.ema_flats
        return [self._optimizer.optimizer.state[flat][kind] for flat in self.master_flats]

    def local(self, kind: str) -> Iterator[tuple[str, Slot, Tensor]]:
        """Yield (name, slot, view of the local slice without padding) of one kind; views share memory."""
        flats = self._flats(kind)
        for name, slot in self.slots.items():
            begin, end = slice_bounds(slot.numel, self.rank, self.world_size)
            yield name, slot, flats[slot.sub_group].detach()[slot.offset : slot.offset + end - begin]

    def set_step(self, step: int) -> None:
        """Set AdamW's step count, which its bias correction uses."""
        for flat in self.master_flats:
            self._optimizer.optimizer.state[flat]["step"].fill_(step)

    def set_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Copy full fp32 weights into the masters, exactly, and refresh what the forward pass uses."""
        for name, slot, view in self.local(MASTER):
            begin, end = slice_bounds(slot.numel, self.rank, self.world_size)
            view.copy_(weights[name].reshape(-1)[begin:end])
        self.refresh(self.master_flats)

    def refresh(self, flats: list[Tensor]) -> None:
        """Make the forward pass use the weights in `flats` (masters or EMA), cast to the compute precision."""
        optimizer = self._optimizer
        optimizer.checkpoint_event_prologue()
        for index, flat in enumerate(flats):
            optimizer.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            partitions = optimizer.fp16_partitioned_groups[index]
            unflattened = optimizer.unflatten(optimizer.fp16_partitioned_groups_flat[index], partitions)
            for partition, view in zip(partitions, unflattened, strict=True):
                partition.data = view.data
        optimizer.checkpoint_event_epilogue()

    def gather(self, kind: str) -> Iterator[tuple[str, Tensor | None]]:
        """Yield (name, full fp32 tensor on the CPU of rank 0; None on the others), one parameter at a time."""
        for name, slot, view in self.local(kind):
            chunk = math.ceil(slot.numel / self.world_size)
            padded = torch.zeros(chunk, dtype=torch.float32, device=view.device)
            padded[: view.numel()] = view
            pieces = [torch.empty_like(padded) for _ in range(self.world_size)] if self.rank == 0 else None
            dist.gather(padded, pieces, dst=0)
            full = torch.cat(pieces)[: slot.numel].reshape(slot.shape).cpu() if pieces is not None else None
            yield name, full
