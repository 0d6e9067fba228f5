"""What one random clip costs to read: our reader, the limit (numpy memmap), and what others do.

    python tools/bench/loader.py --json loader.json
    python tools/bench/loader.py --quick --clips data/CelebV-Text/videos/celebvtext_6

All read the same windows of 16 frames out of the same clips, which lie in the page cache; CPU time, all threads.

ours_over_memmap_64            uncompressed store over numpy memmap, 16 x 64 x 64
zarr_over_ours_64, _zstd       zarr-python with its default settings over ours, same store, uncompressed and zstd
h5_over_ours_64                first version's float32 h5, read as it did: the whole clip out of a file kept open
h5_over_ours_64_window, _reopened   the same file, only the window read: file kept open, or opened each time
webdataset_over_ours_64        a tar streamed in order, whole clips read, one window of each kept
mp4_over_ours_64               seek and decode of an mp4 of 64 px
batch_over_memmap_64           batch of 64 with captions, as a loader's worker makes it, over a batch from numpy memmap
ours_over_decompress_256       zstd store, 16 x 256 x 256, over decompressing the same chunks out of memory
open_70000_s, _mib, first_batch_70000_s    a store of 70,000 clips in a fresh process, and what it adds to its memory
open_100m_s, _process_mib      opening an index of 100 million clips, simulated (4.1 GB), and the whole process after it
                               (not with --quick)
first_batch_100m_s, _own_mib   drawing clips and captions of an epoch's first batch, and the process's memory after it,
                               without the pages of the mapped tables, which all processes of a node share
worker_mib, worker_growth_mib  a worker's own memory that 10,000 batches (100 with --quick) take, and what of it came in
                               the last nine tenths; worker_shared_mib: mapped tokens, which a node's processes share
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import h5py
import numpy as np
import torch
import tyro
import zarr
from numcodecs import Zstd

from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data_config import DataConfig, WindowConfig
from tools.bench import loader_stores, peers
from tools.bench.clips import clips_in, footage_sources
from tools.bench.loader_index import make_index
from tools.bench.loader_memory import BATCH, FRAMES
from tools.bench.timing import ROUNDS, BenchArguments, Goal, Results, cpu_seconds, interleaved, publish

GOALS = {
    "ours_over_memmap_64": Goal(high=4),
    "zarr_over_ours_64": Goal(low=5),
    "h5_over_ours_64": Goal(low=5),
    "ours_over_decompress_256": Goal(high=1.3),
    "open_70000_s": Goal(high=1),
    "open_70000_mib": Goal(high=200),
    "open_100m_s": Goal(high=2),
    "open_100m_process_mib": Goal(high=300),
}
Read = Callable[[int, int], np.ndarray]
"""Clip and first frame to the window, (16, size, size, 3) uint8 RGB."""
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Measure random reads of clips against numpy memmap and other formats."""

    clips: Path | None = None
    """Folder of mp4 files whose frames to use instead of free footage."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is read; a round reads `fast` windows by the fast readers, a share of them by the slow ones."""

    clips: int
    frames: int
    fast: int
    batches: int
    index: int | None
    """Clips of the index that is opened without frames; None: not measured."""


FULL = Amounts(clips=64, frames=112, fast=3000, batches=10_000, index=100_000_000)
QUICK = Amounts(clips=64, frames=48, fast=1000, batches=100, index=None)


def settings(size: int, amounts: Amounts, compression: str) -> DataConfig:
    """Return the recipes' layout for one frame size, all clips in one shard."""
    return DataConfig(
        frame_sizes=(size,),
        fps=24.0,
        min_frames=FRAMES,
        max_frames=amounts.frames,
        chunk_frames=16 if size < 256 else 8,
        clips_per_shard=amounts.clips if size < 256 else amounts.clips // 4,
        compression="none" if compression == "none" else "zstd",
        val_fraction=0.0,
    )


class Layouts:
    """The same clips at 64 px in every layout, below `scratch`."""

    def __init__(self, sources: Sequence[Path], amounts: Amounts, scratch: Path) -> None:
        self.clips = loader_stores.real_clips(sources, 64, amounts.clips, amounts.frames)
        self.memmap = loader_stores.write_memmap(scratch / "clips.npy", self.clips)
        self.plain, self.zstd = (
            loader_stores.write_store(scratch / name, self.clips, settings(64, amounts, name))
            for name in ("none", "zstd")
        )
        self.old_h5 = loader_stores.write_old_h5(scratch / "old.h5", self.clips)
        self.mp4s = loader_stores.write_mp4s(scratch / "mp4", self.clips)

    def readers(self) -> dict[str, Read]:
        """Return every layout's way to read a window; the h5 gives what it holds, see `old_to_uint8`."""
        plain, zstd = (zarr.open_array(str(store / "frames_64"), mode="r") for store in (self.plain, self.zstd))
        videos = h5py.File(self.old_h5, "r")["videos"]

        def reopened(n: int, start: int) -> np.ndarray:
            with h5py.File(self.old_h5, "r") as file:
                return file["videos"][n, :, start : start + FRAMES]

        return {
            "memmap": lambda n, start: np.array(self.memmap[n, start : start + FRAMES]),
            "ours": our_reader(self.plain, 64),
            "ours zstd": our_reader(self.zstd, 64),
            "zarr": lambda n, start: np.asarray(plain[n, start : start + FRAMES]),
            "zarr zstd": lambda n, start: np.asarray(zstd[n, start : start + FRAMES]),
            "h5": lambda n, start: videos[n][:, start : start + FRAMES],
            "h5 window": lambda n, start: videos[n, :, start : start + FRAMES],
            "h5 reopened": reopened,
            "mp4": lambda n, start: read_mp4(self.mp4s[n], start),
        }


