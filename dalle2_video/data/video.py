"""Decode a clip once, at a fixed frame rate, into square RGB frames of several sizes.

One thread a process: a preprocessing task owns one core, and threads inside the decoder cost CPU without gaining any.
Invariant: a damaged file never comes back as a shorter clip. It raises BadClip, whose reason goes to the store's bad
list; errors of the file system pass through instead, because another attempt may succeed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

_STRICT = {"err_detect": "explode"}


class BadClip(Exception):  # noqa: N818 - a verdict on the data, not a failure of the program
    """The clip cannot be used; `reason` says why in words for the person who owns the data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """`frames[size]`: (t, size, size, 3) uint8 RGB, the same t for every size."""

    frames: dict[int, np.ndarray]
    source_fps: float
    source_size: tuple[int, int]
    """Width and height in pixels as displayed, rotation applied."""
    seconds: float


def decode(path: Path, fps: float, sizes: tuple[int, ...], max_frames: int) -> DecodedClip:
    """Decode up to `max_frames` frames at `fps` frames per second, cropped to the centre square.

    Frame k is the one nearest in time to k / fps after the first, whatever the source's rate (constant or variable);
    every size is scaled down from the source by area averaging. Raises BadClip for a file that is no video or is
    damaged, OSError for a file that cannot be read.
    """
    try:
        with av.open(str(path), options=_STRICT) as container:
            return _decode(container, Fraction(fps).limit_denominator(1001), sizes, max_frames)
    except av.error.FFmpegError as error:
        _raise_if_unreadable(path)
        raise BadClip(f"cannot be decoded: {error.strerror or error}") from error


def _raise_if_unreadable(path: Path) -> None:
    """Let the file system's own error through: FFmpeg reports a failed disk and a broken file alike."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _decode(container: Any, fps: Fraction, sizes: tuple[int, ...], max_frames: int) -> DecodedClip:
    if not container.streams.video:
        raise BadClip("no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    stream.codec_context.options = _STRICT
    graph: _Scaler | None = None
    frames: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    first = last = None
    for frame in container.decode(stream):
        _check_frame(frame, first)
        if first is None:
            first = frame
            graph = _Scaler(stream, first, fps, sizes)
        assert graph is not None
        last = frame
        graph.push(frame, frames)
        if len(frames[sizes[0]]) >= max_frames:
            break
    if first is None or last is None or graph is None:
        raise BadClip("the video stream holds no frame")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    decoded_s = float((last.pts - first.pts + (last.duration or 0)) * stream.time_base)
    seconds = _duration_s(container, stream, decoded_s)
    if len(frames[sizes[0]]) < max_frames:
        if rate > 0 and decoded_s < seconds - 2 / rate:
            raise BadClip(f"truncated: the last frame is at {decoded_s:.2f} s of {seconds:.2f} s")
        graph.push(None, frames)
    turns = _quarter_turns(first)
    size_wh = (first.width, first.height) if turns % 2 == 0 else (first.height, first.width)
    # The crop is a centred square, so that turning the small results equals turning the source.
    stacked = {s: np.ascontiguousarray(np.rot90(np.stack(f[:max_frames]), turns, (1, 2))) for s, f in frames.items()}
    return DecodedClip(frames=stacked, source_fps=rate, source_size=size_wh, seconds=seconds)


def _check_frame(frame: VideoFrame, first: VideoFrame | None) -> None:
    if frame.is_corrupt:
        raise BadClip(f"damaged frame at {frame.time} s")
    if frame.pts is None:
        raise BadClip("a frame without time stamp")
    if first is not None and (frame.width, frame.height) != (first.width, first.height):
        raise BadClip(
            f"frame size changes from {first.width}x{first.height} to {frame.width}x{frame.height} at {frame.time} s"
        )


def _duration_s(container: Any, stream: Any, decoded_s: float) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / av.time_base)
    return decoded_s


def _quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns counter-clockwise that display the frame upright, from the file's display matrix."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise BadClip(f"rotated by {frame.rotation} degrees, which is no multiple of 90")
    return turns % 4


class _Scaler:
    """Filter graph: frame rate, centre crop, then one area scaling to RGB for each size."""

    def __init__(self, stream: Any, first: VideoFrame, fps: Fraction, sizes: tuple[int, ...]) -> None:
        aspect = float(stream.sample_aspect_ratio or 1)  # width over height of a pixel
        width, height = min(first.width, round(first.height / aspect)), min(first.height, round(first.width * aspect))
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=stream.time_base
        )
        rate = graph.add("fps", f"fps={fps}:round=near")
        crop = graph.add("crop", f"{width}:{height}")
        split = graph.add("split", str(len(sizes)))
        source.link_to(rate)
        rate.link_to(crop)
        crop.link_to(split)
        self.source, self.sinks = source, {}
        # Largest first: its output is what the decoder's picture is still in cache for.
        for pad, size in enumerate(sorted(sizes, reverse=True)):
            scale = graph.add("scale", f"{size}:{size}:flags=area")
            rgb = graph.add("format", "pix_fmts=rgb24")
            sink = graph.add("buffersink")
            split.link_to(scale, pad, 0)
            scale.link_to(rgb)
            rgb.link_to(sink)
            self.sinks[size] = sink
        graph.configure()
        self.graph = graph  # owns the filters' memory

    def push(self, frame: VideoFrame | None, frames: dict[int, list[np.ndarray]]) -> None:
        """Feed one decoded frame (None ends the stream) and append what comes out to `frames`."""
        self.source.push(frame)
        for size, sink in self.sinks.items():
            while True:
                try:
                    scaled = sink.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                assert isinstance(scaled, VideoFrame)
                frames[size].append(scaled.to_ndarray())
