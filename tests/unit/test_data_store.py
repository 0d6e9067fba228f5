import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from data_fixtures import CLIP_IDS, KIND_LINES, build_store, publish, write_dataset

from dalle2_video.data import celebv_text, join, preprocess, video
from dalle2_video.data.archives import Source
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store import Store
from dalle2_video.data.store_arrays import create_frames
from dalle2_video.data_config import DataConfig


def test_rows_are_all_clips_and_frames_are_those_decoded(
    store_path: Path, raw_dataset: Path, data_config: DataConfig
) -> None:
    store = Store(store_path)
    assert store.clip_ids == sorted([*CLIP_IDS, "short_clip__0_0", "broken_clip_0_0"])
    for row, clip_id in enumerate(store.clip_ids):
        if clip_id in CLIP_IDS:
            path = raw_dataset / "videos/celebvtext_6" / f"{clip_id}.mp4"
            _, expected = video.decode_to_arrays(Source.of_file(path), data_config)
            assert store.num_frames[row] == 20
            for size in data_config.frame_sizes:
                np.testing.assert_array_equal(store.frames(size).read(row, 0, 20), expected[size])
            assert store.source_fps[row] == 24.0
            assert store.source_size[row].tolist() == [48, 32]


def test_bad_clips_keep_their_row_and_reason(store_path: Path) -> None:
    store = Store(store_path)
    bad = store.bad_clips()
    assert set(bad) == {"short_clip__0_0", "broken_clip_0_0"}
    assert "fewer than data.min_frames=16" in bad["short_clip__0_0"]
    assert "holds text" in bad["broken_clip_0_0"]
    for clip_id in bad:
        row = store.clip_ids.index(clip_id)
        assert store.num_frames[row] == 0
        assert store.captions_of(row) == []
        assert row not in set(store.usable("train")) | set(store.usable("val"))


def test_captions_and_tokens_belong_to_their_clip(store_path: Path, raw_dataset: Path, data_config: DataConfig) -> None:
    store = Store(store_path)
    tokenizer = store.tokenizer()
    for row, clip_id in enumerate(store.clip_ids):
        if clip_id not in CLIP_IDS:
            continue
        captions = store.captions_of(row)
        assert captions == celebv_text.read_captions(clip_id, {}, celebv_text.text_folders(raw_dataset, data_config))
        first, last = store.caption_range(row)
        tokens, lengths, _ = tokenizer.encode([caption.text for caption in captions], data_config.text_context)
        np.testing.assert_array_equal(store.tokens[first:last], tokens)
        np.testing.assert_array_equal(store.token_lengths[first:last], lengths)


def test_no_identity_is_in_both_splits(store_path: Path) -> None:
    store = Store(store_path)
    of_split = {
        split: {celebv_text.identity_of(store.clip_ids[row]) for row in store.usable(split)}
        for split in ("train", "val")
    }
    assert of_split == {"train": {"abc_efghijk", "qqqqqqqqqqq"}, "val": {"-bcdefghijk", "_bcdefghijk"}}


def test_plain_zarr_opens_the_whole_group(store_path: Path, data_config: DataConfig) -> None:
    group = zarr.open_group(str(store_path), mode="r")
    store = Store(store_path)
    arrays = dict(group.arrays())
    assert {"frames_8", "frames_16", "tokens", "captions_bytes", "num_frames"} <= set(arrays)
    assert all(np.dtype(array.dtype).kind in "uifb" for array in arrays.values())
    row = store.clip_ids.index(CLIP_IDS[0])
    np.testing.assert_array_equal(arrays["frames_16"][row, :20], store.frames(16).read(row, 0, 20))
    assert not arrays["frames_16"][row, 20:].any()
    assert arrays["frames_16"].shape == (10, data_config.max_frames, 16, 16, 3)
    np.testing.assert_array_equal(arrays["tokens"][...], store.tokens)


def test_statistics_count_what_is_there(store_path: Path) -> None:
    statistics = Store(store_path).statistics()
    assert (statistics["clips"], statistics["bad"], statistics["frames"]) == (10, 2, 160)
    assert (statistics["train_clips"], statistics["val_clips"]) == (4, 4)
    assert statistics["captions"]["appearance"] == 16
    assert sum(statistics["captions"].values()) == 8 * sum(len(lines.splitlines()) for lines in KIND_LINES.values())


def test_a_store_survives_pickling(store_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(Store(store_path)))
    np.testing.assert_array_equal(copy.tokens, Store(store_path).tokens)


