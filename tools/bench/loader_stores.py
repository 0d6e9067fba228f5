"""What the loader bench reads: the same real frames as a store, a memory map, the first version's h5, mp4 and npy.

Clips are cut one after the other out of footage (or the user's files) and repeated until there are enough. A store of
any number of clips is made by repeating a small one: its per-clip arrays are tiled, its shards are hard links to one
file, so that 70,000 clips take seconds and little disk, and still every row reads back as real frames.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import h5py
import numpy as np
from einops import rearrange

from dalle2_video.data import join, preprocess
from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import Caption, ClipFile
from dalle2_video.data.preprocess import ClipContent
from dalle2_video.data.store import BAD_CLIPS_FILE, STATISTICS_FILE, TOKENIZER_FILE, Store, frames_name
from dalle2_video.data.store_arrays import write_array, write_texts
from dalle2_video.data.video import ClipFacts, decode_to_arrays
from dalle2_video.data_config import CAPTION_KINDS, DataConfig
from tools.bench.peer_work import CLIP_MEAN, CLIP_STD
from tools.sample_data.captions import prompts
from tools.sample_data.encode import write_mp4

CAPTIONS_A_CLIP = 20
"""About what CelebV-Text has."""


def real_clips(sources: Sequence[Path], size: int, clips: int, frames: int) -> np.ndarray:
    """Return (clips, frames, size, size, 3) uint8 RGB at 24 fps, cut from the sources; short ones repeat."""
    config = DataConfig(frame_sizes=(size,), fps=24.0, min_frames=1, max_frames=-(-clips * frames // len(sources)))
    pictures = np.concatenate([decode_to_arrays(Source.of_file(path), config)[1][size] for path in sources])
    return np.resize(pictures, (clips, frames, size, size, 3))


def write_store(path: Path, clips_nthwc: np.ndarray, config: DataConfig) -> Path:
    """Write a finished store with these clips as its only frames and made-up captions; all clips are for training."""
    count, frames, size = clips_nthwc.shape[:3]
    clips = [ClipFile(clip_id=f"{n:011d}_0_0", source=Source(path=Path(), size=0)) for n in range(count)]
    facts = ClipFacts(num_frames=frames, source_fps=24.0, source_size=(512, 512), seconds=frames / 24)
    lines = prompts(CAPTIONS_A_CLIP * count, seed=0)

    def read(row: int) -> ClipContent:
        kinds = [CAPTION_KINDS[i % len(CAPTION_KINDS)] for i in range(CAPTIONS_A_CLIP)]
        captions = [
            Caption(kind=kind, text=lines[row * CAPTIONS_A_CLIP + place]) for place, kind in enumerate(sorted(kinds))
        ]
        return ClipContent(facts=facts, frames={size: clips_nthwc[row]}, captions=captions)

    preprocess.create_store(path, clips, config)
    records = []
    for task in range(preprocess.num_tasks(count, config)):
        with tempfile.TemporaryDirectory(dir=path) as staging:
            written = preprocess.write_shards(task, clips, config, Path(staging), read, lambda clip_id, bad: None)
            for staged, relative in written.published:
                staged.rename(path / relative)
        records.append(written.record)
    join.finish(records, clips, config, path, path)
    return path


def repeat_store(base: Path, path: Path, clips: int) -> Path:
    """Write a store of `clips` clips in which row n is row n modulo those of `base`, a store of one full shard."""
    source = Store(base)
    assert source.num_clips == source.config.clips_per_shard, "the store to repeat must be one full shard"
    times, captions = -(-clips // source.num_clips), clips * CAPTIONS_A_CLIP
    group = json.loads((base / "zarr.json").read_text())
    group["attributes"]["num_clips"] = clips
    path.mkdir()
    for name in (TOKENIZER_FILE, BAD_CLIPS_FILE, STATISTICS_FILE):
        (path / name).write_bytes((base / name).read_bytes())
    for size in source.config.frame_sizes:
        folder = path / frames_name(size)
        folder.mkdir()
        metadata = json.loads((base / frames_name(size) / "zarr.json").read_text())
        metadata["shape"][0] = clips
        (folder / "zarr.json").write_text(json.dumps(metadata))
        for shard in range(times):
            os.link(base / frames_name(size) / "c.0.0.0.0.0", folder / f"c.{shard}.0.0.0.0")
    for name in ("num_frames", "source_fps", "source_size", "is_validation"):
        values = getattr(source, name)
        write_array(path, name, np.concatenate([values] * times)[:clips])
    write_array(path, "train_rows", np.arange(clips, dtype=np.int64))
    write_array(path, "val_rows", np.zeros(0, np.int64))
    for name in ("tokens", "token_lengths"):
        write_array(path, name, np.concatenate([np.asarray(getattr(source, name))] * times)[:captions])
    write_array(path, "caption_ranges", np.arange(clips + 1, dtype=np.int64) * CAPTIONS_A_CLIP)
    texts = [caption for n in range(source.num_clips) for caption in source.captions_of(n)]
    kinds = np.array([CAPTION_KINDS.index(caption.kind) for caption in texts], np.uint8)
    write_array(path, "caption_kinds", np.tile(kinds, times)[:captions])
    write_texts(path, "captions", ([caption.text for caption in texts] * times)[:captions])
    write_texts(path, "clip_ids", [f"{n:011d}_0_0" for n in range(clips)])
    (path / "zarr.json").write_text(json.dumps(group))
    return path


def write_memmap(path: Path, clips_nthwc: np.ndarray) -> np.ndarray:
    """Write the clips as one npy file and return it mapped, read only."""
    np.save(path, clips_nthwc)
    return np.load(path, mmap_mode="r")


def write_old_h5(path: Path, clips_nthwc: np.ndarray) -> Path:
    """Write `videos` (N, 3, T, H, W) float32, CLIP-normalised, a clip a chunk: the user's first version."""
    count, frames, height, width, _ = clips_nthwc.shape
    shape = (count, 3, frames, height, width)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    with h5py.File(path, "w") as file:
        videos = file.create_dataset("videos", shape, "float32", chunks=(1, *shape[1:]), maxshape=(None, *shape[1:]))
        for row, clip in enumerate(clips_nthwc):
            videos[row] = rearrange((clip.astype(np.float32) / 255 - mean) / std, "t h w c -> c t h w")
    return path


def old_to_uint8(window_cthw: np.ndarray) -> np.ndarray:
    """Undo the first version's normalisation: (3, t, h, w) float32 to (t, h, w, 3) uint8."""
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    return np.rint((rearrange(window_cthw, "c t h w -> t h w c") * std + mean) * 255).astype(np.uint8)


def write_mp4s(folder: Path, clips_nthwc: np.ndarray) -> list[Path]:
    """Encode each clip as H.264 at its stored size and 24 fps."""
    folder.mkdir()
    paths = [folder / f"{row}.mp4" for row in range(len(clips_nthwc))]
    for path, clip in zip(paths, clips_nthwc, strict=True):
        pictures = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in clip)
        write_mp4(path, (picture.reformat(format="yuv420p").to_ndarray() for picture in pictures), 24)
    return paths
