"""Videos as people see them: mp4, gif and webp files, folders of frames, contact sheets.

The same frames give the same bytes on every machine with the same libraries: one thread encodes, no clock is read.
"""

from __future__ import annotations

import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_SIDE = 256
_MARGIN = 8
_LINE = 14


def enlarge(frames_thwc: np.ndarray, min_side: int = MIN_SIDE) -> np.ndarray:
    """Repeat pixels a whole number of times so that the side is at least `min_side`: small videos stay watchable."""
    factor = max(1, -(-min_side // frames_thwc.shape[1]))
    return frames_thwc.repeat(factor, axis=1).repeat(factor, axis=2)


def write_mp4(path: Path, frames_thwc: np.ndarray, fps: float, *, metadata: dict[str, str] | None = None) -> None:
    """Write (t, h, w, 3) uint8 RGB as H.264 (yuv420p, index at the front, so that it plays while it loads).

    h and w must be even. metadata: tags of the container, such as title and comment.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames_thwc.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        stream.codec_context.thread_count = 1  # another number of threads would give other bytes
        for frame in frames_thwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_animation(path: Path, frames_thwc: np.ndarray, fps: float) -> None:
    """Write (t, h, w, 3) uint8 RGB as an endless gif (256 colours) or webp (lossless), by the suffix of `path`.

    Times are whole hundredths of a second in gif and thousandths in webp, none shorter than a viewer shows.
    """
    unit_ms = 10 if path.suffix == ".gif" else 1
    ends_ms = np.round(np.arange(1, len(frames_thwc) + 1) * 1000 / fps / unit_ms).astype(int) * unit_ms
    durations_ms = np.maximum(np.diff(ends_ms, prepend=0), 2 * unit_ms).tolist()
    first, *others = (Image.fromarray(frame) for frame in frames_thwc)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0, **options)


def write_frames(folder: Path, frames_thwc: np.ndarray) -> None:
    """Write (t, h, w, 3) uint8 RGB as 0000.png, 0001.png, ... into a new folder."""
    folder.mkdir()
    for number, frame in enumerate(frames_thwc):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")


def read_mp4(path: Path) -> np.ndarray:
    """Read all frames of a video file as (t, h, w, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contact_sheet(
    path: Path, videos: list[np.ndarray], captions: list[str], *, frames: int = 8, side: int = 96
) -> None:
    """Write a PNG with one row a video: `frames` of its frames, evenly spaced, above its caption.

    videos: (t, h, w, 3) uint8 each; side: pixels of a frame in the sheet.
    """
    font = ImageFont.load_default(11)
    width = _MARGIN + frames * (side + _MARGIN)
    texts = [textwrap.wrap(caption, width // 6) or [""] for caption in captions]
    height = _MARGIN + sum(len(lines) * _LINE + side + 2 * _MARGIN for lines in texts)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for video, lines in zip(videos, texts, strict=True):
        for line in lines:
            draw.text((_MARGIN, top), line, fill="black", font=font)
            top += _LINE
        for column, index in enumerate(np.linspace(0, len(video) - 1, frames).round().astype(int)):
            picture = Image.fromarray(video[index]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (_MARGIN + column * (side + _MARGIN), top))
        top += side + 2 * _MARGIN
    sheet.save(path)
