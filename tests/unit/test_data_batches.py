"""What a sample holds, and that a batch is its samples."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import build_store, publish, write_dataset, write_mp4

from dalle2_video.data import embedding_shards, keyed_random
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.embeddings import spec_for, window_starts
from dalle2_video.data.store import Store
from dalle2_video.data_config import CaptionConfig, DataConfig, WindowConfig

WINDOW = WindowConfig(size=16, num_frames=4, stride=2)  # spans 7 of the clips' 20 frames


def embed(path: Path, folder: Path, *, span: int, hop: int) -> None:
    """Give the store embeddings "clip-1" of windows of `span` frames: [row, start] of each."""
    store = Store(path)
    spec = spec_for(store, "clip-1", WindowConfig(size=16, num_frames=span), hop=hop, dim=2)
    publish(embedding_shards.create(folder / "create", spec), path)
    for shard in range(spec.num_shards):
        rows = range(shard * spec.clips_per_shard, min((shard + 1) * spec.clips_per_shard, store.num_clips))
        starts = [window_starts(int(store.num_frames[row]), span, hop) for row in rows]
        values = [
            np.array([(row, start) for start in of_row], np.float32).reshape(-1, 2)
            for row, of_row in zip(rows, starts, strict=True)
        ]
        publish(embedding_shards.write_shard(folder / f"task{shard}", spec, shard, values)[0], path)


@pytest.fixture(scope="module")
def embedded_store(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(store_path, folder / "store")
    embed(folder / "store", folder, span=9, hop=5)
    return folder / "store"


@pytest.fixture(scope="module")
def padded_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of one split with 20, 5 and 2 frames, stored as they are, with embeddings of 9-frame windows."""
    folder = tmp_path_factory.mktemp("padded")
    ids = ["long_clip_a_0_0", "shortclip_b_0_0", "tiny_clip_c_0_0"]
    root = write_dataset(folder / "raw", ids)
    for clip_id, seconds in zip(ids[1:], (0.625, 0.25), strict=True):
        write_mp4(root / "videos/celebvtext_6" / f"{clip_id}.mp4", seconds=seconds)
    config = DataConfig(
        frame_sizes=(8, 16), fps=8.0, min_frames=16, max_frames=40, chunk_frames=8, clips_per_shard=3, vocab_size=300,
        text_context=16, val_fraction=0.0, short_clips="pad",
    )  # fmt: skip
    build_store(root, config, folder / "store", folder / "staging")
    embed(folder / "store", folder, span=9, hop=5)
    return folder / "store"


def same(one: dict, two: dict) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_sample_holds_its_window_a_caption_of_its_clip_and_the_same_frames_at_both_sizes(store_path: Path) -> None:
    store, dataset = Store(store_path), WindowDataset(store_path, "train", 3, WINDOW, low_size=8)
    samples = np.arange(40)
    for sample, clip, start in zip(samples, *dataset.choose(samples), strict=True):
        item = dataset[int(sample)]
        assert item["sample"] == sample
        assert 0 <= start <= 20 - WINDOW.span
        np.testing.assert_array_equal(item["video"], store.frames(16).read(clip, 0, 20)[start : start + 7 : 2])
        np.testing.assert_array_equal(item["low_video"], store.frames(8).read(clip, 0, 20)[start : start + 7 : 2])
        captions = range(*store.caption_range(clip))
        texts = {(tuple(store.tokens[row].tolist()), int(store.token_lengths[row])) for row in captions}
        assert (tuple(item["tokens"].tolist()), int(item["length"])) in texts


