"""Evaluations of runs that are named, of checkpoints and of generated videos, through the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import REPOSITORY, Chain, ranks_of, with_parents
from torch import Tensor, nn

from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig
from dalle2_video.digests import file_digest
from dalle2_video.evaluation import frechet
from dalle2_video.evaluation.videos import as_if_generated
from dalle2_video.generation.video_file import enlarge, write_mp4
from dalle2_video.training.commit_export import export_commit
from dalle2_video.training.export import export_digest
from experiments import judged, kept_checkpoint
from experiments.identity import run_id
from experiments.run import Run, RunSpec
from launch import watching
from launch.arguments import parse
from launch.stages import STAGES
from tools import runs

TRAIN = ["--evaluate.split", "train"]
WINDOW = WindowConfig(size=16, num_frames=16, stride=1)
"""Of temporal super-resolution, the last stage."""


def command(*flags: str) -> list[str]:
    return [sys.executable, "launch/evaluate.py", "--cluster", "local", *flags]


def launch(chain: Chain, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags), cwd=REPOSITORY, env=chain.environment(), capture_output=True, text=True
    )  # fmt: skip


def newest(chain: Chain, stage: str) -> Run:
    return next(run for run in chain.registry.runs(stage) if run.done())


def evaluated(chain: Chain, target: Run, *flags: str) -> tuple[Run, dict[str, Any]]:
    answer = launch(chain, "--of", target.id, *flags)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = max((one.evaluation for one in judged.judgements(chain.registry, target)), key=lambda one: one.created)
    return run, json.loads((run.folder / judged.EVALUATION).read_text())


def figures_in(found: dict[str, Any]) -> list[dict[str, float]]:
    return [
        one for of in found.values() if isinstance(of, dict) for one in of.values()
        if isinstance(one, dict) and "value" in one
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chain(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The trained chain in a home of its own: the sample run below is none that other tests should meet."""
    home = tmp_path_factory.mktemp("judged")
    (home / "runs").mkdir()
    for stage in ("preprocess", "clip", "embed", "prior", "decoder", "temporal_sr"):
        (home / "runs" / stage).symlink_to(chain.home / "runs" / stage)
    return Chain(home=home, data=chain.data)


