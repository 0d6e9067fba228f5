"""Decode one clip, at a fixed frame rate, into square RGB frames of several sizes.

One thread a process: a preprocessing task owns one core, and threads inside the decoder cost CPU without gaining any.
Invariant: a damaged file never comes back as a shorter clip. It raises BadClip, whose reason goes to the store's bad
list; errors of the file system pass through instead, because another attempt may succeed. A file that makes the decoder
hang, crash or use up the memory does so to its process: tasks decode through `decode_process`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame

from dalle2_video.data.archives import Source
from dalle2_video.data.mp4_boxes import cut_box, is_box
from dalle2_video.data.video_filters import Deinterlacer, Scaler, orientation_of
from dalle2_video.data.video_stream import MP4, BadClip, ClipStream, open_options
from dalle2_video.data_config import DataConfig

__all__ = ["BadClip", "ClipFacts", "decode", "decode_to_arrays", "frame_shapes"]

_SHOWN_BYTES = 40
"""Of a file that holds text: an error page, the pointer to a file that was not fetched."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What decoding tells of a clip besides its frames."""

    num_frames: int
    """Frames at the largest length, 1 to max_frames; a size with a smaller limit holds the first of them."""
    source_fps: float
    """Mean rate of the source; 0 where unknown."""
    source_size: tuple[int, int]
    """Width and height in pixels, upright; pixels need not be square."""
    seconds: float
    """Duration of the whole source."""


def frame_shapes(config: DataConfig) -> dict[int, tuple[int, int, int, int]]:
    """Return the shape (frames, size, size, 3) of the buffer that `decode` fills, for each size."""
    return {size: (config.frames_at(size), size, size, 3) for size in config.frame_sizes}


def decode_to_arrays(source: Source, config: DataConfig) -> tuple[ClipFacts, dict[int, np.ndarray]]:
    """Decode into new arrays: (t, size, size, 3) uint8 for each size, as long as the clip. Raises as `decode` does."""
    out = {size: np.zeros(shape, np.uint8) for size, shape in frame_shapes(config).items()}
    facts = decode(source, config, out)
    return facts, {size: frames[: facts.num_frames] for size, frames in out.items()}


def decode(source: Source, config: DataConfig, out: dict[int, np.ndarray]) -> ClipFacts:
    """Decode up to max_frames frames at `config.fps`, cropped to the centre square, into `out`.

    out[size]: uint8 of the shape that `frame_shapes` says, RGB; its first min(num_frames, config.frames_at(size)) are
    written. Frame k is the source frame nearest in time to (start + k) / fps, the earlier of two equally near ones,
    whatever the source's rate, constant or variable. start is 0, the clip's first frame, or with the excerpt "middle"
    the number that leaves as much before as after. Every size is scaled from the source by area averaging.

    Raises BadClip for a file that is no video or is damaged, OSError for a file that cannot be read, MemoryError.
    """
    try:
        # Names and comments in a file are in any encoding.
        options = open_options(config.decode)
        with av.open(source.for_av(), options=options, metadata_errors="replace") as container:
            clip = ClipStream(container, config.decode)
            if not clip.stated_seconds and container.format.name == MP4:
                _require_whole(source)
            return _decode(clip, config, out)
    except MemoryError as error:
        raise MemoryError(str(error)) from error  # FFmpeg's own kind cannot be pickled
    except (av.error.FFmpegError, ValueError, OverflowError, RuntimeError) as error:
        # PyAV raises the builtin ones for values that it cannot represent.
        _raise_if_unreadable(source)
        raise BadClip(_reason(source, error)) from error


def _raise_if_unreadable(source: Source) -> None:
    """Let the file system's own error through: FFmpeg reports a failed disk and a broken file alike."""
    with source.path.open("rb") as file:
        file.seek(source.offset or 0)
        left = source.size if source.packed_size is None else source.packed_size
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            left -= len(block)


def _reason(source: Source, error: Exception) -> str:
    """Return what is wrong with a file, of which FFmpeg says no more than that it is invalid if it cannot open it."""
    if source.size == 0:
        return "the file is empty"
    if isinstance(error, av.error.FFmpegError):  # else the content could not be unpacked
        with source.open() as file:
            begin = file.read(min(_SHOWN_BYTES, source.size))
            file.seek(-len(begin), os.SEEK_CUR)
            cut = cut_box(file, source.size) if is_box(begin) else None
        if cut is not None:
            return f"truncated: there are {cut}"
        if begin.isascii() and (text := " ".join(begin.decode().split())).isprintable():
            return f"holds text, no video: {text!r}"
    return f"cannot be decoded: {getattr(error, 'strerror', None) or error}"


