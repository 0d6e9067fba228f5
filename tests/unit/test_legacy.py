"""`tools/import_h5.py`: the old project's HDF5 files become stores, to within half a grey level, or are refused."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from data_fixtures import KIND_LINES
from einops import rearrange
from PIL import Image

from dalle2_video.config_io import from_dict
from dalle2_video.data import celebv_text, legacy
from dalle2_video.data.legacy_array import LegacyArray
from dalle2_video.data.store import Store
from dalle2_video.data.tokenizer import from_folder
from dalle2_video.data_config import DataConfig
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch.parents import IMPORT_COMMAND, resolve
from launch.stages import STAGES
from slurm import run_state
from tools import import_h5, verify_store

REPOSITORY = Path(__file__).resolve().parents[2]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
CLIPS, FRAMES, SIDE, FPS = 5, 24, 32, 8.0
IDS = [f"person{n // 2:05d}_{n}_0" for n in range(CLIPS)]
SMALL = ["--data.frame-sizes", "16", "32", "--data.clips-per-shard", "2", "--data.val-fraction", "0.3"]
STORED = {
    "clip": lambda rgb: ((rgb / 255 - MEAN) / STD).astype(np.float32),
    "clip half": lambda rgb: ((rgb / 255 - MEAN) / STD).astype(np.float16),
    "unit": lambda rgb: (rgb / 255).astype(np.float32),
    "signed": lambda rgb: (rgb / 127.5 - 1).astype(np.float32),
    "bytes": lambda rgb: rgb.astype(np.float32),
    "uint8": lambda rgb: rgb,
}
AXES = {"ncthw": "n t h w c -> n c t h w", "ntchw": "n t h w c -> n t c h w", "nthwc": "n t h w c -> n t h w c"}


def pictures(clips: int = CLIPS, frames: int = FRAMES, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Return (n, t, h, w, 3) uint8 RGB of every grey level."""
    return np.random.default_rng(seed).integers(0, 256, (clips, frames, side, side, 3), dtype=np.uint8)


