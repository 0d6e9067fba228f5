"""Long videos in windows: how many frames a length takes, and where the windows of a stage lie. Pure arithmetic."""

from __future__ import annotations

import math

from dalle2_video.sample_config import SampleConfig


def overlap(options: SampleConfig, window: int) -> int:
    """Return how many of the decoder's frames a block knows of the one before; window: frames that it makes.

    Raises ValueError where nothing new would be left to make.
    """
    options.check_length(window)
    return options.extension.overlap or window // 2


def low_frames(options: SampleConfig, window: int, fps: float, given: int) -> int:
    """Return the frames that the decoder's video has in all, a window at least; given: those of `start`, 0 without it.

    fps: of the decoder's frames. Raises ValueError where `start` alone is as long as the video should be.
    """
    if options.seconds == 0:
        return given + window - min(given, overlap(options, window)) if given else window
    if given and options.seconds * fps <= given:
        raise ValueError(
            f"sample.seconds={options.seconds} is no more than what sample.start holds, {given / fps:g} s at {fps:g} "
            "frames a second; give more than that"
        )
    return max(window, math.ceil(options.seconds * fps - 1e-6))


def kept_frames(options: SampleConfig, made: int, fps: float) -> int:
    """Return how many of the finished video's frames are its length; fps: its own."""
    return min(made, max(1, round(options.seconds * fps))) if options.seconds else made


def window_starts(total: int, window: int, overlap: int) -> list[int]:
    """Return the first frames of the windows that cover `total` frames; the last one may overlap more.

    total: at least window; overlap: less than window.
    """
    assert 0 <= overlap < window <= total, (total, window, overlap)
    starts = list(range(0, total - window + 1, window - overlap))
    return starts if starts[-1] == total - window else [*starts, total - window]
