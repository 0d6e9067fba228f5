"""Videos as people see them: mp4 files and contact sheets."""

from __future__ import annotations

import textwrap
from fractions import Fraction
from pathlib import Path

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
        for frame in frames_thwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


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
