"""Videos of checkpoints through the launcher: the last one's are those of the finished run, frame for frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import REPOSITORY, TINY, Chain, with_parents

from dalle2_video.generation.video_file import read_mp4
from experiments import kept_checkpoint
from experiments.run import Run
from launch import watching
from launch.arguments import parse
from launch.stages import STAGES

FEW = [word for stage in ("prior", "decoder", "temporal-sr") for word in (f"--sample.{stage}.steps", "2")]


@pytest.mark.parametrize("stage", ["decoder", pytest.param("temporal_sr", marks=pytest.mark.slow)])
def test_the_last_checkpoint_and_the_finished_run_make_the_same_videos(
    chain: Chain, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = with_parents(chain, tmp_path / "home")
    for parent in ("prior", "decoder", "temporal_sr"):
        (trained.home / "runs" / parent).symlink_to(chain.home / "runs" / parent)
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(trained.home))
    monkeypatch.chdir(REPOSITORY)
    target = next(run for run in trained.registry.runs(stage) if run.is_done())
    words = [*(word for part in ("prior", "decoder") if part != stage for word in TINY[part]), *FEW]
    prompts = ["--sample.prompts", "a red circle", "a blue square", "--sample.seeds", "3", "--wait", "yes"]
    arguments = parse(STAGES["sample"], ["--cluster", "local", "--watch", target.id, *prompts, *words])
    last = target.commits()[-1]
    assert watching._made(trained.registry, "sample", arguments, target, last)
    assert watching._made(trained.registry, "sample", arguments, target, None)
    by_step = {run.spec.parents[stage].step: run for run in trained.registry.runs("sample")}
    of_step, finished = by_step[last.step], by_step[None]
    made = {"clip", "prior", "decoder"} | {stage}
    assert set(of_step.spec.parents) == set(finished.spec.parents) == made
    for name in ("0000", "0001"):
        ours, theirs = (read_mp4(run.folder / f"samples/{name}.mp4") for run in (of_step, finished))
        assert np.array_equal(ours, theirs) and ours.std() > 1
        assert record(of_step, name)["made_by"]["parents"][stage]["step"] == last.step
        assert record(of_step, name)["samplers"]["decoder"] == {"method": "ddim", "steps": 2, "guidance": 3.0}
        assert record(of_step, name)["sample"]["seed"] == 3
    # What kept the checkpoint alive is gone, and the checkpoint is not.
    assert not (of_step.folder / kept_checkpoint.CHECKPOINT).exists()
    assert not (of_step.folder / kept_checkpoint.EXPORT).exists()
    assert last.path.is_dir() and (target.folder / "export").is_dir()


def record(run: Run, name: str) -> dict[str, Any]:
    return json.loads((run.folder / f"samples/{name}.json").read_text())
