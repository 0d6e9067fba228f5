"""Sampling as an array: killed anywhere only the missing is made, to the same bytes; what lies beside each video."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dalle2_video.data.store import Store
from dalle2_video.data_config import CaptionConfig
from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.digests import file_digest
from dalle2_video.generation import Request, SampleConfig, VideoPipeline
from dalle2_video.generation.requests import requests_of
from dalle2_video.generation.sample import UNFINISHED, SampleArray
from dalle2_video.generation.split_prompts import prompts_of_split
from dalle2_video.generation.start_frames import read_start
from dalle2_video.generation.video_file import enlarge, read_mp4, write_mp4
from experiments import files
from tools.bench.random_chain import make, smallest

FEW = SamplerConfig(steps=2)
CONFIG = SampleConfig(
    prompts=("a red circle", "<script>alert(1)</script> $(id)", "-a star", "a moon", "a square"),
    videos_at_once=2,
    batches_per_task=2,
    prior=SamplerConfig(method="ddpm", steps=2),
    decoder=FEW,
    temporal_sr=FEW,
    spatial_sr=FEW,
)
STEPS = ("text", "prior", "decoder", "temporal_sr", "spatial_sr")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("chain"), smallest())


Make = Callable[..., SampleArray]


@pytest.fixture
def array(exports: dict[str, Path], tmp_path: Path) -> Make:
    def build(root: str, config: SampleConfig = CONFIG, **more: Any) -> SampleArray:
        folder = tmp_path / root
        return SampleArray(
            root=folder,
            exports=lambda: exports,
            config=config,
            seed=3,
            device=torch.device("cpu"),
            publish=lambda staged, name: files.publish(staged, folder / name),
            made_by={"run": "abc", "parents": {"clip": {"id": "def", "digest": "0" * 64}}},
            code="c0de",
            **more,
        )

    return build


def work(array: SampleArray, staging: Path, on_progress: Callable[[float], None] = lambda share: None) -> list[dict]:
    """Do all tasks and the last step, as slurm/array_job.py does."""

    def fresh() -> Path:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    records = {}
    for task in range(array.num_tasks):
        published, records[task] = array.run_task(task, fresh(), on_progress)
        assert published == []
    published, summary = array.finish(records, fresh())
    for staged, name in published:
        files.publish(staged, array.root / name)
    assert summary["videos"] == len(array.requests)
    return json.loads((array.root / "samples.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(Exception):  # noqa: N818
    pass


def test_killed_at_every_moment_only_the_missing_is_made_to_the_same_bytes(array: Make, tmp_path: Path) -> None:
    undisturbed = array("undisturbed")
    entries = work(undisturbed, tmp_path / "staging")
    assert [entry["file"] for entry in entries] == [f"{number:04d}.mp4" for number in range(5)]
    broken, made, kills = array("broken"), [], 0
    run = VideoPipeline.run
    calls = 0

    def stops(share: float) -> None:
        nonlocal calls
        calls += 1
        if calls > 2 + kills:  # each life is a bit longer
            raise Killed

    def counted(pipeline: VideoPipeline, step: str, batch: list[Request], *rest: Any, **named: Any) -> Any:
        found = run(pipeline, step, batch, *rest, **named)
        made.append((step, batch[0].prompt))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoPipeline, "run", counted)
        while True:
            calls = 0
            try:
                work(broken, tmp_path / "staging", stops)
                break
            except Killed:
                kills += 1
    assert kills >= 5
    # No step of a batch was finished twice.
    assert len(made) == len({*made}) == 3 * len(STEPS)
    assert content(broken.root) == content(undisturbed.root)
    assert not (broken.root / UNFINISHED).exists()


def test_of_a_task_killed_while_it_writes_the_written_videos_stay(array: Make, tmp_path: Path) -> None:
    undisturbed = array("undisturbed", dataclasses.replace(CONFIG, also=("gif", "frames")))
    work(undisturbed, tmp_path / "staging")
    for left in ("0002.mp4", "0002.json", "0002.gif"):
        (undisturbed.root / left).unlink()
    before = content(undisturbed.root)
    published: list[str] = []
    again = array("undisturbed", dataclasses.replace(CONFIG, also=("gif", "frames")))
    publish = again._publish
    again._publish = lambda staged, name: (published.append(name), publish(staged, name))[1]  # type: ignore[func-returns-value]
    work(again, tmp_path / "staging")
    assert {name for name in published if not name.startswith(UNFINISHED)} == {
        "0002.mp4", "0002.json", "0002.gif", "0002",
    }  # fmt: skip
    after = content(again.root)
    assert before.items() <= after.items() and "0002.mp4" in after


def test_by_stage_and_one_by_one_give_the_same_videos(array: Make, tmp_path: Path) -> None:
    by_stage = array("by_stage", dataclasses.replace(CONFIG, videos_at_once=1, batches_per_task=5))
    one_by_one = array("one_by_one", dataclasses.replace(CONFIG, videos_at_once=1, batches_per_task=1))
    assert (by_stage.num_tasks, one_by_one.num_tasks) == (1, 5)
    for each in (by_stage, one_by_one):
        work(each, tmp_path / "staging")
    for number in range(5):
        name = f"{number:04d}.mp4"
        assert (by_stage.root / name).read_bytes() == (one_by_one.root / name).read_bytes()


def test_beside_each_video_lies_all_that_it_takes_to_make_it_again(
    array: Make, exports: dict[str, Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, also=("gif", "webp", "frames"), seeds=(5, 6))
    made = array("made", config)
    entries = work(made, tmp_path / "staging")
    assert [(entry["seed"], entry["repeat"]) for entry in entries[:3]] == [(5, 0), (6, 0), (5, 0)]
    entry = entries[3]
    record = json.loads((made.root / "0003.json").read_text())
    assert record["sample"] == entry and entry["sha256"] == file_digest(made.root / entry["file"])
    assert record["made_by"]["run"] == "abc" and record["code"] == "c0de" and record["versions"]["torch"]
    assert entry["also"] == ["0003.gif", "0003.webp", "0003"]
    # Again, from the record alone.
    batch = [Request(prompt=config.prompts[1], seed=seed) for seed in (5, 6)]
    options = SampleConfig(decoder=FEW, temporal_sr=FEW, spatial_sr=FEW, prior=config.prior, videos_at_once=2)
    video = VideoPipeline(exports).generate(batch, options)[record["place_in_batch"]].numpy()
    again = tmp_path / "again.mp4"
    write_mp4(again, enlarge(video), record["fps"])
    assert np.array_equal(read_mp4(again), read_mp4(made.root / entry["file"]))
    frames = [np.asarray(Image.open(made.root / "0003" / f"{number:04d}.png")) for number in range(8)]
    assert np.array_equal(np.stack(frames), video)
    webp, gif = (Image.open(made.root / f"0003.{suffix}") for suffix in ("webp", "gif"))
    assert (webp.n_frames, gif.n_frames) == (8, 8) and gif.info["duration"] in (120, 130)
    assert np.array_equal(np.asarray(webp.convert("RGB")), enlarge(video)[0])
    with av.open(str(made.root / entry["file"])) as container:
        assert container.metadata["title"] == config.prompts[1]
        told = json.loads(container.metadata["comment"])
        assert (told["prompt"], told["seed"], told["run"]) == (config.prompts[1], 6, "abc")
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    head = (made.root / entry["file"]).read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")


def test_the_best_candidate_is_kept_and_all_scores_are_on_record(array: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, prompts=CONFIG.prompts[:3], candidates=3, videos_at_once=2, batches_per_task=3)
    made = array("made", config)
    assert (config.videos_per_task, config.num_tasks) == (2, 2)
    for entry in work(made, tmp_path / "staging"):
        assert len(entry["clip_scores"]) == 3 and entry["clip_score"] == max(entry["clip_scores"])
        assert entry["clip_scores"].index(entry["clip_score"]) == entry["candidate"]


def test_the_texts_own_embedding_can_be_decoded_instead_of_the_priors(array: Make, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, prompts=CONFIG.prompts[:1])
    made = {kind: array(kind, dataclasses.replace(config, embedding=kind)) for kind in ("text", "prior")}
    for each in made.values():
        work(each, tmp_path / "staging")
    text, prior = (read_mp4(made[kind].root / "0000.mp4") for kind in ("text", "prior"))
    assert text.shape == prior.shape and not np.array_equal(text, prior)


def test_videos_begin_with_the_file_that_the_run_was_started_with(array: Make, tmp_path: Path) -> None:
    image = tmp_path / "start.png"
    Image.new("RGB", (40, 24), (255, 0, 0)).save(image)
    config = dataclasses.replace(CONFIG, prompts=("a star",), start=f"sha256:{file_digest(image)}")
    made = array("made", config, start=image)
    (entry,) = work(made, tmp_path / "staging")
    assert json.loads((made.root / "0000.json").read_text())["options"]["start"] == config.start
    assert read_mp4(made.root / entry["file"]).shape == (8, 256, 256, 3)
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(ValueError, match="is not what the run was started with"):
        work(array("other", config, start=image), tmp_path / "staging")


def test_start_frames_are_the_centre_of_an_image_or_all_frames_of_a_video(tmp_path: Path) -> None:
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[:, :10] = pixels[:, 40:] = 255  # beside the centre square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_start(tmp_path / "a.png", 8, 4.0), np.zeros((1, 8, 8, 3), np.uint8))
    video = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 64 * 64 * 3).reshape(24, 64, 64, 3)
    write_mp4(tmp_path / "b.mp4", video, 8.0)
    found = read_start(tmp_path / "b.mp4", 16, 4.0)
    assert found.shape == (12, 16, 16, 3)
    assert np.abs(found[:, 8, 8, 0].astype(int) - np.arange(0, 240, 20)).max() <= 11
    (tmp_path / "c.png").write_text("no image")
    (tmp_path / "d.mp4").write_bytes((tmp_path / "b.mp4").read_bytes()[:700])
    for name in ("c.png", "d.mp4", "none.mp4", "none.png"):
        with pytest.raises(ValueError, match=f"{name}: "):
            read_start(tmp_path / name, 8, 4.0)


def test_captions_of_a_split_are_prompts(store_path: Path) -> None:
    store = Store(store_path)
    clips = len(store.usable("train"))
    config = SampleConfig(split="train", split_clips=clips)
    found = prompts_of_split(store, config, CaptionConfig(), seed=0)
    assert len(found) == clips
    for row, text in zip(store.usable("train").tolist(), found, strict=True):
        assert text in [caption.text for caption in store.captions_of(row)]
    fewer = prompts_of_split(store, SampleConfig(split="train", split_clips=2), CaptionConfig(), seed=0)
    assert {*fewer} <= {*found}
    with pytest.raises(ValueError, match=f"give --sample.split-clips {clips}"):
        prompts_of_split(store, SampleConfig(split="train", split_clips=99), CaptionConfig(), seed=0)


def test_requests_go_by_prompt_seed_and_repeat_and_no_two_are_the_same() -> None:
    config = SampleConfig(prompts=("a", "b", "a"), samples_per_prompt=2, seeds=(1, 2))
    found = requests_of(config, config.prompts, seed=0)
    assert len(found) == config.num_videos == 12
    assert len({request.number for request in found}) == 12
    assert [(request.prompt, request.seed, request.repeat) for request in found[:4]] == [
        ("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("a", 2, 1),
    ]  # fmt: skip
    assert [request.repeat for request in found[8:10]] == [2, 3]
    path = SampleConfig(prompts=("a", "b", "c"), interpolate=4)
    found = requests_of(path, path.prompts, seed=0)
    assert len(found) == path.num_videos == 9
    assert [(request.prompt, request.towards, request.share) for request in found[3:6]] == [
        ("a", "b", 0.75), ("b", "c", 0.0), ("b", "c", 0.25),
    ]  # fmt: skip
    assert (found[-1].prompt, found[-1].share) == ("c", 0.0)
    assert len({request.number for request in found}) == 1
