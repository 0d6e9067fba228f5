"""Video encoder of CLIP: attention within each frame, then over frames (ViViT model 2, Arnab et al. 2021, sec. 3.3).

A class token sums up each frame, or each few frames where patches are tubelets (sec. 3.2); a second transformer with
its own class token sums up the frames. Learned time positions are interpolated to other numbers of frames than trained
on; the frame's size is fixed.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from dalle2_video.config import ClipConfig
from dalle2_video.models.attention import Transformer
from dalle2_video.runtime import Checkpointing

STEM_GROUPS = 4


class Stem(nn.Sequential):
    """Two 3x3x3 convolutions with norms and GELU that halve height and width and double the channels.

    Early convolutions instead of a linear map of patches (Xiao et al. 2021, sec. 3); in time too, so that motion is
    seen before frames are summed up.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv3d(3, channels, 3, padding=1),
            nn.GroupNorm(STEM_GROUPS, channels),
            nn.GELU(),
            nn.Conv3d(channels, 2 * channels, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(STEM_GROUPS, 2 * channels),
            nn.GELU(),
        )


class VideoEncoder(nn.Module):
    """Video to one embedding."""

    def __init__(self, config: ClipConfig, *, activation_checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        dim, self.size, self.tubelet_frames = config.spatial.dim, config.window.size, config.tubelet_frames
        self.stem = Stem(config.stem_channels) if config.stem_channels else None
        channels = 2 * config.stem_channels if config.stem_channels else 3
        self.patch_size = config.patch_size // 2 if config.stem_channels else config.patch_size
        num_patches = (config.window.size // config.patch_size) ** 2
        self.patch = nn.Linear(channels * config.tubelet_frames * self.patch_size**2, dim)
        self.frame_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.space_position = nn.Parameter(torch.randn(1 + num_patches, dim) * 0.02)
        self.spatial = Transformer(config.spatial, activation_checkpointing=activation_checkpointing)
        self.video_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.time_position = nn.Parameter(torch.randn(config.window.num_frames // config.tubelet_frames, dim) * 0.02)
        self.temporal = Transformer(config.temporal, activation_checkpointing=activation_checkpointing)
        self.project = nn.Linear(dim, config.embed_dim, bias=False)

    def forward(self, video_bcthw: Tensor) -> Tensor:
        """Embed videos.

        video_bcthw: (b, 3, t, size, size) float in [-1, 1]. Returns (b, embed_dim) fp32, not normalised.
        Raises ValueError on another frame size than the configured one, or frames that no tubelets hold.
        """
        batch, _, num_frames, *size = video_bcthw.shape
        if size != [self.size, self.size]:
            raise ValueError(f"video of {size} pixels, but clip.window.size={self.size}; resize it first")
        if num_frames % self.tubelet_frames:
            raise ValueError(f"{num_frames} frames, but clip.tubelet_frames={self.tubelet_frames} must divide them")
        video_bcthw = video_bcthw.to(self.patch.weight.dtype)
        patches = rearrange(
            video_bcthw if self.stem is None else self.stem(video_bcthw),
            "b c (t f) (h p) (w q) -> (b t) (h w) (c f p q)",
            f=self.tubelet_frames,
            p=self.patch_size,
            q=self.patch_size,
        )
        token = self.frame_token.expand(len(patches), -1, -1)
        x = torch.cat([token, self.patch(patches)], dim=1) + self.space_position
        frames = rearrange(self.spatial(x)[:, 0], "(b t) d -> b t d", b=batch)
        position: Tensor = self.time_position
        if frames.shape[1] != len(position):
            columns = rearrange(position.float(), "t d -> 1 d t")
            columns = functional.interpolate(columns, size=frames.shape[1], mode="linear", align_corners=True)
            position = rearrange(columns, "1 d t -> t d").to(frames.dtype)
        x = torch.cat([self.video_token.expand(batch, -1, -1), frames + position], dim=1)
        return self.project(self.temporal(x)[:, 0]).float()
