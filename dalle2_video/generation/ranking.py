"""Which of several videos of a text is kept: the one that CLIP finds nearest to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dalle2_video.data.batches import to_float
from dalle2_video.stages.frozen_clip import FrozenClip


def cosines(clip: FrozenClip, videos_bthwc: Tensor, texts_bd: Tensor, stride: float) -> Tensor:
    """Return the cosine (b,) of each video and its text.

    videos: uint8; stride: distance of CLIP's frames in frames of these videos. A long video counts by the mean over
    CLIP's windows that it has whole, side by side; a short one by the frames that there are.
    """
    window, length = clip.config.window, videos_bthwc.shape[1]
    places = torch.floor(torch.arange(length / stride) * stride + 0.5).long()
    places = places[places < length]
    whole = max(1, len(places) // window.num_frames)
    found = []
    for number in range(whole):
        part = places[number * window.num_frames : (number + 1) * window.num_frames]
        video = scaled(to_float(videos_bthwc[:, part.to(videos_bthwc.device)]), window.size)
        found.append((clip.encode_video(video) * texts_bd).sum(-1))
    return torch.stack(found).mean(0)


def best_of(scores: Tensor, number: int, candidates: int) -> int:
    """Return the place of the best candidate of request `number`; of equal ones the first."""
    return number * candidates + int(scores[number * candidates : (number + 1) * candidates].argmax())


def scaled(video_bcthw: Tensor, size: int) -> Tensor:
    """Scale frames to a square of `size` pixels, with a filter that does not alias."""
    if video_bcthw.shape[-1] == size:
        return video_bcthw
    frames = rearrange(video_bcthw, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video_bcthw))