def faces(clips: int, frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """Return clips of noisy skin of several complexions before grey walls."""
    rng = np.random.default_rng(7)
    rgb = rng.integers(90, 110, (clips, frames, side, side, 1)).repeat(3, -1)
    skins = np.array([[224, 172, 138], [198, 134, 98], [141, 85, 56], [255, 219, 192]])
    rgb[:, :, 8:24, 8:24] = skins[np.arange(clips) % 4][:, None, None, None] + rng.integers(
        -8, 9, (clips, frames, 16, 16, 1)
    )
    rgb[:, :, 0, 0], rgb[:, :, 0, 1] = 0, 255
    return np.clip(rgb, 0, 255).astype(np.uint8)


def write_h5(path: Path, videos: np.ndarray, ids: list[str] | None = None, **options: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("videos", data=videos, **options)
        file["videos"].attrs["fps"] = FPS
        if ids is not None:
            file["clip_ids"] = ids
    return path


def write_texts(root: Path, ids: list[str]) -> Path:
    for name, lines in KIND_LINES.items():
        (root / "texts" / name).mkdir(parents=True)
        for clip_id in ids:
            (root / "texts" / name / f"{clip_id}.txt").write_text(lines.replace("square", f"square {clip_id}"))
    return root


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "root", IDS)


def imported(registry: Registry, path: Path, *more: str) -> Run:
    """Import a file; return its finished run."""
    assert import_h5.main(["--videos", str(path), *SMALL, *more]) == 0
    runs = [(record["time"], run) for run in registry.runs("preprocess") if (record := run.done())]
    return max(runs, key=lambda pair: pair[0])[1]


def frames_of(run: Run, size: int) -> np.ndarray:
    store = Store(run.folder / "store")
    return np.stack([store.frames(size).read(row, 0, int(store.num_frames[row])) for row in range(store.num_clips)])


@pytest.mark.parametrize(("axes", "values"), [("ncthw", "clip"), ("ntchw", "clip half"), ("nthwc", "uint8")])
def test_every_layout_comes_back_to_the_grey_level(
    registry: Registry, tmp_path: Path, texts: Path, axes: str, values: str
) -> None:
    rgb = pictures()
    path = write_h5(tmp_path / "old.h5", rearrange(STORED[values](rgb), AXES[axes]), IDS)
    found = frames_of(imported(registry, path, "--captions", str(texts)), SIDE)
    np.testing.assert_array_equal(found, rgb)


@pytest.mark.parametrize("values", list(STORED))
def test_the_range_of_values_is_detected(tmp_path: Path, values: str) -> None:
    rgb = pictures()
    videos = legacy.LegacyVideos(write_h5(tmp_path / "old.h5", STORED[values](rgb)))
    name, reason = legacy.detect_values(videos.sample())
    assert name == {"clip half": "clip", "uint8": "bytes"}.get(values, values)
    assert legacy.VALUE_NAMES[name] in reason
    how = legacy.Conversion(values=name, bgr=False, source_fps=FPS)
    found = legacy.read_clip(videos, 2, how, DataConfig(frame_sizes=(SIDE,), fps=FPS))[SIDE]
    np.testing.assert_array_equal(found, rgb[2])


def test_frames_scaled_before_they_were_normalised_keep_within_half_a_grey_level(tmp_path: Path) -> None:
    exact = np.random.default_rng(1).uniform(0, 255, (1, FRAMES, SIDE, SIDE, 3))  # no 8-bit lattice
    path = write_h5(tmp_path / "old.h5", STORED["clip"](exact))
    videos = legacy.LegacyVideos(path)
    values, _ = legacy.detect_values(videos.sample())
    how = legacy.Conversion(values=values, bgr=False, source_fps=FPS)
    found = legacy.read_clip(videos, 0, how, DataConfig(frame_sizes=(SIDE,), fps=FPS))[SIDE]
    assert values == "clip"
    assert np.abs(found - exact[0]).max() <= 0.5 + 1e-3


def test_low_contrast_that_fits_two_ranges_is_told_by_the_lattice_or_refused() -> None:
    rng = np.random.default_rng(2)
    dull = rng.integers(100, 150, (3, 8, 8, 3))
    assert legacy.detect_values([STORED["clip"](dull)])[0] == "clip"
    assert legacy.detect_values([STORED["signed"](dull)])[0] == "signed"
    with pytest.raises(ValueError, match=r"may be clip or signed; say which: --values clip"):
        legacy.detect_values([STORED["clip"](rng.uniform(100, 150, (3, 8, 8, 3)))])


def test_bgr_is_turned_round_on_request_and_decided_by_skin(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb = faces(12)
    ids = [f"p{n:010d}_0_0" for n in range(12)]
    root = write_texts(tmp_path / "faces", ids)
    # As the old project did: BGR pixels, normalised with the mean of R, G, B in that order.
    path = write_h5(tmp_path / "old.h5", STORED["clip"](rgb[..., ::-1]), ids)
    told = imported(registry, path, "--captions", str(root), "--bgr", "yes")
    decided = imported(registry, path, "--captions", str(root), "--bgr", "auto")
    assert told.spec.id == decided.spec.id
    np.testing.assert_array_equal(frames_of(told, SIDE), rgb)
    assert "BGR in 12 of the clips" in capsys.readouterr().out
    wrong = imported(registry, path, "--captions", str(root))
    assert wrong.spec.id != told.spec.id
    assert "did you mean --bgr yes?" in capsys.readouterr().out
    upright = write_h5(tmp_path / "rgb.h5", STORED["clip"](rgb), ids)
    np.testing.assert_array_equal(
        frames_of(imported(registry, upright, "--captions", str(root), "--bgr", "auto"), SIDE), rgb
    )


def test_bgr_is_not_guessed_from_pictures_without_skin(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = pictures()[..., :1].repeat(3, -1)
    path = write_h5(tmp_path / "old.h5", STORED["clip"](grey), IDS)
    assert import_h5.main(["--videos", str(path), *SMALL, "--captions", str(texts), "--bgr", "auto"]) == 2
    assert "say --bgr yes or --bgr no" in capsys.readouterr().err
    assert list(registry.runs()) == []


def test_area_averaging_is_that_of_whole_boxes_and_keeps_the_mean() -> None:
    picture = pictures(1, 1, 224)[0, 0]
    how = legacy.Conversion(values="bytes", bgr=False, source_fps=FPS)
    boxes = np.asarray(Image.fromarray(picture).resize((56, 56), Image.Resampling.BOX)).astype(int)
    ours = legacy._to_grey(picture, how, legacy.area_weights(224, 56)).astype(int)
    assert np.abs(ours - boxes).max() <= 1
    weights = legacy.area_weights(224, 64)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), 64 / 224, rtol=1e-5)
    np.testing.assert_array_equal(legacy.area_weights(32, 32), np.eye(32))


def test_the_centre_square_of_wide_frames_is_taken(tmp_path: Path) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (1, 16, 16, 24, 3), dtype=np.uint8)
    videos = legacy.LegacyVideos(write_h5(tmp_path / "old.h5", wide))
    how = legacy.Conversion(values="bytes", bgr=False, source_fps=FPS)
    found = legacy.read_clip(videos, 0, how, DataConfig(frame_sizes=(16,), fps=FPS))[16]
    np.testing.assert_array_equal(found, wide[0, :, :, 4:20])


