"""Frames to H.264 in mp4, the same bytes for the same frames on every call.

One encoder thread and bit-exact muxing: with more threads x264 may decide differently from call to call, and the muxer
would sign with its version. A clip appears under its name only when it is whole, so that a file that exists is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

PARTIAL_SUFFIX = ".partial"

_BT601, _LIMITED_RANGE = 6, 1  # AVCOL_*_SMPTE170M, AVCOL_RANGE_MPEG


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Encode planar YUV 4:2:0 frames, uint8 (3/2 * height, width), BT.601 limited range, at `fps` into `path`."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL_SUFFIX}")
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(temporary, "w", format="mp4", options=options) as container:
        stream = None
        for frame_yuv in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.height, stream.width = frame_yuv.shape[0] * 2 // 3, frame_yuv.shape[1]
                stream.pix_fmt = "yuv420p"
                stream.options = {"preset": "ultrafast", "crf": "23", "threads": "1"}
                context = stream.codec_context
                context.color_primaries = context.color_trc = context.colorspace = _BT601
                context.color_range = _LIMITED_RANGE
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_yuv, format="yuv420p")))
        if stream is None:
            raise ValueError(f"{path.name}: no frame to encode; the source is shorter than the segment's start")
        container.mux(stream.encode(None))
    temporary.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Delete unfinished files in `folder` whose process on this machine is gone (it was killed)."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        pid = int(partial.name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except PermissionError:
            continue  # alive, another user's
