"""The training state of one engine as named ranges: fp32 masters, both Adam moments and EMA, at any ZeRO stage.

`ShardedState` names what this rank has of every parameter, without DeepSpeed's padding, so that checkpoint, EMA and
export need not know the stage. A rank keeps the same range of all four kinds, and all ranks' ranges together are the
parameter once; at stage 0 masters and moments are whole on every rank besides, the EMA is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dalle2_video.training.zero_layout import Slot, layout_of, whole

MASTER, EXP_AVG, EXP_AVG_SQ, EMA = "fp32", "exp_avg", "exp_avg_sq", "ema"
KINDS = (MASTER, EXP_AVG, EXP_AVG_SQ, EMA)


class ShardedState:
    """Named local ranges of masters, moments and EMA of one DeepSpeed engine."""

    def __init__(self, engine: Any) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.module: nn.Module = engine.module
        self._layout = layout_of(engine)
        # By name: all ranks go through the parameters in one order, and a file holds them in it.
        self.slots: dict[str, Slot] = dict(sorted(self._layout.slots(self.rank, self.world_size).items()))
        # AdamW makes its state at the first step; a checkpoint is loaded before that.
        for flat in self._layout.masters:
            self._layout.adamw.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                EXP_AVG: torch.zeros_like(flat),
                EXP_AVG_SQ: torch.zeros_like(flat),
            }
        self.ema_flats = [flat.clone() for flat in self.averaged_flats]

    @property
    def averaged_flats(self) -> list[Tensor]:
        """What the EMA is the average of: this rank's part of the masters, tensor by tensor of `ema_flats`."""
        return [flat.detach() for flat in self._layout.kept()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the AdamW inside."""
        return self._layout.adamw.param_groups

    def groups(self) -> list[dict[str, Any]]:
        """Settings of each parameter group and the names of its parameters, ready for JSON.

        Without the learning rate, which is a function of the step.
        """
        return [
            {
                "weight_decay": group["weight_decay"],
                "betas": list(group["betas"]),
                "eps": group["eps"],
                "parameters": [name for name, slot in self.slots.items() if slot.group == number],
            }
            for number, group in enumerate(self.param_groups)
        ]

    def _flats(self, kind: str) -> list[Tensor]:
        if kind == EMA:
            return self.ema_flats
        if kind == MASTER:
            return [flat.detach() for flat in self._layout.masters]
        return [self._layout.adamw.state[flat][kind] for flat in self._layout.masters]

    def held(self, kind: str) -> Iterator[tuple[str, int, Tensor]]:
        """Yield (name, begin, view) of one kind: all that is in this rank's memory, to write to.

        view: flat, [begin, begin + numel) of the flattened parameter; shares memory with the state.
        """
        flats = self._flats(kind)
        for name, slot in self.slots.items():
            begin, end = self._kept_range(slot) if kind == EMA else slot.held
            yield name, begin, flats[slot.flat].view(-1)[slot.offset : slot.offset + end - begin]

    def kept(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view) of one kind: the range that is this rank's alone; flat, shares memory with the state."""
        for name, begin, view in self.held(kind):
            first, last = self._kept_range(self.slots[name])
            yield name, view[first - begin : last - begin]

    def _kept_range(self, slot: Slot) -> tuple[int, int]:
        return slot.cuts[self.rank], slot.cuts[self.rank + 1]

    @property
    def updates(self) -> int:
        """Updates that AdamW has done, which its bias correction uses; skipped steps are not among them."""
        return int(self._layout.adamw.state[self._layout.masters[0]]["step"])

    def set_updates(self, updates: int) -> None:
        """Set the number of updates done."""
        for flat in self._layout.masters:
            self._layout.adamw.state[flat]["step"].fill_(updates)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Copy full fp32 weights into masters and EMA, exactly, and refresh what the forward pass uses. Collective."""
        for kind in (MASTER, EMA):
            for name, begin, view in self.held(kind):
                view.copy_(weights[name].reshape(-1)[begin : begin + view.numel()])
        self.refresh()

    def refresh(self) -> None:
        """Make the forward pass use the masters, cast to the compute precision. Collective."""
        self._layout.refresh()

    def gather(self, kind: str) -> Iterator[tuple[str, Tensor | None]]:
        """Yield (name, full fp32 tensor on the CPU of rank 0; None on the others) by name, one at a time. Collective.

        Rank 0 needs the memory of the parameter at hand; on a GPU that of its copy besides.
        """
        for name, view in self.kept(kind):
            yield name, self._gathered(self.slots[name], view)

    def _gathered(self, slot: Slot, view: Tensor) -> Tensor | None:
        if self.rank != 0:
            if view.numel() > 0:
                _exchange([dist.P2POp(dist.isend, view, 0)])
            return None
        full = torch.empty(slot.cuts[-1], dtype=view.dtype, device=view.device)
        full[: view.numel()] = view
        # The exact pieces: one padded to the longest would be the whole parameter from every rank at stages 1 and 2.
        pieces = [full[first:last] for first, last in pairwise(slot.cuts)]
        _exchange(
            [dist.P2POp(dist.irecv, piece, rank) for rank, piece in enumerate(pieces) if rank > 0 and piece.numel() > 0]
        )
        return full.reshape(slot.shape).cpu()


def _exchange(operations: list[dist.P2POp]) -> None:
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()


def untrained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on the CPU) of persistent buffers and frozen parameters, equal on all ranks. Collective."""
    for name, buffer in _buffers(module):
        yield name, buffer.detach().cpu()
    for name, parameter in _frozen(module):
        with whole(parameter) as full:
            # Cloned: stage 3 frees the gathered memory.
            yield name, full.clone().cpu()


def set_untrained(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy what `untrained` gave into persistent buffers and frozen parameters. Collective."""
    for name, buffer in _buffers(module):
        buffer.copy_(values[name])
    for name, parameter in _frozen(module):
        with whole(parameter, writing=True) as full:
            full.copy_(values[name])


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    persistent = module.state_dict().keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in persistent]


def _frozen(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad]
