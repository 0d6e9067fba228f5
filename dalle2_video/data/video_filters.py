"""From decoded frames to upright square RGB: orientation, deinterlacing, and one scaling graph for each size.

Every graph gives one frame for one frame and keeps the order; which frames are wanted is `video`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a stored picture becomes the displayed one: first perhaps transposed, then mirrored."""

    transposed: bool = False
    """Rows become columns."""
    flipped_x: bool = False
    """Left and right change places."""
    flipped_y: bool = False
    """Top and bottom change places."""

    @staticmethod
    def from_matrix(matrix: np.ndarray) -> Orientation | None:
        """Return the orientation that a display matrix means, or None if it is no multiple of a quarter turn.

        matrix: the nine numbers (a, b, u, c, d, v, x, y, w) of ISO/IEC 14496-12, 6.2.2: the point (p, q) of the stored
        picture is displayed at (a p + c q, b p + d q), moved into sight.
        """
        a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
        if a and d and not b and not c:
            return Orientation(flipped_x=a < 0, flipped_y=d < 0)
        if b and c and not a and not d:
            return Orientation(transposed=True, flipped_x=c < 0, flipped_y=b < 0)
        return None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return a view of a stored picture (y, x, channels) as it is displayed."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]


_QUARTER_TURNS = {
    0: Orientation(),
    90: Orientation(transposed=True, flipped_y=True),
    180: Orientation(flipped_x=True, flipped_y=True),
    -90: Orientation(transposed=True, flipped_x=True),
    -180: Orientation(flipped_x=True, flipped_y=True),
}
"""By degrees counter-clockwise."""


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Return how to display a frame by its display matrix, or None if that is no multiple of a quarter turn."""
    try:
        side_data: Any = frame.side_data
        matrices = [bytes(data) for data in side_data if data.type is Type.DISPLAYMATRIX]
    except ValueError:  # side data of a kind that this PyAV does not know lies beside it
        return _QUARTER_TURNS.get(frame.rotation)
    return Orientation.from_matrix(np.frombuffer(matrices[0], np.int32)) if matrices else Orientation()


class Deinterlacer:
    """Makes whole pictures of those frames that are marked as interlaced; each comes out when the next went in."""

    def __init__(self, frame: VideoFrame) -> None:
        self.graph = Graph()
        self.graph.threads = 1
        self.source = _add_source(self.graph, frame)
        self.sink = self.graph.add("buffersink")
        self.graph.link_nodes(
            self.source, self.graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), self.sink
        ).configure()
        assert frame.time_base is not None
        self.time_base = frame.time_base

    def push(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Feed a frame (None ends the stream) and yield what is ready, with time stamps in the source's time base."""
        self.source.push(frame)
        while True:
            try:
                ready = self.sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(ready, VideoFrame) and ready.pts is not None and ready.time_base is not None
            ready.pts = round(ready.pts * ready.time_base / self.time_base)
            ready.time_base = self.time_base
            yield ready


class Scaler:
    """Crops the centre square and scales it by area averaging to (size, size) RGB."""

    def __init__(self, frame: VideoFrame, aspect: float, size: int, orientation: Orientation) -> None:
        """aspect: width over height of a source pixel."""
        width = min(frame.width, max(1, round(frame.height / aspect)))
        height = min(frame.height, max(1, round(frame.width * aspect)))
        graph = Graph()
        graph.threads = 1
        self.size, self.orientation = size, orientation
        self.source = _add_source(graph, frame)
        self.sink = graph.add("buffersink")
        graph.link_nodes(
            self.source,
            graph.add("crop", f"{width}:{height}"),
            graph.add("scale", f"{size}:{size}:flags=area"),
            graph.add("format", "pix_fmts=rgb24"),
            self.sink,
        ).configure()
        self.graph = graph  # owns the filters' memory

    def write(self, frame: VideoFrame, out: np.ndarray) -> None:
        """Write the scaled frame into `out`, (size, size, 3) uint8."""
        self.source.push(frame)
        scaled = self.sink.pull()
        assert isinstance(scaled, VideoFrame)
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(self.size, plane.line_size)
        # The crop is a centred square, so that turning the small result equals turning the source.
        out[:] = self.orientation.apply(rows[:, : 3 * self.size].reshape(self.size, self.size, 3))


def _add_source(graph: Graph, frame: VideoFrame) -> Any:
    return graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
        f":pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}",
    )
