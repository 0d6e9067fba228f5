"""The frames that generated videos begin with: of an image, or of a video file that is to go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle2_video.data.archives import Source
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.video import BadClip
from dalle2_video.data_config import DataConfig

IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""What is read as an image, by suffix; anything else is a video."""
MOST_SIDE, MOST_FRAMES = 8192, 1024


def read_start(path: Path, size: int, fps: float) -> np.ndarray:
    """Return the centre square of an image, or of a video's frames at `fps`, as (t, size, size, 3) uint8 RGB.

    Raises ValueError with the remedy where it cannot be read. A damaged file cannot hang or end this process.
    """
    return _image(path, size) if path.suffix.lower() in IMAGES else _video(path, size, fps)


def _image(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path, formats=[IMAGES[path.suffix.lower()]]) as image:
            if max(image.size) > MOST_SIDE:
                raise ValueError(f"sample.start {path}: {image.size} pixels; a side has at most {MOST_SIDE}: scale it")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"sample.start {path}: no image that can be read ({error}); save it again as png") from error
    shrinks = min(upright.size) >= size
    scaled = ImageOps.fit(upright, (size, size), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return np.asarray(scaled)[None]


def _video(path: Path, size: int, fps: float) -> np.ndarray:
    config = DataConfig(frame_sizes=(size,), fps=fps, min_frames=1, max_frames=MOST_FRAMES + 1)
    try:
        with DecodeProcess(config) as process:
            facts = process.decode(Source.of_file(path))
            frames = process.frames[size][: facts.num_frames].copy()
    except (BadClip, OSError) as error:
        raise ValueError(
            f"sample.start {path}: {error}; give a whole video file, or an image ({' '.join(IMAGES)})"
        ) from error
    if len(frames) > MOST_FRAMES:
        raise ValueError(f"sample.start {path}: longer than {MOST_FRAMES / fps:g} s at {fps:g} frames a second; cut it")
    return frames
