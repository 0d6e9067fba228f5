"""Which activations the backward pass finds kept and which it computes again ("activation checkpointing").

    none        all are kept
    selective   what is cheap to have again is not kept: norms, activations, modulation, projections to heads; what was
                dear is: the outputs of convolutions and of fused attention
    full        of each block only its inputs are kept, and while the backward pass is at a block, what `selective`
                keeps of it

A selective segment is cheap operations with a dear one at their end. Recomputing stops before that one: a convolution
or a linear layer needs its input for the backward pass, not its output, and torch's checkpoints stop as soon as all
that had been saved is there again. Results are the same to the bit in all three.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

FUSED_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def segment(selective: bool, function: Callable[..., Tensor], *args: Any, random: bool = False) -> Tensor:
    """Return function(*args); if `selective`, its arguments and the outputs of fused attention are all that is kept.

    function: cheap operations with a dear one at the end; fused attention may be in the middle. random: it draws random
    numbers.
    """
    if not selective or not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=random, context_fn=_attention_is_kept)


def block(full: bool, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Return function(*args, **options); if `full`, its arguments are all that is kept."""
    if not full or not torch.is_grad_enabled():
        return function(*args, **options)
    return checkpoint(function, *args, use_reentrant=False, **options)


def _attention_is_kept() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Return the contexts of the first and of the second time that a segment runs.

    torch has such contexts too, but they refuse a second run with other operations than the first; the hooks by which
    ZeRO-3 gathers weights run others.
    """
    outputs: deque[Any] = deque()
    return _Keep(outputs), _Give(outputs)


class _Keep(TorchDispatchMode):
    """Keeps what fused attention returns."""

    def __init__(self, outputs: deque[Any]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FUSED_ATTENTION:
            # Detached: the result itself will know the graph, which knows these contexts.
            self.outputs.append(tree_map_only(Tensor, Tensor.detach, result))
        return result


class _Give(_Keep):
    """Gives what was kept instead of computing it again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.outputs.popleft() if func in FUSED_ATTENTION else func(*args, **(kwargs or {}))