def our_reader(store: Path, size: int) -> Read:
    """Return our reader of a store's frames."""
    reader = ShardReader(store / f"frames_{size}")
    return lambda n, start: reader.read(n, start, start + FRAMES)


def read_mp4(path: Path, start: int) -> np.ndarray:
    """Seek to the key frame before frame `start` of a 24 fps clip and decode from there to the window's end."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        assert stream.time_base is not None
        ticks = 1 / (24 * stream.time_base)
        container.seek(round(start * ticks), stream=stream, backward=True)
        window = []
        for frame in container.decode(stream):
            assert frame.pts is not None
            if round(frame.pts / ticks) >= start:
                window.append(frame.to_ndarray(format="rgb24"))
            if len(window) == FRAMES:
                break
    return np.stack(window)


def windows(amounts: Amounts, clips: int) -> list[tuple[int, int]]:
    """Return random (clip, first frame) pairs, the same on every call."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, amounts.frames - FRAMES + 1, amounts.fast)
    return list(zip(rng.integers(0, clips, amounts.fast).tolist(), starts.tolist(), strict=True))


def per_clip_us(read: Read, chosen: Sequence[tuple[int, int]]) -> float:
    """Return the CPU time of a read in microseconds, the mean over the windows."""

    def work() -> None:
        for n, start in chosen:
            read(n, start)

    return 1e6 * cpu_seconds(work) / len(chosen)