@pytest.mark.parametrize(
    ("source", "fps", "expected"),
    [
        (8.0, 8.0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (24.0, 8.0, [0, 3, 6]),
        (20.0, 8.0, [0, 2, 5, 7]),
        (4.0, 8.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]),
    ],
)
def test_frames_are_the_nearest_in_time(source: float, fps: float, expected: list[int]) -> None:
    assert legacy.frame_numbers(9, source, fps, 512) == expected
    assert legacy.frame_numbers(9, source, fps, 2) == expected[:2]


def test_time_does_not_drift_over_a_long_clip() -> None:
    numbers = np.array(legacy.frame_numbers(17982, 30000 / 1001, 8.0, 10**6))
    times = np.arange(len(numbers)) / 8.0
    assert np.abs(numbers * 1001 / 30000 - times).max() <= 0.5 * 1001 / 30000 + 1e-9
    assert abs(len(numbers) - 600 * 8) <= 1


def test_blocks_of_frames_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = pictures(1, 40)
    videos = legacy.LegacyVideos(write_h5(tmp_path / "old.h5", rgb, chunks=(1, 7, SIDE, SIDE, 3)))
    how = legacy.Conversion(values="bytes", bgr=False, source_fps=12.0)
    config = DataConfig(frame_sizes=(SIDE,), fps=FPS)
    whole = legacy.read_clip(videos, 0, how, config)[SIDE]
    monkeypatch.setattr(legacy, "_BLOCK_BYTES", 1)
    assert videos.block_frames() == 7
    np.testing.assert_array_equal(legacy.read_clip(videos, 0, how, config)[SIDE], whole)
    np.testing.assert_array_equal(whole, rgb[0, legacy.frame_numbers(40, 12.0, FPS, 512)])


def test_bad_rows_are_listed_and_do_not_end_the_import(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = STORED["clip"](pictures(6))
    videos[1, 3, 5, 5, 0], videos[2], videos[3, 2, 0, 0, 0] = np.nan, 0, 40
    path = write_h5(tmp_path / "old.h5", videos, [*IDS, "nobody_knows_0_0"], chunks=videos[:1].shape, compression=1)
    with h5py.File(path) as file:
        chunk = file["videos"].id.get_chunk_info(4)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"\xff" * 64)
    run = imported(registry, path, "--captions", str(texts), "--data.val-fraction", "0")
    store = Store(run.folder / "store")
    bad = store.bad_clips()
    assert list(bad) == [*IDS[1:5], "nobody_knows_0_0"]
    for clip_id, reason in zip(
        bad, ["not finite", "never written", "no picture", "damaged", "no caption"], strict=True
    ):
        assert reason in bad[clip_id]
    assert store.usable("train").tolist() == [0]
    assert (run.done() or {})["bad"] == 5
    assert f"bad clip {IDS[2]}" in capsys.readouterr().out


