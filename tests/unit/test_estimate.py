"""The estimate before preprocessing: what a few decoded clips tell is what the store then takes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
from data_fixtures import CLIP_IDS, build_store, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.data import join
from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import ClipFile, scan, text_folders
from dalle2_video.data_config import DataConfig
from experiments.registry import HOME_VARIABLE
from launch import submit
from launch.preprocess_estimate import (
    STORE_FILES,
    Estimate,
    Sample,
    choose,
    extrapolate,
    measure,
    store_files,
    warnings,
)

DATA = DataConfig(frame_sizes=(64, 256), clips_per_shard=64)


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=200), count=st.integers(1, 16))
def test_clips_are_chosen_evenly_over_the_sizes_and_none_twice(sizes: list[int], count: int) -> None:
    clips = [ClipFile(clip_id=str(n), source=Source(path=Path(str(n)), size=size)) for n, size in enumerate(sizes)]
    chosen = choose(clips, count)
    assert len(chosen) == len({clip.clip_id for clip in chosen}) == min(count, len(clips))
    ranks = sorted(sorted(clips, key=lambda clip: (clip.source.size, clip.clip_id)).index(clip) for clip in chosen)
    gaps = [later - earlier for earlier, later in itertools.pairwise(ranks)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_choice_that_is_cut_short_is_still_spread_over_the_sizes() -> None:
    clips = [ClipFile(clip_id=f"{n:03d}", source=Source(path=Path("x"), size=n)) for n in range(800)]
    assert [clip.source.size // 100 for clip in choose(clips, 8)] == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_measured_bytes_are_those_of_the_store_to_the_byte(compression: str, tmp_path: Path) -> None:
    config = DataConfig(
        frame_sizes=(8, 16), min_frames=16, max_frames=40, chunk_frames=8, clips_per_shard=4, vocab_size=300,
        text_context=16, val_fraction=0.3, compression=compression,
    )  # fmt: skip
    root = write_dataset(tmp_path / "data", CLIP_IDS)
    clips = scan(root, config)
    sample = measure(choose(clips, len(clips)), text_folders(root, config), config)
    assert (sample.clips, sample.bad, sample.frames) == (8, {}, 8 * 20)
    assert sample.source_bytes == sum(clip.source.size for clip in clips)
    assert sample.cpu_s > 0 and sample.memory_bytes > 1 << 20 and sample.longest_caption == 5

    build_store(root, config, tmp_path / "store", tmp_path / "staging")
    estimate = extrapolate(
        sample, clips=8, source_bytes=sample.source_bytes, config=config, tasks=2, left=2, groups=2, at_once=1
    )
    for size in config.frame_sizes:
        shards = list((tmp_path / "store" / f"frames_{size}").glob("c.*"))
        index = 2 * (4 * 5 * 16 + 4)  # two shards of four clips of five chunks, each sixteen bytes; a checksum
        assert estimate.stored_bytes[size] == sum(shard.stat().st_size for shard in shards) - index
    files = sum(path.is_file() for path in (tmp_path / "store").rglob("*"))
    assert abs(estimate.store_files - files) <= 15


def test_the_last_step_takes_the_memory_that_is_told(tmp_path: Path) -> None:
    config = DataConfig(frame_sizes=(8,), clips_per_shard=4, vocab_size=300, text_context=64, val_fraction=0.3)
    root = write_dataset(tmp_path / "data", CLIP_IDS)
    for file in (root / "texts/action_dur").iterdir():
        file.write_text(
            "".join(f"line {n} of {file.stem} is like many others that speak of faces\n" for n in range(1500))
        )
    clips = scan(root, config)
    sample = measure(clips, text_folders(root, config), config)
    estimate = extrapolate(
        sample, clips=8, source_bytes=sample.source_bytes, config=config, tasks=2, left=2, groups=2, at_once=1
    )
    records = json.dumps(build_store(root, config, tmp_path / "store", tmp_path / "staging"))
    tracemalloc.start()
    try:
        join.finish(json.loads(records), clips, config, tmp_path / "store", tmp_path / "again")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.6 * peak < estimate.join_memory_bytes - estimate.task_memory_bytes < 2 * peak


def test_bad_clips_are_named_and_no_time_is_spent_beyond_the_budget(raw_dataset: Path, data_config: DataConfig) -> None:
    clips = scan(raw_dataset, data_config)
    folders = text_folders(raw_dataset, data_config)
    sample = measure(clips, folders, data_config)
    assert sample.clips == 10 and set(sample.bad) == {"broken_clip_0_0", "short_clip__0_0"}
    assert "fewer than data.min_frames=16" in sample.bad["short_clip__0_0"]
    assert measure(clips, folders, dataclasses.replace(data_config, short_clips="pad")).bad.keys() == {
        "broken_clip_0_0"
    }
    assert measure(clips, folders, data_config, budget_s=0).clips == 1


def test_a_data_set_of_empty_files_has_an_estimate(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", CLIP_IDS[:2])
    for clip in (root / "videos/celebvtext_6").iterdir():
        clip.write_bytes(b"")
    clips = scan(root, DATA)
    sample = measure(clips, text_folders(root, DATA), DATA)
    assert list(sample.bad.values()) == ["the file is empty"] * 2
    estimate = extrapolate(sample, clips=2, source_bytes=0, config=DATA, tasks=1, left=1, groups=1, at_once=1)
    assert (estimate.core_s, estimate.stored_bytes) == (0, {64: 0, 256: 0})


def whole(sample: Sample, **changes: int) -> Estimate:
    given_: dict[str, int] = {"tasks": 1000, "left": 1000, "groups": 500, "at_once": 500} | changes
    return extrapolate(sample, clips=64_000, source_bytes=64_000 * 10, config=DATA, **given_)


SAMPLE = Sample(
    clips=8,
    source_bytes=160,
    cpu_s=16.0,
    stored_bytes={64: 800, 256: 8000},
    memory_bytes=1000,
    captions=160,
    caption_bytes=16_000,
)


def test_a_sample_is_scaled_to_the_data_set() -> None:
    estimate = whole(SAMPLE)
    # The sampled clips are twice as long as the mean: half as much time for as many clips.
    assert estimate.core_s == pytest.approx(64_000 * 1.0)
    assert estimate.wall_s == pytest.approx(2 * 64.0)  # two tasks of 64 clips a group
    assert estimate.stored_bytes == {64: 64_000 * 100, 256: 64_000 * 1000}
    assert estimate.store_files == store_files(1000, DATA) == 2002 + STORE_FILES
    assert estimate.task_memory_bytes == 1000
    assert estimate.join_memory_bytes == 1000 + 64_000 * (20 * (4 * 77 + 200) + 3.5 * 2000)


def test_fewer_at_once_take_longer_and_finished_tasks_take_no_time() -> None:
    assert whole(SAMPLE, at_once=100).wall_s == pytest.approx(10 * 64.0)
    assert whole(SAMPLE, left=250, groups=250, at_once=250).wall_s == pytest.approx(64.0)
    assert whole(SAMPLE, left=250, groups=250, at_once=250).core_s == pytest.approx(16_000.0)
    assert whole(SAMPLE, left=0, groups=1, at_once=1).wall_s == 0


def cautions(estimate: Estimate, **changes: int) -> list[str]:
    given_ = {"asked_tasks": 500, "free_bytes": 10**12, "clips": 64_000, "mem_gb": 0} | changes
    return warnings(estimate, config=DATA, **given_)


def test_cautions_name_the_remedy() -> None:
    assert cautions(whole(SAMPLE)) == []
    (many,) = cautions(whole(SAMPLE, tasks=16_000))
    assert "files are a burden" in many and "--data.clips-per-shard 28" in many
    (few,) = cautions(whole(SAMPLE, groups=1000), asked_tasks=2000)
    assert "--tasks 2000, but there are 1000 shards" in few and "--data.clips-per-shard 32 makes enough" in few
    (fewer,) = cautions(whole(SAMPLE, groups=1000), asked_tasks=2000, clips=1500)
    assert "clips-per-shard" not in fewer
    (starved,) = cautions(whole(SAMPLE), mem_gb=1)
    assert "--mem-gb 1 is too little for the last step, which joins all captions; --mem-gb 3" in starved
    assert cautions(whole(SAMPLE), mem_gb=2) == []
    (full,) = cautions(whole(SAMPLE), free_bytes=10**6)
    assert "the store needs about 0.0704 GB and 0.001 GB are free" in full and HOME_VARIABLE in full


def test_a_dry_run_tells_it_and_changes_nothing(
    raw_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, root = tmp_path / "home", tmp_path / "data"
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    shutil.copytree(raw_dataset, root)
    (root / "texts/light_color_temp").rename(root / "texts/light_colot_temp")
    command = ["--data-root", str(root), "--data.clips-per-shard", "3", "--dry-run", "--cluster", "local"]
    assert submit.main("preprocess", [*command, "--tasks", "9", "--parallel", "2"]) == 0
    said = capsys.readouterr().out
    for text in (
        "note: captions light_color: texts/light_color_temp is missing, texts/light_colot_temp is used",
        "10 clips in 4 tasks of 3 clips, 4 jobs, 2 at once",
        "measured on 8 of the clips",
        "16 px ",
        "core-hours",
        "that which ends last and joins the tables",
        "files",
        "longest caption of them: 5 words",
        "--tasks 9, but there are 4 shards to share out; --data.clips-per-shard 1 makes enough",
    ):
        assert text in said, said
    assert not home.exists()


def test_a_dry_run_shows_what_it_refuses_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    root = tmp_path / "old [/x]"  # rich takes brackets for markup
    assert submit.main("preprocess", ["--data-root", str(root), "--dry-run", "--cluster", "local"]) == 0
    assert f"would not start: data root {root} is not a folder" in capsys.readouterr().out


def test_the_deepspeed_config_is_printed_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    flags = ["--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "2", "--micro-batch", "4", "--zero-stage", "2"]
    assert submit.main("decoder", [*flags, "--decoder.optim.batch-size", "32", "--dump-deepspeed-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (32, 2)
    assert config["zero_optimization"]["stage"] == 2 and config["zero_optimization"]["reduce_bucket_size"] > 1_000_000
    assert submit.main("embed", ["--cluster", "local", "--dump-deepspeed-config"]) == 2
    assert "embed trains nothing" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