def test_an_epoch_has_every_clip_once_in_another_order_each_time(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
    clips, starts = dataset.choose(np.arange(100 * dataset.num_clips))
    epochs = clips.reshape(100, dataset.num_clips)
    assert (np.sort(epochs, axis=1) == Store(store_path).usable("train")).all()
    assert len(np.unique(epochs, axis=0)) > 10
    assert set(starts) == set(range(20 - WINDOW.span + 1))  # the last possible start included


def test_seeds_and_splits_give_other_samples(store_path: Path) -> None:
    def clips(split: str, seed: int) -> list[int]:
        return WindowDataset(store_path, split, seed, WINDOW).choose(np.arange(64))[0].tolist()  # type: ignore[arg-type]

    assert clips("train", 0) == clips("train", 0) != clips("train", 1)
    assert not set(clips("train", 0)) & set(clips("val", 0))


def test_what_older_runs_trained_on_is_still_what_comes(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 5, WINDOW)
    clips, starts = dataset.choose(np.arange(8))
    assert (clips.tolist(), starts.tolist()) == ([7, 8, 5, 4, 4, 7, 8, 5], [6, 2, 10, 9, 7, 4, 5, 11])


def test_the_embedding_is_that_of_the_window_s_start(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, embeddings="clip-1")
    samples = np.arange(64)
    seen = set()
    for sample, clip, start in zip(samples, *dataset.choose(samples), strict=True):
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


def test_a_batch_is_its_samples_stacked_with_the_types_that_networks_take(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, low_size=8, embeddings="clip-1", images=2)
    batch = dataset.__getitems__([7, 3, 11])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "sample": ((3,), torch.int64),
        "tokens": ((3, 16), torch.int64),
        "length": ((3,), torch.int64),
        "video": ((3, 4, 16, 16, 3), torch.uint8),
        "low_video": ((3, 4, 8, 8, 3), torch.uint8),
        "embedding": ((3, 2), torch.float32),
        "images": ((3, 2, 16, 16, 3), torch.uint8),
        "image_tokens": ((3, 2, 16), torch.int64),
        "image_lengths": ((3, 2), torch.int64),
        "image_embeddings": ((3, 2, 2), torch.float32),
    }
    for place, sample in enumerate((7, 3, 11)):
        assert same({name: value[place] for name, value in batch.items()}, dataset[sample])


def test_half_of_the_samples_are_mirrored_and_nothing_else_of_them_changes(embedded_store: Path) -> None:
    def samples(mirror: bool) -> dict:
        dataset = WindowDataset(
            embedded_store, "train", 0, WINDOW, low_size=8, embeddings="clip-1", images=2, mirror=mirror
        )
        assert same(dataset[5], pickle.loads(pickle.dumps(dataset))[5])
        return dataset.__getitems__(list(range(64)))

    plain, mirrored = samples(False), samples(True)
    places = {"video": (64,), "low_video": (64,), "images": (64, 2)}
    assert same({k: v for k, v in plain.items() if k not in places}, {k: mirrored[k] for k in plain if k not in places})
    turned = {}
    for name, shape in places.items():
        turned[name] = np.zeros(shape, bool)
        for place in np.ndindex(shape):
            one, two = plain[name][place], mirrored[name][place]
            turned[name][place] = torch.equal(two, one.flip(-2))
            assert turned[name][place] or torch.equal(one, two)
        assert 0.3 < turned[name].mean() < 0.7
    np.testing.assert_array_equal(turned["video"], turned["low_video"])


def test_batches_do_not_share_memory(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW)
    first = dataset.__getitems__([0, 1])
    kept = {name: value.clone() for name, value in first.items()}
    dataset.__getitems__([2, 3])
    assert same(first, kept)


@pytest.mark.parametrize("inside", [True, False])
def test_in_a_loader_process_and_only_there_batches_lie_in_shared_memory(
    embedded_store: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, embeddings="clip-1", images=1)
    expected = dataset.__getitems__([4, 5])
    monkeypatch.setattr("torch.utils.data._utils.worker._worker_info", object() if inside else None)
    batch = dataset.__getitems__([4, 5])
    assert {tensor.is_shared() for tensor in batch.values()} == {inside}
    assert same(batch, expected)


def test_joined_captions_reach_the_batch(store_path: Path) -> None:
    one = WindowDataset(store_path, "train", 0, WINDOW).__getitems__(range(8))
    joined = WindowDataset(store_path, "train", 0, WINDOW, captions=CaptionConfig(choose="joined"))
    batch = joined.__getitems__(range(8))
    assert torch.equal(batch["video"], one["video"])
    assert batch["length"].float().mean() > one["length"].float().mean()


# Clips shorter than a window


def test_the_last_frame_of_a_short_clip_stands_still_and_valid_counts_the_real_ones(padded_store: Path) -> None:
    store, dataset = Store(padded_store), WindowDataset(padded_store, "train", 0, WINDOW, low_size=8)
    assert store.num_frames.tolist() == [20, 5, 2]
    samples = np.arange(60)
    seen = set()
    for sample, clip, start in zip(samples.tolist(), *dataset.choose(samples), strict=True):
        item, count = dataset[sample], int(store.num_frames[clip])
        places = [min(start + 2 * frame, count - 1 - (count - 1 - start) % 2) for frame in range(4)]
        for name, size in (("video", 16), ("low_video", 8)):
            np.testing.assert_array_equal(item[name], store.frames(size).read(clip, 0, count)[places])
        assert item["valid"] == sum(start + 2 * frame < count for frame in range(4))
        assert count >= 7 or start == 0
        seen.add(int(item["valid"]))
    assert seen == {4, 3, 1}


