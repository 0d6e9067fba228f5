"""Attention in parts along the batch gives what attention at once gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dalle2_video.models import attention
from dalle2_video.models.unet_blocks import TemporalAttention

BATCH, HEADS, LENGTH, WIDTH = 7, 2, 5, 4


class Largest(TorchDispatchMode):
    """Remembers the most elements of a tensor whose last two dimensions are a score matrix's."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[-2:] == (LENGTH, LENGTH):
            self.elements = max(self.elements, result.numel())
        return result


def attended(mask: Tensor | None) -> tuple[list[Tensor], int]:
    """Output and gradients of a fixed case, and the most scores in memory at once."""
    torch.manual_seed(0)
    inputs = [torch.randn(BATCH, HEADS, LENGTH, WIDTH, requires_grad=True) for _ in range(3)]
    learnt = [mask] if mask is not None and mask.requires_grad else []
    with Largest() as largest:
        out = attention.attend(*inputs, mask)
        gradients = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).cos()).sum(), [*inputs, *learnt])
    return [out.detach(), *gradients], largest.elements


def compare(monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, **limits: int) -> tuple[int, int]:
    whole, most = attended(mask)
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    parts, fewest = attended(mask)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    return most, fewest


def test_a_learnt_bias_never_has_all_scores_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = torch.randn(1, HEADS, LENGTH, LENGTH, requires_grad=True)
    scores = HEADS * LENGTH * LENGTH
    assert compare(monkeypatch, bias, MAX_SCORES=2 * scores) == (BATCH * scores, 2 * scores)


@pytest.mark.parametrize("rows", [1, BATCH])
def test_more_rows_than_the_kernels_take_are_shared_out(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    compare(monkeypatch, None, MAX_ROWS=3 * HEADS)
    mask = torch.arange(LENGTH) < torch.arange(1, 1 + rows).clamp(max=LENGTH)[:, None, None, None]
    compare(monkeypatch, mask, MAX_ROWS=3 * HEADS)


def test_attention_over_time_in_parts_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        part = TemporalAttention(16, 8)
        part.attention.to_out.weight.data.normal_()
        x = torch.randn(2 * 3, 16, 4, 4, requires_grad=True)
        out = part(x, 2)
        out.square().sum().backward()
        return [out.detach(), x.grad, *(parameter.grad for parameter in part.parameters())]  # type: ignore[list-item]

    whole = run()
    monkeypatch.setattr(attention, "MAX_SCORES", 5 * 2 * 9)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