class Means(nn.Module):
    """Stands for I3D and for Inception: means of each channel and their spread."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], dim=1) / 255


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("networks") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return ["--evaluate.video-features", str(path), "--evaluate.frame-features", str(path)]


def real_windows(chain: Chain) -> tuple[Store, np.ndarray, list[np.ndarray]]:
    store = Store(newest(chain, "preprocess").folder / "store")
    rows = store.usable("train")
    starts = (store.num_frames[rows] - WINDOW.span) // 2
    reader = store.frames(16)
    pairs = zip(rows.tolist(), starts.tolist(), strict=True)
    return store, rows, [reader.read(row, start, start + 16, 1) for row, start in pairs]


@pytest.fixture(scope="module")
def perfect(chain: Chain) -> Run:
    """A sample run whose videos are the train split's own windows, each with one of its clip's captions as prompt."""
    store, rows, windows = real_windows(chain)
    parents = {stage: newest(chain, stage).as_parent() for stage in ("clip", "prior", "decoder", "temporal_sr")}
    config = {"seed": 0, "sample": {"prompts": ["made up"]}}
    run = chain.registry.create(
        RunSpec(
            stage="sample", recipe="tiny", id=run_id(stage="sample", config=config, source=None, parents=parents),
            config=config, source=None, parents=parents,
        )
    )  # fmt: skip
    folder = run.folder / "samples"
    folder.mkdir()
    entries = []
    for number, (row, frames) in enumerate(zip(rows.tolist(), windows, strict=True)):
        write_mp4(folder / f"{number:04d}.mp4", enlarge(frames), 8.0)
        digest = file_digest(folder / f"{number:04d}.mp4")
        prompt = f"{store.captions_of(row)[0].text}"
        entries.append({"file": f"{number:04d}.mp4", "prompt": prompt, "sha256": digest})
    (folder / "samples.json").write_text(json.dumps(entries))
    run.mark_done({"digest": "0" * 64})
    return run


@pytest.fixture(scope="module")
def judged_videos(chain: Chain, perfect: Run, networks: list[str]) -> tuple[Run, dict[str, Any]]:
    return evaluated(chain, perfect, *TRAIN, *networks)


def test_videos_that_are_the_real_ones_have_no_distance_by_any_features(
    chain: Chain, judged_videos: tuple[Run, dict[str, Any]]
) -> None:
    run, found = judged_videos
    figures = found["samples"]
    for name in ("frechet_clip", "frechet_clip_frames", "fvd", "fid"):
        assert figures[name]["value"] == pytest.approx(0, abs=1e-7), name
        assert figures[name]["high"] > 1e-4
    for name in ("kernel_clip", "kernel_clip_frames", "kvd", "kid"):
        assert figures[name]["low"] < figures[name]["high"] and abs(figures[name]["value"]) < 0.1
    assert (found["videos"], found["clips"], found["frames_per_video"]) == (20, 20, 4)
    assert -1 <= figures["clip_score_unrelated"]["value"] <= 1
    assert set(run.spec.parents) == {"preprocess", "clip", "sample"}
    assert found["made_from"]["sample"]["id"] == run.spec.parents["sample"].id
    assert set(run.spec.inputs) == {"video_features", "frame_features"}
    assert run.spec.config["evaluate"]["video_features"].startswith("sha256:")


def test_fvd_is_that_of_the_network_s_features_by_hand(
    chain: Chain, judged_videos: tuple[Run, dict[str, Any]], networks: list[str]
) -> None:
    run, _ = judged_videos
    from safetensors.numpy import load_file

    _, _, windows = real_windows(chain)
    network = torch.jit.load(networks[1])
    shards = [load_file(path) for path in sorted((run.folder / "evaluation/shards").iterdir())]
    for name in ("real_video_features", "generated_video_features"):
        stored = np.concatenate([shard[name] for shard in shards if name in shard])
        videos = np.stack([as_if_generated(frames, 8.0) for frames in windows]).transpose(0, 4, 1, 2, 3)
        by_hand = network(torch.from_numpy(videos).float(), return_features=True).numpy()
        assert stored == pytest.approx(by_hand, rel=1e-5)
    halves = frechet.distance(by_hand[:10], by_hand[10:])
    assert halves > 1e-4  # so that the 0 above says something


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    chain: Chain, perfect: Run, judged_videos: tuple[Run, dict[str, Any]], networks: list[str]
) -> None:
    run, _ = judged_videos
    made = {path: path.read_bytes() for path in (run.folder / "evaluation").rglob("*.*")}
    assert len(made) == 3 + 1
    for path in (run.folder / "DONE", run.task_file(1), run.task_file(2), run.folder / judged.EVALUATION):
        path.unlink()
    kept = run.task_file(0).stat().st_mtime_ns
    launcher = subprocess.Popen(
        command("--of", perfect.id, *TRAIN, *networks, "--tasks", "1"),
        cwd=REPOSITORY, env=chain.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(run.tasks_done()) < 2:
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.01)
    killed = ranks_of(run)
    for process in killed:
        os.kill(process, signal.SIGKILL)
    said, _ = launcher.communicate(timeout=120)  # its supervisor starts it again
    assert launcher.returncode == 0 and run.done(), said
    assert killed and [attempt.end for attempt in run.attempts() if (attempt.end or {}).get("kind") == "error"]
    assert {path: path.read_bytes() for path in made} == made
    assert run.task_file(0).stat().st_mtime_ns == kept


def test_a_decoder_is_judged_by_bits_which_its_facts_show(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = newest(chain, "decoder")
    bounds = ["--evaluate.bound-clips", "3", "--evaluate.bound-steps", "2"]
    run, found = evaluated(chain, decoder, *TRAIN, *bounds)
    bits = found["decoder"]
    assert found["clips"] == 3 and found["steps"] == 2
    assert set(bits) == {f"{kind}_bits_per_dim{part}" for kind in ("small", "large") for part in ("", "_of_last_step")}
    for kind in ("small", "large"):
        assert bits[f"{kind}_bits_per_dim"]["value"] >= bits[f"{kind}_bits_per_dim_of_last_step"]["value"] > 0
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(chain.home))
    monkeypatch.chdir(REPOSITORY)
    assert runs.main(["show", decoder.id]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"evaluate/{run.folder.name}" in shown and "small_bits_per_dim" in shown


def test_what_cannot_be_judged_is_refused_with_the_remedy(
    chain: Chain, perfect: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(chain.home))
    embed, prior = newest(chain, "embed"), newest(chain, "prior")
    for flags, words in (
        (["--of", embed.id], "cannot be judged"),
        (["--of", prior.id, "--evaluate.bound-steps", "9"], "is of decoder runs, and a prior run is judged"),
        (["--of", prior.id, "--captions.choose", "joined"], "is judged with what it was made with"),
        (["--of", prior.id, "--parents.clip", "x"], "knows its own CLIP alone"),
        (["--of", prior.id, "--parents.preprocess", "x"], "the store is that of the CLIP"),
        (["--of", prior.id, "--after"], "leave --after out"),
        (["--watch", perfect.id], "takes checkpoints of decoder, prior, clip runs"),
        (["--watch", prior.id, "--dry-run"], "--watch has no dry run"),
        (["--of", perfect.id, "--evaluate.video-features", str(tmp_path / "none.pt")], "no such file"),
        (["--evaluate.frame-features", "inception.pt"], "a clip run is judged"),
    ):
        assert watching.main("evaluate", ["--cluster", "local", *flags]) == 2
        assert words in capsys.readouterr().err
    before = len(list(chain.registry.runs("evaluate")))
    assert watching.main("evaluate", ["--cluster", "local", "--of", prior.id, "--dry-run"]) == 0
    assert "launch: a new run" in capsys.readouterr().out and len(list(chain.registry.runs("evaluate"))) == before


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "temporal_sr"])
def test_a_checkpoint_is_exported_as_the_training_itself_exports_it(chain: Chain, stage: str, tmp_path: Path) -> None:
    run = newest(chain, stage)
    texts = {path.name: path.read_text() for path in (run.folder / "export").iterdir() if path.suffix == ".json"}
    export_commit(run.commits()[-1].path, tmp_path, texts)
    assert export_digest(tmp_path) == (run.done() or {})["digest"]


@pytest.mark.parametrize("stage", ["prior", pytest.param("clip", marks=pytest.mark.slow)])
def test_the_last_checkpoint_and_the_finished_run_have_the_same_figures(
    chain: Chain, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(chain.home))
    monkeypatch.chdir(REPOSITORY)
    target, flags = newest(chain, stage), [*TRAIN, "--evaluate.max-clips", "7"]
    typed = parse(STAGES["evaluate"], ["--cluster", "local", "--watch", target.id, "--wait", "yes", *flags])
    last = target.commits()[-1]
    assert watching._made(chain.registry, "evaluate", typed, target, last)
    assert watching._made(chain.registry, "evaluate", typed, target, None)
    of_step, finished = (
        one for one in judged.judgements(chain.registry, target) if (one.found or {}).get("clips") == 7
    )
    assert (of_step.step, finished.step) == (last.step, None)
    assert figures_in(dict(of_step.found or {})) == figures_in(dict(finished.found or {})) != []
    assert dict(of_step.figures()).keys() == dict(finished.figures()).keys()
    assert (of_step.found or {})["made_from"][stage]["step"] == last.step
    if stage == "prior":
        cosines = [one for name, one in of_step.figures() if name.startswith("prior.cosine")]
        assert len(cosines) >= 3
        assert all(-1 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in cosines)
        assert of_step.evaluation.spec.parents["clip"] == target.spec.parents["clip"]
    # What kept the checkpoint alive is gone, and the checkpoint is not.
    assert not (of_step.evaluation.folder / kept_checkpoint.CHECKPOINT).exists()
    assert not (of_step.evaluation.folder / kept_checkpoint.EXPORT).exists()
    assert last.path.is_dir()


def test_the_recipe_s_clip_and_the_same_clip_named_are_one_evaluation(chain: Chain) -> None:
    by_recipe = chain.launch("evaluate", "--dry-run").stdout.split(":")[0]
    named = launch(chain, "--of", newest(chain, "clip").id, "--dry-run").stdout.split(":")[0]
    assert by_recipe == named and named.startswith("evaluate/tiny-")


@pytest.mark.slow
def test_a_watcher_beside_a_training_evaluates_its_checkpoints_and_ends_with_it(chain: Chain, tmp_path: Path) -> None:
    chain = with_parents(chain, tmp_path / "home", "clip")
    flags = ["--clip.optim.steps", "150", "--checkpoint-every", "5"]
    trainer = subprocess.Popen(
        chain.command("clip", *flags), cwd=REPOSITORY, env=chain.environment(), stdout=subprocess.DEVNULL
    )
    deadline, run = time.monotonic() + 300, None
    while run is None or not run.commits():
        assert time.monotonic() < deadline and trainer.poll() is None
        run = next(chain.registry.runs("clip"), None)
        time.sleep(0.05)
    answer = launch(chain, "--watch", run.id, *TRAIN, "--evaluate.max-clips", "5")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert trainer.wait(60) == 0 and run.done()
    found = judged.judgements(chain.registry, run)
    steps = [one.step for one in found]
    assert steps[-1] is None and steps[:-1] and all(step is not None and step < 150 for step in steps[:-1])
    assert all(one.found and len(list(one.figures())) == 10 for one in found)
    assert len({json.dumps(figures_in(dict(one.found or {}))) for one in found}) > 1, "the weights never changed"
