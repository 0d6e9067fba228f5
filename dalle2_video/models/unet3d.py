"""3D U-Net of the decoder and both super-resolution stages: factorised in space and time (Ho et al. 2022, sec. 3).

Conditions: log SNR; the CLIP embedding, both added to it and as extra tokens of the cross-attention (Ramesh et al.
2022, sec. 2.1); the text encodings, as tokens and pooled (Saharia et al. 2022, sec. 2.3); for super-resolution a noised
video on extra input channels with its own log SNR (Ho et al. 2022b, "Imagen Video", sec. 2.4); the frame rate, where
several were trained on. Images may come along, each a sample of its own (Ho et al. 2022, sec. 3, joint training).
Invariant: a sample whose `keep` is False does not depend on its embedding and text, nothing depends on padded text, and
no image on a video or another image, nor a video on an image.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from dalle2_video.config import UnetConfig
from dalle2_video.models import recompute
from dalle2_video.models.time_embedding import FpsEmbedding, LogSnrEmbedding
from dalle2_video.models.unet_blocks import GROUPS, Block, Downsample, Upsample, ZeroConv2d
from dalle2_video.runtime import Checkpointing

EMBEDDING_TOKENS = 4


class Conditioning(nn.Module):
    """Turns all conditions into a vector (for the residual blocks) and a row of tokens (for the cross-attention)."""

    def __init__(
        self, dim: int, embedding_dim: int | None, text_dim: int, *, low_res: bool, tokens: bool, fps: bool
    ) -> None:
        super().__init__()
        self.time = LogSnrEmbedding(dim)
        self.low_res_time = LogSnrEmbedding(dim) if low_res else None
        self.fps = FpsEmbedding(dim) if fps else None
        self.pooled_text = nn.Linear(text_dim, dim)
        self.null_pooled_text = nn.Parameter(torch.randn(dim) * 0.02)
        self.text_tokens = nn.Linear(text_dim, dim) if tokens else None
        # always visible, so that a sample without caption has something to attend to
        self.null_text_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if tokens else None
        self.embedding_norm = self.embedding = self.null_embedding = None
        self.embedding_tokens = self.null_embedding_tokens = None
        if embedding_dim is not None:
            # CLIP's embeddings have unit norm, entries of 1/sqrt(d); the norm brings them to unit variance
            self.embedding_norm = nn.LayerNorm(embedding_dim)
            self.embedding = nn.Linear(embedding_dim, dim)
            self.null_embedding = nn.Parameter(torch.randn(dim) * 0.02)
            if tokens:
                self.embedding_tokens = nn.Linear(embedding_dim, EMBEDDING_TOKENS * dim)
                self.null_embedding_tokens = nn.Parameter(torch.randn(EMBEDDING_TOKENS, dim) * 0.02)

    def forward(
        self,
        logsnr_b: Tensor,
        encodings_bld: Tensor,
        text_mask_bl: Tensor,
        keep_b: Tensor,
        embedding_bd: Tensor | None,
        low_res_logsnr_b: Tensor | None,
        fps_b: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the vector (b, dim), the tokens (b, m, dim) and their mask (b, m) bool; arguments as in Unet3D."""
        dtype = self.pooled_text.weight.dtype
        batch, keep_b1, keep_b11 = len(keep_b), keep_b[:, None], keep_b[:, None, None]
        # where and not a product with the mask: padded encodings may hold anything, even inf
        encodings_bld = torch.where(text_mask_bl[..., None], encodings_bld, torch.zeros_like(encodings_bld))
        lengths_b1 = text_mask_bl.sum(1, keepdim=True).clamp(min=1)
        pooled = self.pooled_text((encodings_bld.float().sum(1) / lengths_b1).to(dtype))
        vector = self.time(logsnr_b) + torch.where(keep_b1, pooled, self.null_pooled_text)
        if self.low_res_time is not None:
            assert low_res_logsnr_b is not None
            vector = vector + self.low_res_time(low_res_logsnr_b)
        if self.fps is not None:
            assert fps_b is not None
            vector = vector + self.fps(fps_b)
        tokens, visible = [], []
        if self.text_tokens is not None and self.null_text_token is not None:
            null = self.null_text_token.expand(batch, -1, -1)
            tokens += [null, torch.where(keep_b11, self.text_tokens(encodings_bld.to(dtype)), null)]
            visible += [torch.ones_like(keep_b1), text_mask_bl & keep_b1]
        if self.embedding_norm is not None:
            assert embedding_bd is not None and self.embedding is not None and self.null_embedding is not None
            embedding = self.embedding_norm(embedding_bd.to(dtype))
            vector = vector + torch.where(keep_b1, self.embedding(embedding), self.null_embedding)
            if self.embedding_tokens is not None and self.null_embedding_tokens is not None:
                extra = rearrange(self.embedding_tokens(embedding), "b (m d) -> b m d", m=EMBEDDING_TOKENS)
                tokens.append(torch.where(keep_b11, extra, self.null_embedding_tokens))
                visible.append(torch.ones_like(keep_b1).expand(-1, EMBEDDING_TOKENS))
        if not tokens:
            return functional.silu(vector), None, None
        return functional.silu(vector), torch.cat(tokens, dim=1), torch.cat(visible, dim=1)