def test_unfinished_missing_and_foreign_stores_are_refused_with_the_next_command(
    store_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no store at .*launch/preprocess\.py"):
        Store(tmp_path / "none")
    copy = tmp_path / "copy"
    shutil.copytree(store_path, copy)
    (copy / "statistics.json").unlink()
    with pytest.raises(ValueError, match=r"not finished.*launch/preprocess\.py"):
        Store(copy)
    zarr.create_group(str(tmp_path / "foreign"))
    with pytest.raises(ValueError, match="wanted"):
        Store(tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"--data\.frame-sizes 32"):
        Store(store_path).frames(32)


@pytest.mark.parametrize(("split", "fraction", "remedy"), [("val", 0.0, "raise"), ("train", 0.999999, "lower")])
def test_an_empty_split_is_refused_with_the_setting(
    raw_dataset: Path, data_config: DataConfig, tmp_path: Path, split: str, fraction: float, remedy: str
) -> None:
    config = dataclasses.replace(data_config, val_fraction=fraction)
    build_store(raw_dataset, config, tmp_path / "store", tmp_path / "staging")
    with pytest.raises(ValueError, match=f"{remedy} --data.val-fraction"):
        Store(tmp_path / "store").usable(split)  # type: ignore[arg-type]


def test_a_task_run_again_gives_the_same_bytes(raw_dataset: Path, data_config: DataConfig, tmp_path: Path) -> None:
    clips = celebv_text.scan(raw_dataset, data_config)
    seen: list[tuple[str, str | None]] = []
    with DecodeProcess(data_config) as decoder:
        first = preprocess.run_task(
            1,
            clips,
            raw_dataset,
            data_config,
            tmp_path / "a",
            decoder,
            lambda clip_id, bad: seen.append((clip_id, bad)),
        )
        second = preprocess.run_task(1, clips, raw_dataset, data_config, tmp_path / "b", decoder)
    assert json.dumps(first.record) == json.dumps(second.record)
    assert [relative for _, relative in first.published] == ["frames_8/c.1.0.0.0.0", "frames_16/c.1.0.0.0.0"]
    for (one, _), (two, _) in zip(first.published, second.published, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert [clip_id for clip_id, _ in seen] == [clip.clip_id for clip in clips[3:6]]


def test_uncompressed_frames_are_the_same_frames(
    raw_dataset: Path, store_path: Path, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, compression="none", chunk_frames=16)
    build_store(raw_dataset, config, tmp_path / "store", tmp_path / "staging")
    plain, packed = Store(tmp_path / "store"), Store(store_path)
    for row in packed.usable("train"):
        np.testing.assert_array_equal(plain.frames(16).read(row, 3, 19, 2), packed.frames(16).read(row, 3, 19, 2))


def test_a_shard_that_is_black_throughout_still_has_its_file(data_config: DataConfig, tmp_path: Path) -> None:
    with ShardWriter(create_frames(tmp_path, 8, 1, data_config), 0) as writer:
        writer.write(0, np.zeros((20, 8, 8, 3), np.uint8))
        writer.finish()
    assert not ShardReader(tmp_path / "frames_8").read(0, 0, 20).any()


def test_a_shard_of_bad_clips_is_skipped_and_all_bad_is_refused(data_config: DataConfig, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "raw", ["aaaaaaaaaaa_0_0", "aaaaaaaaaaa_0_1"], seconds=0.5)
    clips = celebv_text.scan(root, data_config)
    with DecodeProcess(data_config) as decoder:
        result = preprocess.run_task(0, clips, root, data_config, tmp_path / "staging", decoder)
    assert result.published == []
    with pytest.raises(ValueError, match=r"all 2 clips are bad(.|\n)*aaaaaaaaaaa_0_0: 4 frames at 8 fps"):
        join.finish([result.record], clips, data_config, tmp_path, tmp_path / "staging")


def test_missing_records_are_named(raw_dataset: Path, data_config: DataConfig, tmp_path: Path) -> None:
    clips = celebv_text.scan(raw_dataset, data_config)
    with pytest.raises(ValueError, match=r"tasks without a record: \[0, 1, 2, 3\]"):
        join.finish([], clips, data_config, tmp_path, tmp_path)


def test_a_clip_with_unreadable_text_is_bad_alone(raw_dataset: Path, data_config: DataConfig, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    shutil.copytree(raw_dataset, root)
    (root / "texts/emotion" / f"{CLIP_IDS[0]}.txt").write_bytes(b"caf\xe9 au lait")
    build_store(root, data_config, tmp_path / "store", tmp_path / "staging")
    bad = Store(tmp_path / "store").bad_clips()
    assert "not UTF-8" in bad[CLIP_IDS[0]]
    assert len(bad) == 3


def test_a_full_disk_ends_the_task_instead_of_marking_clips_bad(
    raw_dataset: Path, data_config: DataConfig, tmp_path: Path
) -> None:
    clips = celebv_text.scan(raw_dataset, data_config)
    (tmp_path / "staging").write_text("a file where the folder should be: writing fails")
    with DecodeProcess(data_config) as decoder, pytest.raises(OSError, match="staging"):
        preprocess.run_task(0, clips, raw_dataset, data_config, tmp_path / "staging", decoder)


def test_a_publisher_needs_nothing_but_the_list(
    store_path: Path, raw_dataset: Path, data_config: DataConfig, tmp_path: Path
) -> None:
    clips = celebv_text.scan(raw_dataset, data_config)
    items = preprocess.create_store(tmp_path / "staging", clips, data_config)
    assert [relative for _, relative in items][-1] == "zarr.json"
    publish(items, tmp_path / "store")
    assert not [path for path in (tmp_path / "staging").rglob("*") if path.is_file()]
    assert (tmp_path / "store/frames_8/zarr.json").read_text() == (store_path / "frames_8/zarr.json").read_text()
