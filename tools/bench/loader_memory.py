"""Time and memory of one fresh process that opens a store; started by `loader.py`, which reads one JSON line.

    python -m tools.bench.loader_memory open STORE          time to open, memory before and after
    python -m tools.bench.loader_memory index STORE         time to open an index without frames and to draw from it
    python -m tools.bench.loader_memory batches STORE 1000  memory of a worker, a tenth of the way and at the end

Memory in MiB is what Linux calls resident; "own" leaves out the pages of mapped files, which processes share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
FRAMES = 16


def resident_mib() -> tuple[float, float]:
    """Return (all, own) resident memory of this process."""
    everything, shared = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[1:3])
    page_mib = os.sysconf("SC_PAGE_SIZE") / 2**20
    return everything * page_mib, (everything - shared) * page_mib


def open_store(path: Path) -> dict[str, float]:
    """Open the store as training does, then read a batch of windows of random clips."""
    from dalle2_video.data.store import Store

    imported_mib, start = resident_mib()[0], time.perf_counter()
    store = Store(path)
    clips = store.usable("train")
    frames = store.frames(store.config.frame_sizes[0])
    opened, opened_mib = time.perf_counter(), resident_mib()[0]
    for clip in np.random.default_rng(0).choice(clips, BATCH):
        frames.read(int(clip), 0, FRAMES)
    return {
        "open_s": opened - start,
        "first_batch_s": time.perf_counter() - opened,
        "open_mib": opened_mib - imported_mib,
        "process_mib": resident_mib()[0],
    }


def open_index(path: Path) -> dict[str, float]:
    """Open the store, then draw the clips and captions of an epoch's first batch."""
    from dalle2_video.data import keyed_random
    from dalle2_video.data.store import Store

    start = time.perf_counter()
    store = Store(path)
    clips = store.usable("train")
    opened, opened_mib = time.perf_counter(), resident_mib()[0]
    for row in clips[keyed_random.order(0, 0, len(clips), np.arange(BATCH))].tolist():
        first, last = store.caption_range(row)
        assert last > first and len(store.tokens[first]) == store.config.text_context and store.clip_id(row)
    return {
        "open_s": opened - start,
        "first_batch_s": time.perf_counter() - opened,
        "process_mib": opened_mib,
        "own_mib": resident_mib()[1],
    }


def read_batches(path: Path, count: int) -> dict[str, float]:
    """Assemble `count` batches of 64 windows, captions included, as a loader's worker does."""
    import torch

    from dalle2_video.data.batches import WindowDataset
    from dalle2_video.data.store import Store
    from dalle2_video.data_config import WindowConfig

    torch.set_num_threads(1)
    size = Store(path).config.frame_sizes[0]
    imported_mib, imported_own_mib = resident_mib()
    dataset = WindowDataset(path, "train", 0, WindowConfig(size=size, num_frames=FRAMES))
    early_mib = highest_mib = 0.0
    for step in range(count):
        dataset.__getitems__(range(step * BATCH, (step + 1) * BATCH))
        own_mib = resident_mib()[1]
        highest_mib = max(highest_mib, own_mib)
        if step <= count // 10:
            early_mib = highest_mib
    shared_mib = resident_mib()[0] - own_mib - (imported_mib - imported_own_mib)
    return {
        "worker_mib": highest_mib - imported_own_mib,
        "worker_growth_mib": highest_mib - early_mib,
        "worker_shared_mib": shared_mib,
    }


def main(arguments: list[str]) -> None:
    """Do what the first argument names and print the answer."""
    task, path, *count = arguments
    tasks: dict[str, Any] = {"open": open_store, "index": open_index, "batches": read_batches}
    print(json.dumps(tasks[task](Path(path), *map(int, count))))


if __name__ == "__main__":
    main(sys.argv[1:])