def test_padding_is_cut_off_and_what_is_too_short_then_is_listed(
    registry: Registry, tmp_path: Path, texts: Path
) -> None:
    rgb = pictures()
    videos = STORED["clip"](rgb)
    videos[1, 20:], videos[2, 15:], videos[3, 5] = 0, 0, 0
    run = imported(registry, write_h5(tmp_path / "old.h5", videos, IDS), "--captions", str(texts))
    store = Store(run.folder / "store")
    assert store.num_frames.tolist() == [24, 20, 0, 24, 24]
    np.testing.assert_array_equal(store.frames(SIDE).read(1, 0, 20), rgb[1, :20])
    assert store.bad_clips() == {IDS[2]: "15 frames at 8 fps, fewer than data.min_frames=16"}
    assert store.statistics()["bad"] == 1


def test_black_ends_are_no_padding(tmp_path: Path) -> None:
    rgb = pictures(1)
    rgb[0, 10:] = 0
    config = DataConfig(frame_sizes=(SIDE,), fps=FPS)
    for name in ("clip", "unit"):
        videos = legacy.LegacyVideos(write_h5(tmp_path / f"{name}.h5", STORED[name](rgb)))
        how = legacy.Conversion(values=name, bgr=False, source_fps=FPS)
        np.testing.assert_array_equal(legacy.read_clip(videos, 0, how, config)[SIDE], rgb[0])


