"""The data benches measure what they say: the same frames everywhere, documented keys, no figure for a missing peer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
from data_fixtures import write_mp4

from dalle2_video.data.archives import Source
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import Store
from dalle2_video.data.video import decode_to_arrays
from tools.bench import loader, loader_stores, peers, preprocess, timing

TINY = loader.Amounts(clips=4, frames=40, fast=6, batches=12, index=1000)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_mp4(folder / f"{seed}.mp4", seed=seed, width=64, height=64) for seed in (1, 2)]


@pytest.fixture
def no_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which pip finds no package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


def test_every_layout_gives_the_same_frames(clips: list[Path], tmp_path: Path) -> None:
    layouts = loader.Layouts(clips, TINY, tmp_path)
    assert len(np.unique(layouts.clips.reshape(-1, 64 * 64 * 3), axis=0)) > 50  # frames can be told from each other
    for n, start in ((0, 0), (1, 7), (3, 24)):
        expected = layouts.clips[n, start : start + loader.FRAMES]
        for name, read in layouts.readers().items():
            window = read(n, start)
            if name.startswith("h5"):
                window = loader_stores.old_to_uint8(window)
            if name == "mp4":  # lossy: the same frames as decoding from the start gives, and near the others
                with av.open(layouts.mp4s[n]) as container:
                    whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                assert np.array_equal(window, whole[start : start + loader.FRAMES])
                assert np.abs(window.astype(int) - expected).mean() < 4
            else:
                assert np.array_equal(window, expected), name


def test_chunks_to_decompress_are_those_of_the_window(clips: list[Path], tmp_path: Path) -> None:
    frames = loader_stores.real_clips(clips, 16, 4, 40)
    config = loader.settings(16, TINY, "zstd")
    reader = ShardReader(loader_stores.write_store(tmp_path / "store", frames, config) / "frames_16")
    chunks = loader.stored_chunks(reader, 2, 10)
    pictures = np.concatenate([np.frombuffer(loader.Zstd().decode(chunk), np.uint8) for chunk in chunks])
    assert np.array_equal(pictures.reshape(-1, 16, 16, 3)[10:26], frames[2, 10:26])


def test_a_repeated_store_reads_back_the_small_one(clips: list[Path], tmp_path: Path) -> None:
    frames = loader_stores.real_clips(clips, 16, 4, 40)
    base = loader_stores.write_store(tmp_path / "base", frames, loader.settings(16, TINY, "zstd"))
    small, large = Store(base), Store(loader_stores.repeat_store(base, tmp_path / "large", 11))
    assert (large.num_clips, len(large.usable("train")), len(set(large.clip_ids))) == (11, 11, 11)
    for row in (0, 5, 10):
        assert np.array_equal(large.frames(16).read(row, 3, 19), frames[row % 4, 3:19])
        assert large.captions_of(row) == small.captions_of(row % 4)
        first, last = large.caption_range(row)
        assert np.array_equal(large.tokens[first:last], small.tokens[slice(*small.caption_range(row % 4))])


def test_loader_bench_gives_the_documented_keys_and_none_for_a_missing_peer(
    clips: list[Path], tmp_path: Path, no_peers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    results = loader.measure(clips, TINY, tmp_path, many=10)
    arguments = loader.Arguments(quick=True, json=tmp_path / "loader.json")
    timing.publish(results, loader.GOALS, arguments)
    written = json.loads((tmp_path / "loader.json").read_text())
    documented = {
        "ours_over_memmap_64", "zarr_over_ours_64", "h5_over_ours_64", "ours_over_decompress_256", "open_70000_s",
    }  # fmt: skip
    assert documented <= written.keys()
    assert all(isinstance(value, float) and np.isfinite(value) for value in written.values())
    assert all(len(values) >= 5 for values in results.rounds.values())
    assert "webdataset_over_ours_64" not in written
    assert "webdataset_over_ours_64: not measured: pip cannot install requirements.txt" in capsys.readouterr().out


def test_preprocess_bench_gives_the_documented_keys_and_none_for_a_missing_peer(
    clips: list[Path], tmp_path: Path, no_peers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no ffmpeg
    results = preprocess.measure(clips, tmp_path, 20, both_sizes=False)
    keys = {"cpu_over_ffmpeg_64", "cpu_over_ffmpeg_256", "two_tasks_speedup"}
    keys |= {"old_over_ours_time", "old_over_ours_bytes"}
    assert keys <= results.figures.keys() | results.absent.keys()
    assert not results.figures.keys() & results.absent.keys()
    for key in ("cpu_over_ffmpeg_64", "cpu_over_ffmpeg_256", "old_over_ours_time", "old_over_ours_bytes"):
        assert "pip cannot install" in results.absent[key]
    assert results.rounds["ours 64 px"][0] > 0


def test_like_old_stores_every_first_frame_of_the_source(clips: list[Path], tmp_path: Path) -> None:
    workload = preprocess.Workload(clips, tmp_path, 20)
    for task, config in workload.like_old():
        with av.open(clips[task]) as container:
            source = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:20]
        small = dataclasses.replace(config, frame_sizes=(64,))
        stored = decode_to_arrays(Source.of_file(clips[task]), small)[1][64]
        assert np.abs(stored.astype(int) - np.stack(source)).max() <= 2
    assert workload.ours_like_old() > 0
    assert workload.bytes["ours"] > 0


def test_a_bad_clip_ends_the_bench_instead_of_counting_as_fast(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    root = preprocess.lay_out(tmp_path / "data", [broken])
    with pytest.raises(ValueError, match="cannot be measured: clip0000000_0_0"):
        preprocess.run_one_task(0, root, preprocess.celebv_text_64.recipe().data, tmp_path / "staging")


def test_figures_are_medians_of_ratios_within_a_round() -> None:
    assert timing.median_ratio([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == 3.0
    turns: list[str] = []
    timing.interleaved({name: lambda name=name: float(turns.append(name) or 1) for name in "ab"}, rounds=2)  # type: ignore[misc]
    assert turns == ["a", "b", "b", "a"]
    missing = timing.Results(unit="s", absent={"peer": "not here"})
    missing.ratio("peer_over_ours", "peer", "ours")
    assert (missing.figures, missing.absent["peer_over_ours"]) == ({}, "not here")


def test_a_broken_install_leaves_no_environment(no_peers: None) -> None:
    with pytest.raises(peers.PeersMissing, match="pip cannot install"):
        peers.peers_python()
    assert list(peers.cache().iterdir()) == []
