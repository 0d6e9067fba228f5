"""The video stream of an opened clip: its frames in order, each checked, from the beginning or from a time on.

Invariant: whoever reads to the end has seen all that the file promises, or BadClip is raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame

from dalle2_video.data.needless import with_neighbours
from dalle2_video.data_config import DecodeConfig

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
"""FFmpeg's name of the format."""
_INDEXED_FORMATS = {MP4, "matroska,webm"}
"""What lists its key frames. In other formats a seek may land anywhere."""
_LEAD_FRAMES = 3
"""Frames decoded ahead of a time that is sought: deinterlacing looks back by one, and rates are averages."""
_PLAUSIBLE_STEP_S = 2.0
"""A longer step from one frame to the next is believed only within the duration that the file states."""
_MOST_RATE = 500
"""More frames per second are not believed: where Matroska states no rate, FFmpeg may take that of its clock for one."""
_INTERLACED_ORDERS = {2, 3, 4, 5}
"""FFmpeg's AVFieldOrder: top or bottom field first, coded and displayed."""


class BadClip(Exception):  # noqa: N818 - a verdict on the data, not a failure of the program
    """The clip cannot be used; `reason` says why in words for the person who owns the data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_options(config: DecodeConfig) -> dict[str, str]:
    """Return FFmpeg's options for container and codec."""
    return {
        "err_detect": "explode",
        "max_pixels": str(config.max_side**2),
        # A text file with the name of a clip may be a play list: nothing but the clip itself is opened.
        "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,ivf,dv",
        "protocol_whitelist": "file,subfile",
    }


