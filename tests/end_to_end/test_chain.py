"""The whole chain through the launchers, as a user runs it: real clips, real DeepSpeed ranks, real mp4 files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import zarr
from launching import REPOSITORY, Chain, ranks_of
from PIL import Image

from dalle2_video.config import SampleConfig
from dalle2_video.data.store import Store
from dalle2_video.generation.pipeline import Request, VideoPipeline
from dalle2_video.generation.video_file import enlarge, read_mp4, write_mp4
from experiments.run import Run

PROMPTS = ["a red circle moves left", "a blue square moves up"]


@pytest.fixture(scope="module")
def sampled(chain: Chain) -> Run:
    return chain.run("sample", "--sample.prompts", *PROMPTS)


def newest(chain: Chain, stage: str) -> Run:
    return next(run for run in chain.registry.runs(stage) if run.done())


def test_store_opens_with_plain_zarr_and_keeps_every_caption_line(chain: Chain) -> None:
    path = newest(chain, "preprocess").folder / "store"
    group = zarr.open_group(str(path), mode="r")
    store = Store(path)
    frames = group["frames_16"]
    assert frames.shape[0] == store.num_clips == 24 and frames.dtype == np.uint8
    written = 0
    for clip, clip_id in enumerate(store.clip_ids):
        lines = [
            line
            for folder in sorted((chain.data / "texts").iterdir())
            for line in (folder / f"{clip_id}.txt").read_text().splitlines()
        ]
        assert sorted(caption.text for caption in store.captions_of(clip)) == sorted(lines)
        written += len(lines)
    assert group["tokens"].shape[0] == written


def test_every_stage_is_done_and_pins_its_parents_by_digest(chain: Chain) -> None:
    for stage, parents in {
        "clip": {"preprocess"},
        "embed": {"preprocess", "clip"},
        "prior": {"preprocess", "clip", "embed"},
        "decoder": {"preprocess", "clip", "embed"},
        "temporal_sr": {"preprocess", "clip"},
    }.items():
        run = newest(chain, stage)
        assert set(run.spec.parents) == parents
        for name, pinned in run.spec.parents.items():
            record = newest(chain, name).done()
            assert record is not None and record["digest"] == pinned.digest


def test_training_ran_on_two_zero3_ranks(chain: Chain) -> None:
    run = newest(chain, "decoder")
    assert run.attempts()[-1].claim["world_size"] == 2
    shards = [path.name for path in run.commits()[-1].path.glob("*.safetensors")]
    assert sorted(shards) == ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"]


def test_the_same_command_again_finds_everything_done(chain: Chain) -> None:
    attempts = newest(chain, "clip").newest_attempt()
    answer = chain.launch("clip")
    assert answer.returncode == 0 and "DONE" in answer.stdout
    assert newest(chain, "clip").newest_attempt() == attempts


def test_sample_writes_playable_videos_a_list_and_a_contact_sheet(sampled: Run) -> None:
    folder = sampled.folder / "samples"
    entries = json.loads((folder / "samples.json").read_text())
    assert [entry["prompt"] for entry in entries] == PROMPTS
    for entry in entries:
        with av.open(str(folder / entry["file"])) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.metadata["title"] == entry["prompt"]
            assert container.streams.video[0].average_rate == 8
        assert read_mp4(folder / entry["file"]).shape == (16, 256, 256, 3)
    assert Image.open(folder / "contact_sheet.png").width > 500


def exports_of(run: Run, home: Path) -> dict[str, Path]:
    return {
        stage: next(home.glob(f"runs/{stage}/*-{parent.id}")) / "export" for stage, parent in run.spec.parents.items()
    }


def test_a_video_depends_on_its_prompt_and_seed_and_on_nothing_else(chain: Chain, sampled: Run) -> None:
    pipeline = VideoPipeline(exports_of(sampled, chain.home))
    one, other_prompt, other_seed = (
        Request(prompt=PROMPTS[0], seed=0),
        Request(prompt=PROMPTS[1], seed=0),
        Request(prompt=PROMPTS[0], seed=1),
    )
    together = pipeline.generate([one, other_prompt, other_seed]).numpy().astype(int)
    alone = pipeline.generate([one]).numpy().astype(int)[0]
    # Another batch size may sum in another order, which can move a rounded grey level by one.
    assert np.abs(together[0] - alone).max() <= 1
    assert np.abs(together[0] - together[1]).mean() > 1
    assert np.abs(together[0] - together[2]).mean() > 1


def test_guidance_uses_the_dropped_condition(chain: Chain, sampled: Run) -> None:
    pipeline = VideoPipeline(exports_of(sampled, chain.home))
    requests = [Request(prompt=PROMPTS[0], seed=0), Request(prompt=PROMPTS[1], seed=0)]
    options = (SampleConfig(decoder_guidance=scale) for scale in (1.0, 6.0))
    unguided, guided = (pipeline.generate(requests, option).numpy() for option in options)
    assert not np.array_equal(unguided, guided)


def test_samples_are_the_same_when_made_again(chain: Chain, sampled: Run) -> None:
    before = [path.read_bytes() for path in sorted((sampled.folder / "samples").glob("*.mp4"))]
    (sampled.folder / "DONE").unlink()
    for path in [*sampled.folder.glob("tasks/*"), *sampled.folder.glob("samples/*")]:
        path.unlink()
    again = chain.run("sample", "--sample.prompts", *PROMPTS)
    assert again.folder == sampled.folder
    assert [path.read_bytes() for path in sorted((again.folder / "samples").glob("*.mp4"))] == before


def test_an_exported_chain_gives_the_same_videos_to_the_byte(chain: Chain, sampled: Run, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    command = [sys.executable, "tools/export.py", sampled.spec.id, "--out", str(out), "--license", "cc-by-nc-4.0"]
    answer = subprocess.run(command, cwd=REPOSITORY, env=chain.environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    for parent in sampled.spec.parents.values():
        assert parent.id in card and parent.digest[:16] in card
    assert "clips to train on" in card and "validation" in card
    again = subprocess.run(command, cwd=REPOSITORY, env=chain.environment(), capture_output=True, text=True)
    assert again.returncode == 2 and "exists; give another folder" in again.stderr

    pipeline = VideoPipeline.from_export(out, "cpu")
    record = json.loads((sampled.folder / "samples/0000.json").read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(record["threads"])
    try:
        videos = pipeline.generate([Request(prompt=prompt, seed=0) for prompt in PROMPTS])
    finally:
        torch.set_num_threads(threads)
    for number, video in enumerate(videos):
        pipeline.save(tmp_path / "again.mp4", video)
        made = sampled.folder / f"samples/{number:04d}.mp4"
        assert np.array_equal(read_mp4(tmp_path / "again.mp4"), read_mp4(made))
        with av.open(str(made)) as container:
            tags = dict(container.metadata)
        write_mp4(tmp_path / "tagged.mp4", enlarge(video.numpy()), pipeline.fps(), metadata={
            name: tags[name] for name in ("title", "comment")
        })  # fmt: skip
        assert (tmp_path / "tagged.mp4").read_bytes() == made.read_bytes()


@pytest.mark.slow
def test_a_killed_task_goes_on_with_what_is_missing(chain: Chain, sampled: Run) -> None:
    """Killed once its first batches are between two stages, and once videos are written; other options, other run."""
    flags = [
        "--sample.prompts",
        *PROMPTS,
        "a green star",
        "--sample.videos-at-once",
        "1",
        "--sample.batches-per-task",
        "3",
    ]
    folder: Path | None = None
    for pattern in ("unfinished/*/*-1.safetensors", "*.json"):
        process = subprocess.Popen(
            chain.command("sample", *flags), cwd=REPOSITORY, env=chain.environment(), start_new_session=True
        )
        while True:
            runs = [run for run in chain.registry.runs("sample") if run.spec.id != sampled.spec.id]
            if runs and list((runs[0].folder / "samples").glob(pattern)):
                break
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        folder = runs[0].folder
        for rank in ranks_of(runs[0]):
            os.kill(rank, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert folder is not None
    kept = {path: path.stat().st_mtime_ns for path in (folder / "samples").glob("*.json")}
    done = chain.run("sample", *flags, "--retry")
    assert done.folder == folder and len(json.loads((folder / "samples/samples.json").read_text())) == 3
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert not (folder / "samples/unfinished").exists()