def test_the_end_of_a_failed_import_is_on_record_and_one_at_work_is_not_joined(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_h5(tmp_path / "old.h5", pictures(), IDS)
    for clip_id in IDS[:4]:
        for kind in (texts / "texts").iterdir():
            (kind / f"{clip_id}.txt").write_bytes(b"\xff\xfe")
    for kind in (texts / "texts").iterdir():
        (kind / f"{IDS[4]}.txt").unlink()
    assert import_h5.main(["--videos", str(path), *SMALL, "--captions", str(texts)]) == 2
    assert "all 5 clips are bad" in capsys.readouterr().err
    (run,) = registry.runs()
    (attempt,) = run.attempts()
    assert attempt.end is not None and attempt.end["kind"] == "error"
    assert "all 5 clips are bad" in attempt.end["message"]
    assert run.done() is None
    # The process that claimed the run, this one, still lives: to another it is at work.
    refused(capsys, "is being imported already; see: python tools/runs.py show", path, "--captions", str(texts))
    assert len(run.attempts()) == 1


def test_the_store_is_what_a_training_of_this_recipe_takes_as_its_parent(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_h5(tmp_path / "old.h5", STORED["clip"](pictures()), [f"videos/{name}.mp4" for name in IDS])
    run = imported(registry, path, "--captions", str(texts / "texts"), "--data.text-context", "40")
    assert "next: python launch/clip.py --recipe tiny --data.frame-sizes 16 32" in capsys.readouterr().out
    parts = {"data": from_dict(DataConfig, run.spec.config["data"])}
    assert resolve(registry, STAGES["clip"], lambda stage: parts, {}, str)["preprocess"].spec.id == run.spec.id
    assert parts["data"].text_context == 40
    assert run_state.standing(run).state == "done"
    store = Store(run.folder / "store")
    assert store.clip_ids == IDS
    assert store.fingerprint == run.spec.source
    assert len(json.loads((run.folder / "manifest.json").read_text())) == CLIPS
    for row, clip_id in enumerate(IDS):
        assert store.captions_of(row) == celebv_text.read_captions(
            clip_id, {}, celebv_text.text_folders(texts, store.config)
        )
        expected = celebv_text.is_validation(celebv_text.identity_of(clip_id), 0.3)
        assert bool(store.is_validation[row]) == expected


def test_the_launcher_finds_the_imported_store(registry: Registry, tmp_path: Path, texts: Path) -> None:
    run = imported(registry, write_h5(tmp_path / "old.h5", pictures(), IDS), "--captions", str(texts))
    command = [sys.executable, "launch/clip.py", "--cluster", "local", *SMALL, "--dry-run"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"parent preprocess: {run.spec.id}" in answer.stdout


def test_a_second_import_computes_nothing_and_another_file_is_another_run(
    registry: Registry, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_h5(tmp_path / "old.h5", pictures(), IDS)
    first = imported(registry, path, "--captions", str(texts))
    monkeypatch.setattr(legacy, "read_clip", lambda *_: pytest.fail("computed again"))
    assert imported(registry, path, "--captions", str(texts)).spec.id == first.spec.id
    monkeypatch.undo()
    monkeypatch.setenv(HOME_VARIABLE, str(registry.home))
    write_h5(path, pictures(seed=1), IDS)
    assert imported(registry, path, "--captions", str(texts)).spec.id != first.spec.id


def test_a_killed_import_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(
    registry: Registry, tmp_path: Path, texts: Path
) -> None:
    path = write_h5(tmp_path / "old.h5", STORED["clip"](pictures(5, 120, 128)), IDS)
    arguments = ["--videos", str(path), "--captions", str(texts), "--data.clips-per-shard", "1"]
    started = subprocess.Popen([sys.executable, "tools/import_h5.py", *arguments], cwd=REPOSITORY)
    done: set[int] = set()
    deadline = time.monotonic() + 60
    while not done and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
        done = {task for run in registry.runs() for task in run.tasks_done()}
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    (run,) = registry.runs()
    assert run_state.standing(run).state == "failed"
    done = run.tasks_done()
    assert 1 <= len(done) < CLIPS
    times = {task: (run.folder / f"tasks/{task:05d}.json").stat().st_mtime_ns for task in done}
    assert import_h5.main(arguments) == 0
    assert {task: (run.folder / f"tasks/{task:05d}.json").stat().st_mtime_ns for task in done} == times
    assert [attempt.end and attempt.end["kind"] for attempt in run.attempts()] == [None, "done"]
    resumed = run.done()
    shutil.rmtree(run.folder)
    assert import_h5.main(arguments) == 0
    assert resumed is not None and (run.done() or {})["digest"] == resumed["digest"]


def test_an_imported_store_is_verified_and_repaired_to_the_same_bytes(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(*words: str) -> tuple[int, str]:
        code = verify_store.main([run.spec.id, "--workers", "1", *words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def launch(words: list[str]) -> None:  # a process of its own, which no longer lives when the import is done again
        subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, capture_output=True)

    path = write_h5(tmp_path / "old.h5", pictures(), IDS)
    launch(["tools/import_h5.py", "--videos", str(path), *SMALL, "--captions", str(texts)])
    (run,) = registry.runs("preprocess")
    done = run.done()
    assert verify()[0] == 0
    files = ["store/frames_16/c.1.0.0.0.0", "manifest.json"]
    sound = [(run.folder / file).read_bytes() for file in files]
    (run.folder / files[0]).unlink()
    (run.folder / files[1]).write_bytes(sound[1].replace(b"person00000_0_0", b"nobody00000_0_0"))
    code, said = verify()
    assert code == 1 and all(f"damaged {file}" in said for file in files), said
    moved = path.rename(tmp_path / "away.h5")
    assert "cannot be imported again, so it cannot be repaired: --videos" in verify("--repair")[1]
    write_h5(path, pictures(seed=1), IDS)
    assert "has changed since" in verify("--repair")[1]
    assert run.done() == done
    moved.rename(path)
    code, said = verify("--repair")
    (command,) = [line.strip() for line in said.splitlines() if line.startswith("  python ")]
    assert code == 1 and command == run.spec.inputs[IMPORT_COMMAND]
    launch(shlex.split(command)[1:])
    assert [(run.folder / file).read_bytes() for file in files] == sound
    again = run.done()
    assert done is not None and again is not None and again["digest"] == done["digest"]
    assert verify()[0] == 0


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    clips, frames, side = 16, 72, 128
    clip = STORED["clip"](rearrange(pictures(1, frames, side), "1 t h w c -> t h w c"))
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("videos", (clips, 3, frames, side, side), np.float32)
        for row in range(clips):
            data[row] = rearrange(clip, "t h w c -> c t h w")
    assert path.stat().st_size > 200 << 20
    config = DataConfig(frame_sizes=(16,), fps=8.0, clips_per_shard=4, max_frames=80, vocab_size=300)
    tracemalloc.start()
    videos = legacy.LegacyVideos(path)
    values, _ = legacy.detect_values(videos.sample())
    array = LegacyArray(
        root=tmp_path / "store", videos=videos, clip_ids=legacy.synthetic_ids(clips), config=config, fingerprint="x",
        captions=lambda row: [celebv_text.Caption(kind="emotion", text="calm")],
        how=legacy.Conversion(values=values, bgr=False, source_fps=8.0),
    )  # fmt: skip
    for task in range(array.num_tasks):
        array.run_task(task, tmp_path / f"staging{task}", lambda share: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_clips_without_ids_are_one_identity_each() -> None:
    ids = legacy.synthetic_ids(100_001)
    assert len({celebv_text.identity_of(name) for name in ids}) == len(ids)


def clip_like_tokenizer(folder: Path) -> Path:
    """Save a tokenizer as CLIP's: byte-level, words end in </w>, marks at the end of the vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges = [("s", "m"), ("i", "l"), ("e", "s</w>"), ("sm", "il"), ("smil", "es</w>"), ("m", "an</w>"), ("a", "n</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate([*dict.fromkeys(words), *marks])}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shape", ["(n, 77)", "(n, 1, 77)", "input_ids"])
def test_text_comes_back_from_the_token_ids(registry: Registry, tmp_path: Path, shape: str) -> None:
    tokenizer = clip_like_tokenizer(tmp_path / "clip")
    spoken = ["a man smiles", "it's an old man, isn't it?", "", "caf\u00e9 \u7b11 50%", "a man smiles and smiles " * 9]
    encoded = torch.from_numpy(from_folder(tokenizer).encode(spoken, 77)[0]).long()
    saved = {"(n, 77)": encoded, "(n, 1, 77)": encoded[:, None], "input_ids": {"input_ids": encoded}}[shape]
    torch.save(saved, tmp_path / "old.pt")
    run = imported(
        registry, write_h5(tmp_path / "old.h5", pictures()), "--tokens", str(tmp_path / "old.pt"),
        "--tokenizer", str(tokenizer), "--data.val-fraction", "0",
    )  # fmt: skip
    store = Store(run.folder / "store")
    found = [[caption.text for caption in store.captions_of(row)] for row in range(CLIPS)]
    again = from_folder(tokenizer).encode([text for texts in found for text in texts], 77)[0]
    np.testing.assert_array_equal(again[:3], encoded[[0, 1, 3]].numpy())
    assert found[0] == ["a man smiles"]
    assert found[2] == [] and "hold no text" in store.bad_clips()[store.clip_ids[2]]
    assert "a man smiles and smiles a man".startswith(found[4][0][:29]) and not found[4][0].endswith("smile")


def test_the_wrong_tokenizer_is_refused(registry: Registry, tmp_path: Path) -> None:
    right = from_folder(clip_like_tokenizer(tmp_path / "clip"))
    tokens = right.encode(["a man smiles"] * 30, 16)[0]
    with pytest.raises(ValueError, match=r"start mark is 519 .* --tokenizer DIR"):
        legacy.decode_tokens(np.where(tokens == right.start, 3, tokens), right)
    words = (tokens > 20) & (tokens < right.start)
    with pytest.raises(ValueError, match="30 of 30 captions do not survive the tokenizer, first in row 0"):
        legacy.decode_tokens(np.where(words, right.backend.token_to_id("s"), tokens), right)


BREAKS_PICKLE = b"cos\nsystem\n(S'touch pwned'\ntR."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BREAKS_PICKLE, "not a file of plain tensors"),
        ([1, 2], "holds a list"),
        (torch.zeros(5, 77), "holds a torch.float32 tensor"),
        (torch.zeros(4, 77, dtype=torch.long), r"shape \(4, 77\); wanted \(5, 77\)"),
        (torch.zeros(5, 2, 77, dtype=torch.long), "wanted"),
    ],
)
def test_token_files_of_anything_else_are_refused(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    file = tmp_path / "old.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    path = write_h5(tmp_path / "old.h5", pictures())
    refused(capsys, message, path, "--tokens", str(file), "--tokenizer", str(tmp_path))
    assert not Path("pwned").exists()
    assert list(registry.runs()) == []


def refused(capsys: pytest.CaptureFixture[str], message: str, path: Path, *more: str) -> None:
    capsys.readouterr()
    assert import_h5.main(["--videos", str(path), *SMALL, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (np.zeros((4, 3, 16, 16), np.float32), "has 4 axes; wanted 5"),
        (np.zeros((2, 3, 3, 16, 16), np.float32), r"may be ncthw or ntchw; say which: --layout ncthw"),
        (np.zeros((2, 4, 8, 16, 16), np.float32), "c = 3 channels"),
        (np.zeros((0, 3, 8, 16, 16), np.float32), "at least one clip and frame"),
        (np.zeros((2, 3, 8, 32, 32), np.int64), "holds int64; wanted uint8 or floating point"),
        (np.zeros((2, 3, 16, 32, 32), np.float32), "never written"),
        (np.full((2, 3, 16, 32, 32), np.nan, np.float32), "not finite"),
        (np.linspace(-9, 9, 2 * 3 * 16 * 32 * 32, dtype=np.float32).reshape(2, 3, 16, 32, 32), "fit no known range"),
        (pictures(2, 16, 24), "hold no more detail"),
        (pictures(2, 15), "15 frames at 8 fps make 15 at 8 fps, fewer than --data.min-frames 16"),
    ],
)
def test_nonsense_is_refused_with_the_reason(
    registry: Registry,
    tmp_path: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    videos: np.ndarray,
    message: str,
) -> None:
    path = write_h5(tmp_path / "old.h5", videos, IDS[: len(videos)])
    refused(capsys, message, path, "--captions", str(texts))
    assert list(registry.runs()) == []


def test_files_and_options_that_cannot_work_are_refused_with_the_remedy(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = ("--captions", str(texts))
    good = write_h5(tmp_path / "good.h5", pictures(), IDS)
    refused(capsys, "no such file", tmp_path / "none.h5", *captions)
    (tmp_path / "text.h5").write_text("no HDF5 at all\n" * 99)
    refused(capsys, "no readable HDF5 file", tmp_path / "text.h5", *captions)
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    refused(capsys, "no readable HDF5 file", tmp_path / "cut.h5", *captions)
    refused(capsys, r"set --dataset to one of: clip_ids \(5,\), videos \(5, 24, 32", good, *captions, "--dataset", "x")
    refused(capsys, "just one of --captions FOLDER and --tokens FILE", good)
    refused(capsys, "--tokenizer DIR", good, "--tokens", str(good))
    refused(capsys, "no such recipe", good, *captions, "--recipe", "nothing")
    refused(capsys, r"--ids LIST", write_h5(tmp_path / "anonymous.h5", pictures()), *captions)
    refused(capsys, "'same' 5 times", write_h5(tmp_path / "same.h5", pictures(), ["same"] * 5), *captions)
    (tmp_path / "ids.txt").write_text("\n".join(IDS[:3]))
    refused(capsys, "3 ids for 5 clips", good, *captions, "--ids", str(tmp_path / "ids.txt"))
    strangers = write_h5(tmp_path / "strangers.h5", pictures(), [f"unknown{n}" for n in range(5)])
    refused(capsys, r"no caption file .* such as unknown0\.txt", strangers, *captions)
    with h5py.File(good, "r+") as file:
        del file["videos"].attrs["fps"]
    refused(capsys, "--source-fps 30", good, *captions)
    refused(capsys, "greater than 0", good, *captions, "--source-fps", "-1")
    assert list(registry.runs()) == []


def test_ambiguous_axes_are_taken_as_told(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "old.h5", np.zeros((2, 3, 3, 16, 20), np.uint8))
    assert legacy.LegacyVideos(path, layout="ntchw").num_frames == 3
    with pytest.raises(ValueError, match="is not nthwc"):
        legacy.LegacyVideos(path, layout="nthwc")


def test_a_dry_run_tells_and_changes_nothing(
    registry: Registry, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_h5(tmp_path / "old.h5", STORED["clip"](pictures()), IDS)
    assert import_h5.main(["--videos", str(path), *SMALL, "--captions", str(texts), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "axes nthwc" in said and "CLIP's mean" in said and "channels: RGB" in said
    assert not registry.home.exists()


def test_a_bad_clip_is_not_mistaken_for_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = legacy.LegacyVideos(write_h5(tmp_path / "old.h5", pictures()))

    class Failing:
        def __getitem__(self, place: object) -> None:
            raise OSError("Can't synchronously read data (file read failed: errno = 5, error message = 'I/O error')")

    videos.data = Failing()
    with pytest.raises(OSError, match="errno = 5"):
        videos.read(0, slice(0, 1))
