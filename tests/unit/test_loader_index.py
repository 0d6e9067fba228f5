"""A simulated index is a store, and opening one reads nothing that grows with the number of clips."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from dalle2_video.data.store import Store
from dalle2_video.data_config import DataConfig
from tools.bench.loader_index import make_index


def test_the_tables_agree_with_each_other(tmp_path: Path) -> None:
    config = DataConfig(frame_sizes=(8, 16), max_frames=40, size_frames=(40, 20), vocab_size=300)
    store = Store(make_index(tmp_path / "store", 1003, 3, config))
    rows = {split: store.usable(split) for split in ("train", "val")}  # type: ignore[arg-type]
    np.testing.assert_array_equal(rows["val"], np.flatnonzero(store.is_validation))
    np.testing.assert_array_equal(rows["train"], np.flatnonzero(~store.is_validation))
    assert {split: store.num_frames[of].min() for split, of in rows.items()} == {"train": 16, "val": 16}
    assert (store.shortest("train"), store.shortest("val")) == (16, 16)
    assert store.num_frames.max() == 40 and store.num_frames_at(16, np.arange(1003)).max() == 20
    assert (store.num_captions, store.caption_range(1002)) == (3009, (3006, 3009))
    assert store.clip_id(1002) == "00000001002_0_0" and len(set(store.clip_ids)) == 1003
    assert [caption.text for caption in store.captions_of(7)] == [""] * 3
    assert store.caption_kinds.shape == (3009,)
    group = zarr.open_group(str(tmp_path / "store"), mode="r")
    assert group["frames_16"].shape == (1003, 20, 16, 16, 3) and group["tokens"].shape == (3009, 77)
    with pytest.raises(OSError, match="shard is missing"):
        store.frames(8).read(0, 0, 1)


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_opening_reads_and_keeps_the_same_few_bytes_whatever_the_number_of_clips(tmp_path: Path) -> None:
    read, kept = [], []
    for clips in (100, 1_000_000):
        path = make_index(tmp_path / str(clips), clips, 20, DataConfig(vocab_size=300))
        before = bytes_read()
        tracemalloc.start()
        store = Store(path)
        row = int(store.usable("train")[-1])
        assert store.clip_id(row).startswith(f"{clips - 1:011d}")
        assert store.captions_of(row) and store.tokens[-1].shape == (77,)
        kept.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        read.append(bytes_read() - before)
    assert read[1] < read[0] + 10_000
    assert kept[1] < kept[0] + 100_000


def change_metadata(array: Path, old: str, new: str) -> None:
    text = (array / "zarr.json").read_text()
    assert old in text
    (array / "zarr.json").write_text(text.replace(old, new))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path / "tokens/c.0.0", 1000), r"tokens/c\.0\.0: 1000 bytes, wanted 92400"),
    "too long": (lambda path: os.truncate(path / "num_frames/c.0", 404), r"num_frames/c\.0: 404 bytes, wanted 400"),
    "other type": (lambda path: change_metadata(path / "num_frames", '"int32"', '"uint32"'), "one uncompressed chunk"),
    "other codec": (lambda path: change_metadata(path / "tokens", '"bytes"', '"zstd"'), "one uncompressed chunk"),
    "other shape": (lambda path: change_metadata(path / "token_lengths", "300", "299"), "one uncompressed chunk"),
    "version 1": (
        lambda path: change_metadata(path, '"version": 2', '"version": 1'),
        r"launch/preprocess\.py into anoth",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_table_that_is_not_what_it_must_be_is_refused_at_opening(tmp_path: Path, kind: str) -> None:
    path = make_index(tmp_path / "store", 100, 3, DataConfig(vocab_size=300))
    Store(path)
    damage, message = DAMAGES[kind]
    damage(path)
    with pytest.raises(ValueError, match=message):
        Store(path)
