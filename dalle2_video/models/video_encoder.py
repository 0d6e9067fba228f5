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


class VideoEncoder(nn.Module):
    """Video to one embedding."""

    def __init__(self, config: ClipConfig, *, activation_checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        dim, self.patch_size, self.size = config.spatial.dim, config.patch_size, config.window.size
        self.tubelet_frames = config.tubelet_frames
        num_patches = (config.window.size // config.patch_size) ** 2
        self.patch = nn.Linear(3 * config.tubelet_frames * config.patch_size**2, dim)
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
        patches = rearrange(
            video_bcthw.to(self.patch.weight.dtype),
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