def stored_chunks(reader: ShardReader, n: int, start: int) -> list[bytes]:
    """Return the compressed chunks that hold a window, read without the reader's help."""
    layout = reader.layout
    shard, item = divmod(n, layout.items_per_shard)
    data = layout.shard_path(shard).read_bytes()
    index = np.frombuffer(data[-layout.index_bytes : -4], "<u8").reshape(-1, layout.chunks_per_item, 2)
    touched = range(start // layout.chunk_frames, (start + FRAMES - 1) // layout.chunk_frames + 1)
    spans = (index[item, chunk] for chunk in touched)
    return [data[int(offset) : int(offset) + int(length)] for offset, length in spans]


def batch_contestants(layouts: Layouts, amounts: Amounts) -> dict[str, Callable[[], float]]:
    """Return a worker's batch of 64 and the same windows put together out of the memory map."""
    torch.set_num_threads(1)
    dataset = WindowDataset(layouts.plain, "train", 0, WindowConfig(size=64, num_frames=FRAMES))
    batches = [np.arange(first, first + BATCH) for first in range(0, max(BATCH, amounts.fast), BATCH)]
    rows = [list(zip(*(values.tolist() for values in dataset.choose(batch)[:2]), strict=True)) for batch in batches]

    def ours() -> None:
        for batch in batches:
            dataset.__getitems__(batch.tolist())

    def memmap() -> None:
        for chosen in rows:
            out = np.empty((BATCH, FRAMES, 64, 64, 3), np.uint8)
            for place, (n, start) in enumerate(chosen):
                out[place] = layouts.memmap[n, start : start + FRAMES]

    count = BATCH * len(batches)
    return {
        "batch of 64, ours": lambda: 1e6 * cpu_seconds(ours) / count,
        "batch of 64, memmap": lambda: 1e6 * cpu_seconds(memmap) / count,
    }


def contestants_256(sources: Sequence[Path], amounts: Amounts, scratch: Path) -> dict[str, Callable[[], float]]:
    """Return our reader of a compressed store at 256 px and bare decompression of the same chunks."""
    clips = amounts.clips // 4
    frames = loader_stores.real_clips(sources, 256, clips, amounts.frames)
    store = loader_stores.write_store(scratch / "zstd256", frames, settings(256, amounts, "zstd"))
    reader, chosen = ShardReader(store / "frames_256"), windows(amounts, clips)[: max(1, amounts.fast // 60)]
    chunks = [stored_chunks(reader, n, start) for n, start in chosen]
    zstd = Zstd()

    def bare() -> None:
        for of_window in chunks:
            for chunk in of_window:
                zstd.decode(chunk)

    return {
        "256 px: ours zstd": lambda: per_clip_us(our_reader(store, 256), chosen),
        "256 px: bare decompression": lambda: 1e6 * cpu_seconds(bare) / len(chosen),
    }


def in_fresh_process(*arguments: str) -> dict[str, float]:
    """Return what `loader_memory` measures in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.loader_memory", *arguments]
    return json.loads(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


def medians(answers: Sequence[dict[str, float]], keys: Mapping[str, str]) -> dict[str, float]:
    """Return the median of each named value of the answers, under another key."""
    return {key: statistics.median(answer[name] for answer in answers) for name, key in keys.items()}


def measure(sources: Sequence[Path], amounts: Amounts, scratch: Path, many: int) -> Results:
    """Measure everything; `many` is the number of clips of the large store."""
    results = Results(unit="µs CPU a clip (opening: s)")
    layouts = Layouts(sources, amounts, scratch)
    chosen = windows(amounts, amounts.clips)
    slower = {"zarr": 20, "zarr zstd": 20, "h5": 10, "h5 window": 4, "h5 reopened": 10, "mp4": 60, "ours zstd": 4}
    contestants: dict[str, Callable[[], float]] = {
        name: partial(per_clip_us, read, chosen[: -(-amounts.fast // slower.get(name, 1))])
        for name, read in layouts.readers().items()
    }
    contestants |= batch_contestants(layouts, amounts)
    contestants |= contestants_256(sources, amounts, scratch)
    large = loader_stores.repeat_store(layouts.zstd, scratch / "large", many)
    opened: list[dict[str, float]] = []

    def open_large() -> float:
        opened.append(in_fresh_process("open", str(large)))
        return opened[-1]["open_s"]

    contestants[f"open {many} clips"] = open_large
    with ExitStack() as stack:
        try:
            child = stack.enter_context(peers.running())
        except peers.PeersMissing as error:
            results.absent["webdataset"] = str(error)
        else:
            contestants["webdataset"] = webdataset_contestant(child, layouts, scratch)
        results.rounds = interleaved(contestants)
    results.ratio("ours_over_memmap_64", "ours", "memmap")
    results.ratio("zarr_over_ours_64", "zarr", "ours")
    results.ratio("zarr_over_ours_64_zstd", "zarr zstd", "ours zstd")
    results.ratio("h5_over_ours_64", "h5", "ours")
    results.ratio("h5_over_ours_64_window", "h5 window", "ours")
    results.ratio("h5_over_ours_64_reopened", "h5 reopened", "ours")
    results.ratio("webdataset_over_ours_64", "webdataset", "ours")
    results.ratio("mp4_over_ours_64", "mp4", "ours")
    results.ratio("batch_over_memmap_64", "batch of 64, ours", "batch of 64, memmap")
    results.ratio("ours_over_decompress_256", "256 px: ours zstd", "256 px: bare decompression")
    names = {"open_s": "open_70000_s", "first_batch_s": "first_batch_70000_s", "open_mib": "open_70000_mib"}
    results.figures |= medians(opened, names | {"process_mib": "open_70000_process_mib"})
    results.figures |= in_fresh_process("batches", str(large), str(amounts.batches))
    if amounts.index is None:
        results.absent["open_100m_s"] = "the index takes half a minute and 4.1 GB to make; leave out --quick"
        return results
    index = make_index(scratch / "index", amounts.index, captions_per_clip=20)
    names = {"open_s": "open_100m_s", "first_batch_s": "first_batch_100m_s", "process_mib": "open_100m_process_mib"}
    names |= {"own_mib": "first_batch_100m_own_mib"}
    results.figures |= medians([in_fresh_process("index", str(index)) for _ in range(ROUNDS)], names)
    return results


def webdataset_contestant(child: peers.Peers, layouts: Layouts, scratch: Path) -> Callable[[], float]:
    """Return webdataset's cost of a window, its clips in the tar's order. Raises RuntimeError if it reads others."""
    tar = str(scratch / "clips.tar")
    child.call("write_webdataset", source=str(scratch / "clips.npy"), out=tar)
    rng = np.random.default_rng(1)
    starts = rng.integers(0, layouts.clips.shape[1] - FRAMES + 1, len(layouts.clips)).tolist()
    total = sum(int(clip[at : at + FRAMES].sum(dtype=np.int64)) for clip, at in zip(layouts.clips, starts, strict=True))

    def work() -> float:
        answer = child.call("read_webdataset", tar=tar, starts=starts, frames=FRAMES)
        if answer["sum"] != total:
            raise RuntimeError(f"webdataset read other frames: their pixels sum up to {answer['sum']}, not {total}")
        return 1e6 * answer["cpu_s"] / answer["clips"]

    return work


def main(arguments: Arguments) -> None:
    """Measure and print. Raises ValueError with a remedy if there are no frames to work on."""
    if arguments.clips is not None:
        sources = clips_in(arguments.clips)[:6]
    else:
        found = {path for segment, path in footage_sources() if segment.seconds > 4}
        sources = sorted(found)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as scratch:
        results = measure(sources, QUICK if arguments.quick else FULL, Path(scratch), 70_000)
    publish(results, GOALS, arguments)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
