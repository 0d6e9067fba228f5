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
from data_fixtures import publish

from dalle2_video.data import embeddings
from dalle2_video.data.batches import WindowDataset, collate, loader, to_float, validation_samples
from dalle2_video.data.embeddings import spec_for, window_starts
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig

WINDOW = WindowConfig(size=16, num_frames=4, stride=2)  # spans 7 of the clips' 20 frames


@pytest.fixture(scope="module")
def embedded_store(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with embeddings of 9-frame windows: [row, start] of each."""
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(store_path, folder / "store")
    store = Store(folder / "store")
    spec = spec_for(store, "clip-1", WindowConfig(size=16, num_frames=9), hop=5, dim=2)
    publish(embeddings.create(folder / "create", spec), store.path)
    for shard in range(spec.num_shards):
        rows = range(shard * spec.clips_per_shard, min((shard + 1) * spec.clips_per_shard, store.num_clips))
        values = [
            np.array([(row, start) for start in window_starts(int(store.num_frames[row]), 9, 5)], np.float32).reshape(
                -1, 2
            )
            for row in rows
        ]
        publish(embeddings.write_shard(folder / f"task{shard}", spec, shard, values), store.path)
    return store.path


def test_a_sample_holds_its_window_its_caption_and_the_same_frames_at_both_sizes(store_path: Path) -> None:
    store, dataset = Store(store_path), WindowDataset(store_path, "train", 3, WINDOW, low_size=8)
    samples = np.arange(40)
    for sample, clip, start, caption in zip(samples, *dataset.choose(samples), strict=True):
        item = dataset[int(sample)]
        assert item["sample"] == sample
        assert 0 <= start <= 20 - WINDOW.span
        np.testing.assert_array_equal(item["video"], store.frames(16).read(clip, 0, 20)[start : start + 7 : 2])
        np.testing.assert_array_equal(item["low_video"], store.frames(8).read(clip, 0, 20)[start : start + 7 : 2])
        first, last = store.caption_range(clip)
        assert first <= caption < last
        np.testing.assert_array_equal(item["tokens"], store.tokens[caption])
        assert item["length"] == store.token_lengths[caption]


def test_an_epoch_has_every_clip_once_in_another_order_each_time(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
    clips, starts, captions = dataset.choose(np.arange(100 * dataset.num_clips))
    epochs = clips.reshape(100, dataset.num_clips)
    assert (np.sort(epochs, axis=1) == Store(store_path).usable("train")).all()
    assert len(np.unique(epochs, axis=0)) > 10
    assert set(starts) == set(range(20 - WINDOW.span + 1))  # the last possible start included
    first, last = Store(store_path).caption_range(clips[0])
    assert set(captions[clips == clips[0]]) == set(range(first, last))


def test_seeds_and_splits_give_other_samples(store_path: Path) -> None:
    def clips(split: str, seed: int) -> list[int]:
        return WindowDataset(store_path, split, seed, WINDOW).choose(np.arange(64))[0].tolist()  # type: ignore[arg-type]

    assert clips("train", 0) == clips("train", 0) != clips("train", 1)
    assert not set(clips("train", 0)) & set(clips("val", 0))


def test_the_embedding_is_that_of_the_window_s_start(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, embeddings="clip-1")
    samples = np.arange(64)
    seen = set()
    for sample, clip, start, _ in zip(samples, *dataset.choose(samples), strict=True):
        item = dataset[int(sample)]
        assert item["embedding"].tolist() == [clip, start]
        np.testing.assert_array_equal(item["video"], dataset.store.frames(16).read(clip, start, start + 7, 2))
        seen.add(int(start))
    assert seen == {0, 5, 10}


def test_a_window_longer_than_the_embedding_s_still_fits_the_clip(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WindowConfig(size=16, num_frames=14), embeddings="clip-1")
    assert set(dataset.choose(np.arange(64))[1]) == {0, 5}


def test_the_prior_s_samples_have_no_video(embedded_store: Path) -> None:
    item = WindowDataset(embedded_store, "train", 0, None, embeddings="clip-1")[5]
    assert set(item) == {"sample", "tokens", "length", "embedding"}


def test_a_window_longer_than_the_shortest_clip_is_refused(store_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data\.min-frames 21"):
        WindowDataset(store_path, "train", 0, WindowConfig(size=16, num_frames=21))


def test_collate_stacks_with_the_types_that_networks_take(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, low_size=8, embeddings="clip-1")
    found = {name: (tuple(value.shape), value.dtype) for name, value in collate([dataset[i] for i in range(3)]).items()}
    assert found == {
        "sample": ((3,), torch.int64),
        "tokens": ((3, 16), torch.int64),
        "length": ((3,), torch.int64),
        "video": ((3, 4, 16, 16, 3), torch.uint8),
        "low_video": ((3, 4, 8, 8, 3), torch.uint8),
        "embedding": ((3, 2), torch.float32),
    }


def test_to_float_moves_channels_first_and_covers_minus_one_to_one() -> None:
    video = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8, 1).repeat(1, 1, 1, 1, 3)
    video[..., 1] = 0
    found = to_float(video)
    assert (found.shape, found.dtype) == ((1, 3, 4, 8, 8), torch.float32)
    assert (found.min().item(), found.max().item()) == (-1.0, 1.0)
    assert (found[:, 1] == -1).all()
    torch.testing.assert_close((found[0, 0] + 1) * 127.5, torch.arange(256.0).reshape(4, 8, 8))


def equal(one: list[dict], two: list[dict]) -> bool:
    return len(one) == len(two) and all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, two, strict=True)
    )


def test_a_loader_started_in_the_middle_goes_on_as_one_that_never_stopped(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
    whole = list(loader(dataset, 0, 6, 4, 0, 1, 2, 0))
    assert len(whole) == 12
    assert equal(whole[6:], list(loader(dataset, 3, 6, 4, 0, 1, 2, 0)))


def test_ranks_together_see_the_samples_of_one_rank(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
    alone = torch.cat([batch["video"] for batch in loader(dataset, 2, 3, 8, 0, 1, 8, 0)])
    shared = [list(loader(dataset, 2, 3, 8, rank, 2, 2, 0)) for rank in range(2)]
    numbers = torch.cat([batch["sample"] for of_rank in shared for batch in of_rank])
    videos = torch.cat([batch["video"] for of_rank in shared for batch in of_rank])
    assert torch.equal(videos[numbers.argsort()], alone)


def test_workers_change_neither_batches_nor_the_global_random_state_and_outlive_stop_signals(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
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


def test_an_abandoned_loader_ends_its_workers(store_path: Path) -> None:
    batches = loader(WindowDataset(store_path, "train", 0, WINDOW), 0, 1000, 4, 0, 1, 2, 1)
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    batches.close()  # type: ignore[attr-defined]
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_validation_uses_the_same_clips_every_time(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "val", 0, WINDOW)
    samples = validation_samples(dataset.num_clips)
    assert samples == validation_samples(dataset.num_clips)
    assert sorted(dataset.choose(np.array(samples))[0]) == dataset.clips.tolist()


ENDING = """
import os, signal, sys
from pathlib import Path
from dalle2_video.data_config import WindowConfig
from dalle2_video.data.batches import WindowDataset, loader
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
