"""Transformer parts: multi-head attention, feed-forward, pre-norm blocks, and a relative position bias for time.

Attention is `functional.scaled_dot_product_attention` everywhere, which picks the fused kernel of the device. Layers
that must start at zero initialise themselves in `reset_parameters`: under ZeRO-3 a weight that a parent overwrites
later is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dalle2_video.config import Activation, TransformerConfig
from dalle2_video.models import recompute
from dalle2_video.runtime import Checkpointing

MAX_SCORES = 1 << 24
"""Entries of a score matrix that may be in memory at once, over batch and heads: 64 MiB in fp32."""
MAX_ROWS = 65_535
"""Batch times heads that CUDA's attention kernels take: a dimension of their grid."""


class ZeroLinear(nn.Linear):
    """Linear layer that starts at zero, so that the residual branch it ends starts as the identity."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Embedding table that starts at N(0, 0.02^2) (Radford et al. 2018, sec. 4.1) instead of torch's N(0, 1)."""

    def reset_parameters(self) -> None:
        """Draw the table."""
        nn.init.normal_(self.weight, std=0.02)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, sec. 3.2) to itself or to a context."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        context_dim: int | None = None,
        dropout: float = 0.0,
        zero_init: bool = False,
        bias: bool = False,
    ) -> None:
        """bias: queries, keys and values have one, as in CLIP's released text encoders."""
        super().__init__()
        self.heads = heads
        inner = heads * (dim // heads if head_dim is None else head_dim)
        self.to_q = nn.Linear(dim, inner, bias=bias)
        # two layers, not one twice as wide: splitting that one costs a concatenation in the backward pass
        self.to_k = nn.Linear(dim if context_dim is None else context_dim, inner, bias=bias)
        self.to_v = nn.Linear(dim if context_dim is None else context_dim, inner, bias=bias)
        self.to_out = ZeroLinear(inner, dim) if zero_init else nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_bld: Tensor,
        context_bmd: Tensor | None = None,
        *,
        mask_bm: Tensor | None = None,
        causal: bool = False,
        bias_hlm: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to the context, or to x itself without one.

        x_bld: (b, l, dim); context_bmd: (b, m, context_dim); mask_bm: (b, m) bool, False is never attended to, at least
        one True a row; causal: position i sees 0..i (l = m); bias_hlm: (heads, l, m) added to the logits.
        Returns (b, l, dim).
        """
        q = rearrange(self.to_q(x_bld), "b l (h d) -> b h l d", h=self.heads)
        context = x_bld if context_bmd is None else context_bmd
        k = rearrange(self.to_k(context), "b m (h d) -> b h m d", h=self.heads)
        v = rearrange(self.to_v(context), "b m (h d) -> b h m d", h=self.heads)
        allowed = None if mask_bm is None else mask_bm[:, None, None, :]
        if causal and (allowed is not None or bias_hlm is not None):
            # the fused kernels take either their own causal flag or a mask
            triangle = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
            allowed = triangle if allowed is None else allowed & triangle
            causal = False
        if bias_hlm is not None:
            bias = bias_hlm.to(q.dtype)[None]
            allowed = bias if allowed is None else bias.masked_fill(~allowed, -math.inf)
        out = attend(q, k, v, allowed, causal=causal)
        return self.dropout(self.to_out(rearrange(out, "b h l d -> b l (h d)")))


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU of CLIP's first released weights: x * sigmoid(1.702 x)."""
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "quick_gelu": quick_gelu}