def test_a_clip_shorter_than_its_embedding_s_window_has_the_first(padded_store: Path) -> None:
    dataset = WindowDataset(padded_store, "train", 0, WINDOW, embeddings="clip-1", images=1)
    rows, starts = dataset.choose(np.arange(30))
    batch = dataset.__getitems__(range(30))
    assert set(rows.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(batch["embedding"], np.stack([rows, starts], axis=1))
    rows, frames = dataset.choose_images(np.arange(30))
    assert (frames < dataset.store.num_frames[rows]).all()
    assert (batch["image_embeddings"][..., 1][torch.from_numpy(rows) > 0] == 0).all()


def test_only_a_store_of_padded_clips_gives_valid(store_path: Path) -> None:
    assert "valid" not in WindowDataset(store_path, "train", 0, WINDOW)[0]


# Sizes stored for fewer frames


def test_windows_stay_within_the_frames_stored_at_every_size(
    raw_dataset: Path, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, size_frames=(40, 17))
    build_store(raw_dataset, config, tmp_path / "store", tmp_path / "staging")
    samples = np.arange(200)
    low = WindowDataset(tmp_path / "store", "train", 0, dataclasses.replace(WINDOW, size=8))
    assert low.choose(samples)[1].max() == 20 - 7
    both = WindowDataset(tmp_path / "store", "train", 0, WINDOW, low_size=8)
    assert both.choose(samples)[1].max() == 17 - 7
    both.__getitems__(range(20))


# Images beside the videos


def test_images_are_single_frames_with_their_own_captions_and_embeddings(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, embeddings="clip-1", images=3)
    store, samples = dataset.store, np.arange(40)
    batch = dataset.__getitems__(samples.tolist())
    rows, frames = dataset.choose_images(samples)
    for place in np.ndindex(rows.shape):
        row, frame = int(rows[place]), int(frames[place])
        np.testing.assert_array_equal(batch["images"][place], store.frames(16).read(row, frame, frame + 1)[0])
        texts = [tuple(store.tokens[caption].tolist()) for caption in range(*store.caption_range(row))]
        assert tuple(batch["image_tokens"][place].tolist()) in texts
        assert batch["image_embeddings"][place].tolist() == [row, min(5 * (frame // 5), 10)]
    assert set(frames.reshape(-1).tolist()) == set(range(20))


def test_images_visit_every_clip_of_the_split_in_an_order_of_their_own(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "train", 0, WINDOW, images=4)
    samples = np.arange(50 * dataset.num_clips)
    rows = dataset.choose_images(samples)[0].reshape(-1, dataset.num_clips)
    assert (np.sort(rows, axis=1) == dataset.clips).all()
    assert (
        abs((dataset.choose_images(samples)[0][:, 0] == dataset.choose(samples)[0]).mean() - 1 / len(dataset.clips))
        < 0.1
    )


def test_images_change_nothing_of_the_videos(store_path: Path) -> None:
    without = WindowDataset(store_path, "train", 0, WINDOW).__getitems__(range(5))
    with_images = WindowDataset(store_path, "train", 0, WINDOW, images=2).__getitems__(range(5))
    assert same(without, {name: with_images[name] for name in without})


def test_a_sample_reads_only_the_chunks_that_hold_its_frames(store_path: Path, tmp_path: Path) -> None:
    """All other chunks are overwritten: the sample must not notice, others must."""
    dataset = WindowDataset(store_path, "train", 0, WINDOW, images=2)
    sample = np.array([0])
    (rows, starts), (images, frames) = dataset.choose(sample), dataset.choose_images(sample)
    read = [(rows[0], starts[0] + 2 * frame) for frame in range(4)] + list(zip(images[0], frames[0], strict=True))
    config = dataset.store.config
    kept = {(int(row), int(frame) // config.chunk_frames) for row, frame in read}
    shutil.copytree(store_path, tmp_path / "store")
    chunks, per_shard = config.max_frames // config.chunk_frames, config.clips_per_shard
    for file in (tmp_path / "store/frames_16").glob("c.*"):
        first, data = int(file.name.split(".")[1]) * per_shard, bytearray(file.read_bytes())
        index = np.frombuffer(bytes(data[-4 - 16 * per_shard * chunks : -4]), "<u8").reshape(per_shard, chunks, 2)
        for item, chunk in np.ndindex(per_shard, chunks):
            offset, length = (int(value) for value in index[item, chunk])
            if offset < len(data) and (first + item, chunk) not in kept:
                data[offset : offset + length] = bytes(length)
        file.write_bytes(data)
    damaged = WindowDataset(tmp_path / "store", "train", 0, WINDOW, images=2)
    assert same(damaged[0], dataset[0])
    with pytest.raises(OSError, match=r"clip \S+: .*python tools/verify_store"):
        damaged.__getitems__(range(1, 8))


# Several frame rates


def test_each_sample_draws_a_stride_and_has_the_frames_and_the_start_s_embedding_of_it(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, low_size=8, embeddings="clip-1", strides=(1, 2, 5))
    store, samples = dataset.store, np.arange(300)
    batch = dataset.__getitems__(samples.tolist())
    last = {1: 0, 2: 0, 5: 0}
    for sample, (row, start) in enumerate(zip(*dataset.choose(samples), strict=True)):
        stride = int(batch["stride"][sample])
        span = 3 * stride + 1
        for name, size in (("video", 16), ("low_video", 8)):
            frames = store.frames(size).read(row, start, start + span, stride)
            np.testing.assert_array_equal(batch[name][sample], frames)
        assert batch["embedding"][sample].tolist() == [row, start]
        last[stride] = max(last[stride], int(start))
    # the embedding's window spans 9 of 20 frames, that of stride 5 spans 16: the longer of the two must fit
    assert last == {1: 10, 2: 10, 5: 0}
    shares = np.bincount(batch["stride"], minlength=6)[[1, 2, 5]] / len(samples)
    assert (abs(shares - 1 / 3) < 0.1).all()


def test_a_stride_follows_from_seed_and_sample_alone(store_path: Path) -> None:
    def strides(seed: int, samples: list[int]) -> list[int]:
        dataset = WindowDataset(store_path, "train", seed, WINDOW, strides=(1, 2))
        return dataset.__getitems__(samples)["stride"].tolist()

    many = strides(0, list(range(32)))
    assert strides(0, [7, 3, 30]) == [many[7], many[3], many[30]]
    assert strides(1, list(range(32))) != many
    assert "stride" not in WindowDataset(store_path, "train", 0, WINDOW)[0]


def test_the_largest_stride_must_fit_the_shortest_clip(store_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spans 22 stored frames.*--data\.min-frames 22"):
        WindowDataset(store_path, "train", 0, WINDOW, strides=(2, 7))


def test_strides_and_images_survive_the_way_into_a_loader_process(embedded_store: Path) -> None:
    dataset = WindowDataset(embedded_store, "train", 0, WINDOW, embeddings="clip-1", images=2, strides=(1, 2))
    assert same(dataset[5], pickle.loads(pickle.dumps(dataset))[5])


def test_the_draws_of_images_are_those_of_their_own_numbers() -> None:
    draws = Draws(4, torch.tensor([3, 0]), "cpu")
    images, seed = draws.of_images(2), keyed_random.key(4, "image")
    alone = torch.cat([Draws(seed, torch.tensor([number]), "cpu").normal("noise", (5,)) for number in (6, 7, 0, 1)])
    assert torch.equal(images.normal("noise", (5,)), alone)
    assert not torch.equal(images.uniform("time")[2:3], draws.uniform("time")[1:])


# Damage


def test_a_damaged_shard_names_the_clip_and_the_command(store_path: Path, tmp_path: Path) -> None:
    shutil.copytree(store_path, tmp_path / "store")
    dataset = WindowDataset(tmp_path / "store", "train", 0, WINDOW)
    row = int(dataset.choose(np.array([0]))[0][0])
    (tmp_path / f"store/frames_16/c.{row // dataset.store.config.clips_per_shard}.0.0.0.0").unlink()
    with pytest.raises(OSError, match=r"clip \S+: .*missing.*python tools/verify_store\.py \S+/store") as raised:
        dataset.__getitems__([0])
    assert f"clip {dataset.store.clip_id(row)}:" in str(raised.value)


def test_to_float_moves_channels_first_and_covers_minus_one_to_one() -> None:
    video = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8, 1).repeat(1, 1, 1, 1, 3)
    video[..., 1] = 0
    found = to_float(video)
    assert (found.shape, found.dtype) == ((1, 3, 4, 8, 8), torch.float32)
    assert (found.min().item(), found.max().item()) == (-1.0, 1.0)
    assert (found[:, 1] == -1).all()
    torch.testing.assert_close((found[0, 0] + 1) * 127.5, torch.arange(256.0).reshape(4, 8, 8))


def test_validation_sees_the_same_clips_every_time(store_path: Path) -> None:
    dataset = WindowDataset(store_path, "val", 0, WINDOW)
    assert sorted(dataset.choose(np.arange(dataset.num_clips))[0]) == dataset.clips.tolist()
    assert same(dataset.__getitems__(range(4)), dataset.__getitems__(range(4)))
