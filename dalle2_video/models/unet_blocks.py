"""Blocks of the 3D U-Net: residual block, attention in space, to the text and over time, and resampling.

Feature maps are 4-dimensional (n, c, h, w) with n = batch * frames, stored channels last: 2D convolutions over folded
frames are up to twice as fast as 1x3x3 3D ones, and a map becomes attention tokens (n, h * w, c) or (b, t * h * w, c)
by a view, without a copy. Every residual branch ends in a layer that starts at zero: untrained, it is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from dalle2_video.config import UnetConfig
from dalle2_video.models import recompute
from dalle2_video.models.attention import MultiHeadAttention, RelativePositionBias

GROUPS = 8
SMALL_ON_CUDA = 1 << 20
"""Entries of a sample's feature map below which a kernel of its own would take longer to launch than to run."""


class ZeroConv2d(nn.Conv2d):
    """2D convolution that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def modulated_norm(x_nchw: Tensor, scale_bc: Tensor, shift_bc: Tensor) -> Tensor:
    """Group norm of (b * t, c, h, w) frames with scale and shift of each frame's sample."""
    frames, rest = divmod(len(x_nchw), len(scale_bc))
    assert rest == 0
    # By the size of one sample, so that the numbers do not depend on how a batch is shared among ranks.
    if frames == 1 or (x_nchw.is_cuda and frames * x_nchw[0].numel() < SMALL_ON_CUDA):
        return modulated_together(x_nchw, scale_bc, shift_bc)
    # As the norm's own weights they cost nothing: a product of its own would be made and kept for the backward pass.
    samples = zip(x_nchw.split(frames), scale_bc, shift_bc, strict=True)
    normed_samples = [functional.group_norm(sample, GROUPS, scale, shift) for sample, scale, shift in samples]
    return normed_samples[0] if len(normed_samples) == 1 else torch.cat(normed_samples)