def attend(
    q_bhld: Tensor, k_bhmd: Tensor, v_bhmd: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention in as many parts along the batch as memory and the kernels' limits ask for.

    mask: bool or added to the logits, with a first dimension of 1 or b. One that is learnt needs the score matrix of
    its part in memory, of MAX_SCORES entries at most: the backward pass makes it again, part by part.
    Returns (b, h, l, d).
    """
    batch, heads, length, _ = q_bhld.shape
    rows = max(1, MAX_ROWS // heads)
    learnt = mask is not None and mask.requires_grad
    if learnt:
        rows = min(rows, max(1, MAX_SCORES // (heads * length * k_bhmd.shape[2])))
    if batch <= rows:
        return functional.scaled_dot_product_attention(q_bhld, k_bhmd, v_bhmd, attn_mask=mask, is_causal=causal)
    if learnt:
        assert mask is not None and mask.shape[0] == 1 and not causal
        return _AttentionInParts.apply(q_bhld, k_bhmd, v_bhmd, mask, rows)
    parts = []
    for first, q, k, v in _parts(rows, q_bhld, k_bhmd, v_bhmd):
        own = mask if mask is None or mask.shape[0] == 1 else mask[first : first + rows]
        parts.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=own, is_causal=causal))
    return torch.cat(parts)


def _parts(rows: int, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Give the first row of each part, and the part of each tensor."""
    for first in range(0, len(tensors[0]), rows):
        yield first, *(tensor[first : first + rows] for tensor in tensors)


class _AttentionInParts(torch.autograd.Function):
    """Attention with a learnt bias that is the same for all rows, in parts of so many rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.rows = rows
        out = torch.empty_like(q)
        for first, q_part, k_part, v_part in _parts(rows, q, k, v):
            out[first : first + rows] = functional.scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
        bias_grad = torch.zeros_like(bias, dtype=torch.float32)
        for first, *qkv, grad_part in _parts(ctx.rows, q, k, v, grad):
            with torch.enable_grad():
                inputs = [tensor.detach().requires_grad_() for tensor in (*qkv, bias)]
                q_part, k_part, v_part, bias_part = inputs
                out = functional.scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=bias_part)
            *parts, of_bias = torch.autograd.grad(out, inputs, grad_part)
            bias_grad += of_bias
            for whole, part in zip(grads, parts, strict=True):
                whole[first : first + ctx.rows] = part
        return *grads, bias_grad.to(bias.dtype), None


class FeedForward(nn.Module):
    """Two layers with an activation between, four times as wide inside."""

    def __init__(self, dim: int, dropout: float = 0.0, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_bld: Tensor) -> Tensor:
        """Map (b, l, dim) to the same shape, each position by itself."""
        return self.dropout(self.contract(self.activation(self.expand(x_bld))))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention_bias: bool = False,
        activation: Activation = "gelu",
        selective: bool = False,
    ) -> None:
        super().__init__()
        self.selective, self.random = selective, config.dropout > 0
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = MultiHeadAttention(config.dim, config.heads, dropout=config.dropout, bias=attention_bias)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.dropout, activation)

    def forward(self, x_bld: Tensor, *, mask_bm: Tensor | None = None, causal: bool = False) -> Tensor:
        """Map (b, l, dim) to the same shape; mask_bm and causal as in MultiHeadAttention."""

        def attend(x_bld: Tensor) -> Tensor:
            return self.attention(self.attention_norm(x_bld), mask_bm=mask_bm, causal=causal)

        def feed_forward(x_bld: Tensor) -> Tensor:
            return self.feed_forward(self.feed_forward_norm(x_bld))

        x_bld = x_bld + recompute.segment(self.selective, attend, x_bld, random=self.random)
        return x_bld + recompute.segment(self.selective, feed_forward, x_bld, random=self.random)


class Transformer(nn.Module):
    """Stack of pre-norm blocks and a final norm."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention_bias: bool = False,
        activation: Activation = "gelu",
        activation_checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.full = activation_checkpointing == "full"
        selective = activation_checkpointing != "none"
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(config, attention_bias=attention_bias, activation=activation, selective=selective)
                for _ in range(config.depth)
            ]
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x_bld: Tensor, *, mask_bm: Tensor | None = None, causal: bool = False) -> Tensor:
        """Map (b, l, dim) to the same shape, normalised; mask_bm and causal as in MultiHeadAttention."""
        for block in self.blocks:
            x_bld = recompute.block(self.full, block, x_bld, mask_bm=mask_bm, causal=causal)
        return self.norm(x_bld)


class RelativePositionBias(nn.Module):
    """Learned logit for each head and distance in time (Raffel et al. 2020, sec. 2.1).

    Sixteen buckets for each sign of the distance: the first eight hold one distance each, the rest grow geometrically
    up to `max_distance`, so that lengths never seen in training still have a bias. The sign tells forward from
    backward.
    """

    def __init__(self, heads: int, *, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = Embedding(buckets, heads)

    def forward(self, length: int, device: torch.device) -> Tensor:
        """Return the bias (heads, length, length) of query position i and key position j."""
        position = torch.arange(length, device=device)
        offset = position[None, :] - position[:, None]
        half = self.buckets // 2
        exact = half // 2
        distance = offset.abs()
        growth = torch.log(distance.clamp(min=exact) / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(distance < exact, distance, far) + half * (offset > 0)
        return rearrange(self.table(bucket), "i j h -> h i j")
