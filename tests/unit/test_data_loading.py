"""Loader processes: order, resuming, signals, the end of the trainer, and the end of a worker."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle2_video.data.batches import Batch, WindowDataset
from dalle2_video.data.loading import LoaderProcesses, loader
from dalle2_video.data_config import WindowConfig

WINDOW = WindowConfig(size=16, num_frames=4, stride=2)


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def dataset(store_path: Path) -> WindowDataset:
    return WindowDataset(store_path, "train", 0, WINDOW, low_size=8, images=1)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 2), (2, 1), (2, 3)])
def test_a_loader_started_in_the_middle_goes_on_as_one_that_never_stopped(
    dataset: WindowDataset, workers: int, prefetch: int
) -> None:
    whole = list(loader(dataset, 0, 6, 4, 0, 1, 2, 0))
    assert len(whole) == 12
    assert equal(whole[6:], list(loader(dataset, 3, 6, 4, 0, 1, 2, workers, prefetch=prefetch)))


def test_ranks_together_see_the_samples_of_one_rank(dataset: WindowDataset) -> None:
    alone = torch.cat([batch["video"] for batch in loader(dataset, 2, 3, 8, 0, 1, 8, 0)])
    shared = [list(loader(dataset, 2, 3, 8, rank, 2, 2, 0)) for rank in range(2)]
    numbers = torch.cat([batch["sample"] for of_rank in shared for batch in of_rank])
    videos = torch.cat([batch["video"] for of_rank in shared for batch in of_rank])
    assert torch.equal(videos[numbers.argsort()], alone)


def test_workers_change_neither_batches_nor_the_global_random_state_and_outlive_stop_signals(
    dataset: WindowDataset,
) -> None:
    dataset[0]  # open files must not travel to the workers
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # one of another test has no mask
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = loader(dataset, 0, 20, 4, 0, 1, 2, 2)
    found = [next(batches)]
    for worker in _children():
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(worker, number)
    found += list(batches)
    assert equal(found, list(loader(dataset, 0, 20, 4, 0, 1, 2, 0)))
    assert torch.equal(torch.get_rng_state(), state)


def _children() -> list[int]:
    """Processes below this one: the fork server (not the resource tracker) and its workers."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if "resource_tracker" not in command:
            parents[int(status.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    found -= {os.getpid()}
    assert len(found) >= 3, "a fork server and two workers"
    return sorted(found)


def test_an_abandoned_loader_ends_its_workers(dataset: WindowDataset) -> None:
    batches = loader(dataset, 0, 1000, 4, 0, 1, 2, 1)
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    batches.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


ENDING = """
import os, signal, sys
from pathlib import Path
from dalle2_video.data_config import WindowConfig
from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.loading import loader
from multiprocessing import active_children
if __name__ == "__main__":
    window = WindowConfig(size=16, num_frames=4)
    batches = loader(WindowDataset(Path(sys.argv[1]), "train", 0, window), 0, 10**6, 4, 0, 1, 2, 1)
    next(batches)
    print(active_children()[0].pid, flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_workers_end_with_their_training_process(store_path: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    command = [sys.executable, str(tmp_path / "ending.py"), str(store_path), ending]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == (0 if ending == "exit" else -signal.SIGKILL)
    worker = Path("/proc") / ended.stdout.strip()
    deadline = time.monotonic() + 15  # a worker looks for its parent every 5 s
    while worker.exists() and "\nState:\tZ" not in (worker / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists() or "\nState:\tZ" in (worker / "status").read_text()


def shard_of(dataset: WindowDataset, row: int) -> Path:
    """Return the file that holds a clip's frames of 16 px."""
    return dataset.store.path / f"frames_16/c.{row // dataset.store.config.clips_per_shard}.0.0.0.0"


@pytest.fixture
def blocking(store_path: Path, tmp_path: Path) -> tuple[WindowDataset, int]:
    """A dataset, and the row of its first sample, whose shard is a pipe that nobody writes: reading it never ends."""
    shutil.copytree(store_path, tmp_path / "store")
    dataset = WindowDataset(tmp_path / "store", "train", 0, WINDOW)
    row = int(dataset.choose(np.array([0]))[0][0])
    shard = shard_of(dataset, row)
    shard.unlink()
    os.mkfifo(shard)
    return dataset, row


def until_it_reads(dataset: WindowDataset, row: int) -> LoaderProcesses:
    """Start a loader with one worker and return it when the worker is about to read the clip."""
    batches = LoaderProcesses(dataset, [[0], [1]], 1, prefetch=2, pin=False)
    deadline = time.monotonic() + 60
    while batches.reading[0] != row and time.monotonic() < deadline:
        time.sleep(0.01)
    return batches


def test_closing_ends_a_worker_that_hangs(blocking: tuple[WindowDataset, int]) -> None:
    batches = until_it_reads(*blocking)
    batches.close()
    batches.workers[0].join(10)
    assert not batches.workers[0].is_alive()


def test_a_worker_that_is_killed_is_an_error_that_names_the_clip_it_was_reading(
    blocking: tuple[WindowDataset, int],
) -> None:
    dataset, row = blocking
    batches = until_it_reads(dataset, row)
    worker = batches.workers[0].pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    clip = rf"SIGKILL.*while reading clip {dataset.store.clip_id(row)} of .*python tools/verify_store\.py"
    with pytest.raises(RuntimeError, match=rf"loader worker 0 died \({clip}"):
        next(batches)
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_names_the_clip_and_the_command_wherever_it_is_read(
    store_path: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(store_path, tmp_path / "store")
    dataset = WindowDataset(tmp_path / "store", "train", 0, WINDOW)
    row = int(dataset.choose(np.array([1]))[0][0])
    path = shard_of(dataset, row)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match=rf"clip \S+: .*{path}.*python tools/verify_store\.py"):
        list(loader(dataset, 0, 2, 4, 0, 1, 4, workers))