class ClipStream:
    """Time stamps are in ticks, the stream's time base."""

    def __init__(self, container: Any, config: DecodeConfig) -> None:
        """Read the first frame, at most. Raises BadClip, or FFmpeg's errors for damaged data."""
        self.container, self.config = container, config
        self.stream = _video_stream(container)
        context = self.stream.codec_context
        if context is None:
            raise BadClip("there is no decoder for its video codec")
        self._check_side(context.width, context.height)
        context.thread_type, context.thread_count = "NONE", 1
        context.options = open_options(config)
        self.ticks_per_s = 1 / Fraction(self.stream.time_base)
        rates = (self.stream.average_rate, self.stream.guessed_rate)
        self.rate = next((float(rate) for rate in rates if rate and rate <= _MOST_RATE), 0.0)
        """Mean frames per second; 0 where unknown."""
        self.aspect = float(self.stream.sample_aspect_ratio or 1)
        """Width over height of a pixel."""
        self.is_needless: Callable[[int, int, int], bool] = lambda before, pts, after: False
        """Told the time stamps of a frame and of those around it, whether it need not be decoded."""
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise BadClip("the video stream holds no frame")
        self._last: VideoFrame | None = None
        self._check(first)
        self.first: VideoFrame = first
        self.interlaced: bool = first.interlaced_frame or context.field_order in _INTERLACED_ORDERS

    @property
    def stated_seconds(self) -> float:
        """The duration that the file states; 0 if none."""
        if self.stream.duration:
            return float(self.stream.duration / self.ticks_per_s)
        return float((self.container.duration or 0) / av.time_base)

    def measure_seconds(self) -> float:
        """Return the duration by reading all packets, undecoded, where the file states none; 0 if that is no use.

        Only `frames(first_pts)` may follow.
        """
        if self.container.format.name not in _INDEXED_FORMATS:
            return 0.0
        end = max(
            (packet.pts + (packet.duration or 0) for packet in self.container.demux(self.stream) if packet.pts),
            default=_pts(self.first),
        )
        return float((end - _pts(self.first)) / self.ticks_per_s)

    def frames(self, first_pts: int | None = None) -> Iterator[VideoFrame]:
        """Yield the frames in order, all of them, or from some frame on that lies before `first_pts`.

        Can be called once. Raises BadClip at the first damage and at an end that comes too early.
        """
        indexed = self.container.format.name in _INDEXED_FORMATS
        found = self._sought(first_pts) if first_pts is not None and indexed else chain([self.first], self._decoded)
        for frame in found:
            self._check(frame)
            self._last = frame
            yield frame
        self._check_end()

    def _decode(self) -> Iterator[VideoFrame]:
        """Decode from where the container stands; needless frames that no other refers to do not come out."""
        for packet, times in with_neighbours(self.container.demux(self.stream)):
            needless = times is not None and self.is_needless(*times)
            self.stream.codec_context.skip_frame = "NONREF" if needless else "DEFAULT"
            yield from packet.decode()

    @property
    def end(self) -> int:
        """Where the last frame that was read ends."""
        assert self._last is not None
        return _pts(self._last) + (self._last.duration or 0)

    def _sought(self, first_pts: int) -> Iterator[VideoFrame]:
        lead = math.ceil(_LEAD_FRAMES / (self.rate or 25.0) * self.ticks_per_s)
        while (target := first_pts - lead) > _pts(self.first):
            self.container.seek(target, stream=self.stream)
            decoded = self._decode()
            try:
                # Pictures that need what lies before the key frame are damaged without being so in the file.
                frame = next((frame for frame in decoded if not frame.is_corrupt), None)
            except av.error.FFmpegError:
                frame = None
            if frame is not None and frame.pts is not None and frame.pts <= target:
                return chain([frame], decoded)
            lead *= 4
        self.container.seek(_pts(self.first), stream=self.stream)
        return self._decode()

    def _check(self, frame: VideoFrame) -> None:
        if frame.is_corrupt:
            raise BadClip(f"damaged frame at {frame.time} s")
        if frame.pts is None:
            raise BadClip("a frame without time stamp")
        self._check_side(frame.width, frame.height)
        last = self._last
        if last is None:
            return
        if (frame.width, frame.height, frame.format.name) != (last.width, last.height, last.format.name):
            raise BadClip(
                f"frames change from {last.width}x{last.height} {last.format.name} to "
                f"{frame.width}x{frame.height} {frame.format.name} at {frame.time} s"
            )
        if frame.pts < _pts(last):
            raise BadClip(f"time stamps go back from {last.time} s to {frame.time} s")
        self._check_step(_pts(last), frame.pts)

    def _check_side(self, width: int, height: int) -> None:
        if max(width, height) > self.config.max_side:
            raise BadClip(f"{width}x{height} pixels, more than data.decode.max_side={self.config.max_side}")

    def _check_step(self, pts: int, next_pts: int) -> None:
        stated = self.stated_seconds
        after_s = (next_pts - _pts(self.first)) / self.ticks_per_s
        if (next_pts - pts) / self.ticks_per_s > _PLAUSIBLE_STEP_S and 0 < stated + _PLAUSIBLE_STEP_S < after_s:
            raise BadClip(f"time stamps leap to {float(after_s):.2f} s in a clip of {stated:.2f} s")

    def _check_end(self) -> None:
        if self._last is None:
            raise BadClip("its frames cannot be read a second time")
        self._check_step(_pts(self._last), self.end)
        stated = self.stated_seconds
        reached_s = float((self.end - _pts(self.first)) / self.ticks_per_s)
        slack_s = 2 / self.rate if self.rate else 1.0
        if not self.stream.duration and len(self.container.streams) > 1:
            slack_s += 1.0  # the duration is that of the longest stream, which may be the sound
        if reached_s < stated - slack_s:
            raise BadClip(f"truncated: the last frame is at {reached_s:.2f} s of {stated:.2f} s")


def _pts(frame: VideoFrame) -> int:
    assert frame.pts is not None, "frames without one are refused"
    return frame.pts


def _video_stream(container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the picture on a record's sleeve
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            return stream
    raise BadClip("no video stream")