class Unet3D(nn.Module):
    """Predicts a video from its noised version: v, x0 or eps, whatever the loss asks for."""

    def __init__(
        self,
        config: UnetConfig,
        *,
        embedding_dim: int | None,
        text_dim: int,
        low_res: bool,
        fps: bool = False,
        learned_variance: bool = False,
        activation_checkpointing: Checkpointing = "none",
    ) -> None:
        """fps: the frame rate is a condition; learned_variance: a head of its own says how sure the prediction is; see
        `diffusion.variance`.
        """
        super().__init__()
        self.config, self.low_res, self.embedding_dim, self.fps = config, low_res, embedding_dim, fps
        self.full, self.selective = activation_checkpointing == "full", activation_checkpointing != "none"
        condition_dim = 4 * config.dim
        channels = [config.dim * mult for mult in config.dim_mults]
        self.conditioning = Conditioning(
            condition_dim, embedding_dim, text_dim, low_res=low_res, tokens=any(config.cross_attention), fps=fps
        )
        self.conv_in = nn.Conv2d(6 if low_res else 3, channels[0], 3, padding=1)

        def level_blocks(level: int, *, merges_skip: bool = False) -> nn.ModuleList:
            options = {"merges_skip": merges_skip, "selective": self.selective}
            blocks = [Block(config, level, condition_dim, condition_dim, **options) for _ in range(config.blocks)]
            return nn.ModuleList(blocks)

        levels = range(len(channels) - 1)
        self.down = nn.ModuleList([level_blocks(level) for level in levels])
        self.downsample = nn.ModuleList([Downsample(channels[level], channels[level + 1]) for level in levels])
        # the smallest level has no skips of its own: its blocks of the way down and of the way up follow each other
        self.middle = nn.ModuleList([*level_blocks(len(levels)), *level_blocks(len(levels))])
        self.upsample = nn.ModuleList([Upsample(channels[level + 1], channels[level]) for level in levels])
        self.up = nn.ModuleList([level_blocks(level, merges_skip=True) for level in levels])
        self.norm_out = nn.GroupNorm(GROUPS, channels[0])
        self.conv_out = ZeroConv2d(channels[0], 3, 3, padding=1)
        # made last, so that all other weights are drawn as without it
        self.variance_out = (
            nn.Sequential(
                nn.Conv2d(channels[0], channels[0], 3, padding=1), nn.SiLU(), ZeroConv2d(channels[0], 3, 3, padding=1)
            )
            if learned_variance
            else None
        )

    def _out(self, x_nchw: Tensor) -> Tensor:
        features = functional.silu(self.norm_out(x_nchw))
        if self.variance_out is None:
            return self.conv_out(features)
        # detached: the head reads the trunk and cannot change it
        return torch.cat([self.conv_out(features), self.variance_out(features.detach())], dim=1)

    def forward(
        self,
        noised_bcthw: Tensor,
        logsnr_b: Tensor,
        *,
        encodings_bld: Tensor,
        text_mask_bl: Tensor,
        keep_b: Tensor,
        embedding_bd: Tensor | None = None,
        low_res_bcthw: Tensor | None = None,
        low_res_logsnr_b: Tensor | None = None,
        fps_b: Tensor | None = None,
        images_nchw: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the objective's target.

        noised_bcthw: (b, 3, t, h, w), any t, h and w multiples of 2^(levels - 1); logsnr_b: (b,); encodings_bld:
        (b, l, text_dim) with text_mask_bl (b, l) bool, True where a token stands; keep_b: (b,) bool, False drops text
        and embedding; embedding_bd: (b, embedding_dim), any scale; low_res_bcthw: conditioning video, already of the
        output's size and noised to low_res_logsnr_b (b,), never dropped; fps_b: (b,) frames a second, never dropped.
        Returns (b, 3, t, h, w) fp32; with learned_variance (b, 6, t, h, w), the head's output after the prediction.
        images_nchw: (n, 3, h, w) noised images, each a video of one frame. Conditions then have b + n rows, those
        of images last, with fps_b 0, and predictions (n, 3 or 6, h, w) are returned beside. Not with low_res_bcthw.
        Raises ValueError where a condition that the network was built with is missing, or one too many is given.
        """
        given = (embedding_bd, low_res_bcthw, low_res_logsnr_b, fps_b)
        there = tuple(condition is not None for condition in given)
        if there != (self.embedding_dim is not None, self.low_res, self.low_res, self.fps):
            raise ValueError(
                f"Unet3D built with embedding_dim={self.embedding_dim}, low_res={self.low_res}, fps={self.fps} got "
                f"(embedding_bd, low_res_bcthw, low_res_logsnr_b, fps_b) given={there}; pass exactly the conditions it "
                "was built with"
            )
        if images_nchw is not None and self.low_res:
            raise ValueError(
                "Unet3D built with low_res=True takes no images_nchw: they have no video of lower resolution"
            )
        self.config.check_size(noised_bcthw.shape[-2])
        self.config.check_size(noised_bcthw.shape[-1])
        condition, context, mask = self.conditioning(
            logsnr_b, encodings_bld, text_mask_bl, keep_b, embedding_bd, low_res_logsnr_b, fps_b
        )
        video = noised_bcthw if low_res_bcthw is None else torch.cat([noised_bcthw, low_res_bcthw], dim=1)
        frames, images = rearrange(video.to(self.conv_in.weight.dtype), "b c t h w -> (b t) c h w"), 0
        if images_nchw is not None:
            frames, images = torch.cat([frames, images_nchw.to(frames.dtype)]), len(images_nchw)
        x = self.conv_in(frames.contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, downsample in zip(self.down, self.downsample, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = recompute.block(self.full, block, x, condition, context, mask, images=images)
                skips.append(x)
            x = downsample(x)
        for block in self.middle:
            x = recompute.block(self.full, block, x, condition, context, mask, images=images)
        for blocks, upsample in zip(reversed(self.up), reversed(self.upsample), strict=True):
            assert isinstance(blocks, nn.ModuleList)
            x = upsample(x)
            for block in blocks:
                x = recompute.block(self.full, block, x, condition, context, mask, skips.pop(), images=images)
        x = recompute.segment(self.selective, self._out, x)
        if images:
            predicted = x[-images:].float()
            return rearrange(x[:-images], "(b t) c h w -> b c t h w", b=len(noised_bcthw)).float(), predicted
        return rearrange(x, "(b t) c h w -> b c t h w", b=len(noised_bcthw)).float()