def _require_whole(source: Source) -> None:
    """Raise BadClip if an MP4 file is cut, one that does not say how long it is."""
    with source.open() as file:
        cut = cut_box(file, source.size)
    if cut is not None:
        raise BadClip(f"truncated: there are {cut}")


def _decode(clip: ClipStream, config: DataConfig, out: dict[int, np.ndarray]) -> ClipFacts:
    slots = _Slots(Fraction(str(config.fps)) / clip.ticks_per_s, clip.first)
    writer = _Writer(clip, config, out)
    if not clip.interlaced:  # a whole picture is made from the frames around it
        clip.is_needless = slots.none_nearest
    start, seconds, frames = 0, clip.stated_seconds, None
    if config.decode.excerpt == "middle":
        measured = 0.0 if seconds else clip.measure_seconds()
        start = max(0, (round((seconds or measured) * config.fps) - config.max_frames) // 2)
        if start or measured:
            frames = clip.frames(slots.pts(start))
    shown = None
    for picture in _pictures(clip, frames or clip.frames()):
        if shown is not None:
            writer.show(shown, slots.nearer_to_first(*_times(shown, picture)) - start)
            if writer.complete:
                break
        shown = picture
    else:
        assert shown is not None, "frames() yields a frame or raises"
        writer.show(shown, max(slots.before(clip.end) - start, 1))
    return ClipFacts(
        num_frames=writer.filled,
        source_fps=clip.rate,
        source_size=writer.displayed_size,
        seconds=seconds or float((clip.end - slots.first_pts) / clip.ticks_per_s),
    )


def _pictures(clip: ClipStream, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Make whole pictures of interlaced frames; others are passed on."""
    if not clip.interlaced:
        yield from frames
        return
    deinterlacer = Deinterlacer(clip.first)
    for frame in frames:
        yield from deinterlacer.push(frame)
    yield from deinterlacer.push(None)


def _times(*pictures: VideoFrame) -> list[int]:
    times = [picture.pts for picture in pictures if picture.pts is not None]
    assert len(times) == len(pictures), "frames without time stamp are refused"
    return times


class _Slots:
    """The times k / fps of stored frames, against time stamps in ticks: whole numbers, so that nothing drifts."""

    def __init__(self, slots_per_tick: Fraction, first: VideoFrame) -> None:
        assert first.pts is not None
        self.first_pts = first.pts
        self.per_tick = slots_per_tick

    def pts(self, slot: int) -> int:
        """Return the last time stamp at or before stored frame `slot`."""
        return self.first_pts + math.floor(slot / self.per_tick)

    def nearer_to_first(self, first_pts: int, second_pts: int) -> int:
        """Return how many stored frames lie at or before the middle between two source frames."""
        doubled = first_pts + second_pts - 2 * self.first_pts
        return doubled * self.per_tick.numerator // (2 * self.per_tick.denominator) + 1

    def none_nearest(self, before: int, pts: int, after: int) -> bool:
        """Return whether no stored frame is nearest to the source frame at `pts`; before, after: those around it."""
        return self.nearer_to_first(before, pts) == self.nearer_to_first(pts, after)

    def before(self, pts: int) -> int:
        """Return how many stored frames a clip has that ends at `pts`."""
        return math.floor((pts - self.first_pts) * self.per_tick + Fraction(1, 2))


class _Writer:
    """Fills the buffers of all sizes with the same frames, each as far as it goes."""

    def __init__(self, clip: ClipStream, config: DataConfig, out: dict[int, np.ndarray]) -> None:
        first = clip.first
        orientation = orientation_of(first)
        if orientation is None:
            raise BadClip("is displayed turned by an angle that is no multiple of 90 degrees")
        self.displayed_size = (first.height, first.width) if orientation.transposed else (first.width, first.height)
        self.out, self.max_frames = out, config.max_frames
        # Largest first: the decoder's picture is still in cache for it.
        sizes = sorted(config.frame_sizes, reverse=True)
        self.scalers = {size: Scaler(first, clip.aspect, size, orientation) for size in sizes}
        self.filled = 0

    @property
    def complete(self) -> bool:
        return self.filled == self.max_frames

    def show(self, picture: VideoFrame, until: int) -> None:
        """Fill the frames that are not filled yet, before frame `until`, with the picture."""
        begin, end = self.filled, min(until, self.max_frames)
        if end <= begin:
            return
        for size, scaler in self.scalers.items():
            frames = self.out[size][begin:end]
            if len(frames) > 0:
                scaler.write(picture, frames[0])
                frames[1:] = frames[0]
        self.filled = end
