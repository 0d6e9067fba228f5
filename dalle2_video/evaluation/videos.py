"""Generated videos and real windows in one form, so that a distance between them sees what was made and not how stored.

Generated videos are read from their mp4 files and brought back to the size of the stage that made them; real windows go
through an mp4 file of the same kind. Both are (t, size, size, 3) uint8.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle2_video import json_file
from dalle2_video.data.batches import to_float
from dalle2_video.data_config import WindowConfig
from dalle2_video.digests import file_digest
from dalle2_video.generation.ranking import scaled
from dalle2_video.generation.sample import SAMPLES
from dalle2_video.generation.video_file import enlarge, read_mp4, write_mp4


def listed(folder: Path) -> list[dict[str, Any]]:
    """Return what a sample run says of its videos, `file`, `prompt` and `sha256` each; ValueError where it has none."""
    path = folder / SAMPLES
    if not path.is_file():
        raise ValueError(f"{path} is missing: the sample run is not finished; run its command again")
    return json_file.read(path)


def read_generated(folder: Path, entry: dict[str, Any], window: WindowConfig) -> np.ndarray:
    """Return the first window of a generated video; window: that of the last stage.

    Raises ValueError where the file is not what was written, or another size or shorter than the window.
    """
    path = folder / entry["file"]
    if not path.is_file() or file_digest(path) != entry["sha256"]:
        raise ValueError(f"{path} is missing or damaged; sample again: remove the run's folder and run its command")
    frames = read_mp4(path)
    factor = frames.shape[1] // window.size
    if frames.shape[1:3] != (factor * window.size, factor * window.size) or len(frames) < window.num_frames:
        raise ValueError(f"{path} is a video {frames.shape}, which holds no window {window}")
    return reduced(frames[: window.num_frames], factor)


def reduced(frames_thwc: np.ndarray, factor: int) -> np.ndarray:
    """Undo `enlarge`: the mean of each square of pixels, which compression changed a little."""
    if factor == 1:
        return frames_thwc
    squares = rearrange(frames_thwc.astype(np.float32), "t (h p) (w q) c -> t h w c (p q)", p=factor, q=factor)
    return squares.mean(axis=-1).round().astype(np.uint8)


def as_if_generated(frames_thwc: np.ndarray, fps: float) -> np.ndarray:
    """Return a real window as it comes back from a file such as generated videos lie in."""
    size = frames_thwc.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "real.mp4"
        write_mp4(path, enlarge(frames_thwc), fps)
        found = read_mp4(path)
    return reduced(found, found.shape[1] // size)


def for_clip(video_thwc: np.ndarray, window: WindowConfig, clip_window: WindowConfig) -> Tensor:
    """Return a video of one window as CLIP sees it: (1, 3, t, size, size) float32 in [-1, 1].

    Of the frames those nearest in time to CLIP's, as many as there are; scaled to CLIP's size.
    """
    times = np.arange(clip_window.num_frames) * clip_window.stride / window.stride
    places = np.floor(times + 0.5).astype(int)
    frames = to_float(torch.from_numpy(video_thwc[places[places < len(video_thwc)]])[None])
    return scaled(frames, clip_window.size)