def modulated_together(x_nchw: Tensor, scale_bc: Tensor, shift_bc: Tensor) -> Tensor:
    """The same for all samples at once: two kernels, and a product that is kept for the backward pass."""
    normed = functional.group_norm(x_nchw, GROUPS).unflatten(0, (len(scale_bc), -1))
    return torch.addcmul(shift_bc[:, None, :, None, None], normed, scale_bc[:, None, :, None, None]).flatten(0, 1)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the condition scales and shifts the second norm (Dhariwal & Nichol 2021)."""

    def __init__(self, channels: int, condition_dim: int, dropout: float, *, selective: bool = False) -> None:
        super().__init__()
        self.selective, self.random = selective, dropout > 0
        self.norm_in = nn.GroupNorm(GROUPS, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        # Scale and shift of the condition stand in for the second norm's own. Not zero at first, as the branch's last
        # layer is: where both are, neither learns what the condition says until the other has.
        self.modulation = nn.Linear(condition_dim, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = ZeroConv2d(channels, channels, 3, padding=1)

    def forward(self, x_nchw: Tensor, condition_bd: Tensor) -> Tensor:
        """Map (b * t, c, h, w) to the same shape; condition_bd: (b, condition_dim)."""
        scale, shift = self.modulation(condition_bd).chunk(2, dim=1)
        hidden = recompute.segment(self.selective, self._first, x_nchw)
        return x_nchw + recompute.segment(self.selective, self._second, hidden, scale, shift, random=self.random)

    def _first(self, x_nchw: Tensor) -> Tensor:
        return self.conv_in(functional.silu(self.norm_in(x_nchw)))

    def _second(self, hidden_nchw: Tensor, scale_bc: Tensor, shift_bc: Tensor) -> Tensor:
        modulated = modulated_norm(hidden_nchw, 1 + scale_bc, shift_bc)
        return self.conv_out(self.dropout(functional.silu(modulated)))


class TemporalConvolution(nn.Module):
    """3x1x1 convolution over time, as a 2D convolution with all pixels along one axis."""

    def __init__(self, channels: int, *, selective: bool = False) -> None:
        super().__init__()
        self.selective = selective
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.conv = ZeroConv2d(channels, channels, (3, 1), padding=(1, 0))

    def forward(self, x_nchw: Tensor, batch: int) -> Tensor:
        """Map (batch * t, c, h, w) to the same shape."""
        hidden = recompute.segment(self.selective, self._convolve, x_nchw, batch)
        return x_nchw + rearrange(hidden, "b c t (h w) -> (b t) c h w", h=x_nchw.shape[2])

    def _convolve(self, x_nchw: Tensor, batch: int) -> Tensor:
        return self.conv(rearrange(functional.silu(self.norm(x_nchw)), "(b t) c h w -> b c t (h w)", b=batch))


class SpatialAttention(nn.Module):
    """Each pixel attends to the pixels of its frame."""

    def __init__(self, channels: int, head_dim: int, *, selective: bool = False) -> None:
        super().__init__()
        self.selective = selective
        self.norm = nn.LayerNorm(channels)
        heads = max(1, channels // head_dim)
        self.attention = MultiHeadAttention(channels, heads, head_dim=head_dim, zero_init=True)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        out = recompute.segment(self.selective, self._attend, x_nchw)
        return x_nchw + rearrange(out, "n (h w) c -> n c h w", h=x_nchw.shape[2])

    def _attend(self, x_nchw: Tensor) -> Tensor:
        return self.attention(self.norm(rearrange(x_nchw, "n c h w -> n (h w) c")))


class CrossAttention(nn.Module):
    """Each pixel of each frame attends to the conditions' tokens."""

    def __init__(self, channels: int, head_dim: int, context_dim: int, *, selective: bool = False) -> None:
        super().__init__()
        self.selective = selective
        self.norm = nn.LayerNorm(channels)
        heads = max(1, channels // head_dim)
        self.attention = MultiHeadAttention(channels, heads, head_dim=head_dim, context_dim=context_dim, zero_init=True)

    def forward(self, x_nchw: Tensor, context_bmd: Tensor, mask_bm: Tensor) -> Tensor:
        """Map (b * t, c, h, w) to the same shape; context_bmd: (b, m, context_dim), mask_bm: (b, m) bool."""
        height, width = x_nchw.shape[2:]
        out = recompute.segment(self.selective, self._attend, x_nchw, context_bmd, mask_bm)
        return x_nchw + rearrange(out, "b (t h w) c -> (b t) c h w", h=height, w=width)

    def _attend(self, x_nchw: Tensor, context_bmd: Tensor, mask_bm: Tensor) -> Tensor:
        # all frames of a sample as one row of queries: the context is projected once a sample, not once a frame
        tokens = self.norm(rearrange(x_nchw, "(b t) c h w -> b (t h w) c", b=len(context_bmd)))
        return self.attention(tokens, context_bmd, mask_bm=mask_bm)


class TemporalAttention(nn.Module):
    """Each pixel attends to the same pixel of all frames, with a bias by distance in time (Ho et al. 2022, sec. 3)."""

    def __init__(self, channels: int, head_dim: int, *, selective: bool = False) -> None:
        super().__init__()
        self.selective = selective
        self.norm = nn.LayerNorm(channels)
        heads = max(1, channels // head_dim)
        self.bias = RelativePositionBias(heads)
        self.attention = MultiHeadAttention(channels, heads, head_dim=head_dim, zero_init=True)

    def forward(self, x_nchw: Tensor, batch: int) -> Tensor:
        """Map (batch * t, c, h, w) to the same shape, for any t."""
        bias_hlm = self.bias(len(x_nchw) // batch, x_nchw.device)
        out = recompute.segment(self.selective, self._attend, x_nchw, bias_hlm, batch)
        return x_nchw + rearrange(out, "(b h w) t c -> (b t) c h w", h=x_nchw.shape[2], w=x_nchw.shape[3])

    def _attend(self, x_nchw: Tensor, bias_hlm: Tensor, batch: int) -> Tensor:
        tokens = self.norm(rearrange(x_nchw, "(b t) c h w -> (b h w) t c", b=batch))
        return self.attention(tokens, bias_hlm=bias_hlm)


class Block(nn.Module):
    """Residual block with the level's convolution over time and attentions; on the way up it first merges a skip."""

    gathered_whole = True
    """ZeRO-3 fetches all its weights together, see `training.engine`. All take part in every forward."""

    def __init__(
        self,
        config: UnetConfig,
        level: int,
        condition_dim: int,
        context_dim: int,
        *,
        merges_skip: bool = False,
        selective: bool = False,
    ) -> None:
        super().__init__()
        channels, width = config.dim * config.dim_mults[level], config.head_dim
        # a projected sum instead of a concatenation: the same linear merge, without the copy and the wider block
        self.merge = nn.Conv2d(channels, channels, 1, bias=False) if merges_skip else None
        self.residual = ResidualBlock(channels, condition_dim, config.dropout, selective=selective)
        self.temporal_convolution = self.spatial = self.cross = self.temporal = None
        if config.temporal_convolution[level]:
            self.temporal_convolution = TemporalConvolution(channels, selective=selective)
        if config.spatial_attention[level]:
            self.spatial = SpatialAttention(channels, width, selective=selective)
        if config.cross_attention[level]:
            self.cross = CrossAttention(channels, width, context_dim, selective=selective)
        if config.temporal_attention[level]:
            self.temporal = TemporalAttention(channels, width, selective=selective)

    def forward(
        self,
        x_nchw: Tensor,
        condition_bd: Tensor,
        context_bmd: Tensor | None,
        mask_bm: Tensor | None,
        skip_nchw: Tensor | None = None,
        *,
        images: int = 0,
    ) -> Tensor:
        """Map (b * t, c, h, w) to the same shape; condition, context and mask as in the parts; skip like x.

        images: the last so many frames are images and not of a video, (b * t + images, c, h, w); the last rows of
        condition, context and mask are theirs, (b + images, ...).
        """
        if self.merge is not None:
            x_nchw = x_nchw + self.merge(skip_nchw)
        if images:
            return self._with_images(x_nchw, condition_bd, context_bmd, mask_bm, images)
        batch = len(condition_bd)
        x_nchw = self.residual(x_nchw, condition_bd)
        if self.temporal_convolution is not None:
            x_nchw = self.temporal_convolution(x_nchw, batch)
        if self.spatial is not None:
            x_nchw = self.spatial(x_nchw)
        if self.cross is not None:
            assert context_bmd is not None and mask_bm is not None
            x_nchw = self.cross(x_nchw, context_bmd, mask_bm)
        if self.temporal is not None:
            x_nchw = self.temporal(x_nchw, batch)
        return x_nchw

    def _with_images(
        self, x_nchw: Tensor, condition_bd: Tensor, context_bmd: Tensor | None, mask_bm: Tensor | None, images: int
    ) -> Tensor:
        """The same where the last frames are images: to what works over time each is a video of one frame."""
        videos, pictures = slice(None, -images), slice(-images, None)

        def apart(part: nn.Module, x_nchw: Tensor, of_rows: Callable[[slice], tuple[Any, ...]]) -> Tensor:
            return torch.cat([part(x_nchw[rows], *of_rows(rows)) for rows in (videos, pictures)])

        def batch(rows: slice) -> tuple[int]:
            return (len(condition_bd[rows]),)

        def context(rows: slice) -> tuple[Tensor, Tensor]:
            assert context_bmd is not None and mask_bm is not None
            return context_bmd[rows], mask_bm[rows]

        each = (len(x_nchw) - images) // (len(condition_bd) - images)
        of_frames = torch.cat([condition_bd[videos].repeat_interleave(each, dim=0), condition_bd[pictures]])
        x_nchw = self.residual(x_nchw, of_frames)
        if self.temporal_convolution is not None:
            x_nchw = apart(self.temporal_convolution, x_nchw, batch)
        if self.spatial is not None:
            x_nchw = self.spatial(x_nchw)
        if self.cross is not None:
            x_nchw = apart(self.cross, x_nchw, context)
        if self.temporal is not None:
            x_nchw = apart(self.temporal, x_nchw, batch)
        return x_nchw


class Downsample(nn.Conv2d):
    """Halves height and width."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 2, stride=2)


class Upsample(nn.Module):
    """Doubles height and width: mixes channels at the small size, then repeats pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, out_channels, 2 h, 2 w)."""
        return functional.interpolate(self.mix(x_nchw), scale_factor=2, mode="nearest")
