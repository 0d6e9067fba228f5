"""Progressive distillation through the launchers: a decoder, its student, the student's student, and a sample of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import Chain, with_parents

from dalle2_video.models.factory import CONFIG
from experiments.plan import TEACHER

STEPS = "--decoder.distillation.steps"


@pytest.mark.slow
def test_students_are_made_one_from_the_other_and_sampled_in_their_steps(chain: Chain, tmp_path: Path) -> None:
    ours = with_parents(chain, tmp_path / "home")
    for stage in ("prior", "decoder", "temporal_sr"):
        (ours.home / "runs" / stage).mkdir()
        for run in (chain.home / "runs" / stage).iterdir():
            (ours.home / "runs" / stage / run.name).symlink_to(run)
    teacher = next(run for run in ours.registry.runs("decoder") if run.is_done())

    refused = ours.launch("decoder", STEPS, "8")
    assert refused.returncode == 2 and "no decoder run is the teacher that this recipe means" in refused.stderr

    first = ours.run("decoder", STEPS, "16")
    assert first.spec.parents[TEACHER] == teacher.as_parent()
    second = ours.run("decoder", STEPS, "8")
    assert second.spec.parents[TEACHER] == first.as_parent()
    assert json.loads((second.folder / "export" / CONFIG).read_text())["config"]["distillation"]["steps"] == 8

    prompt = ["--sample.prompts", "a red circle moves left"]
    refused = ours.launch("sample", *prompt, "--parents.decoder", second.id, "--sample.decoder.steps", "20")
    assert refused.returncode == 2 and "the run is distilled to 8 ddim steps" in refused.stderr
    sample = ours.run("sample", *prompt, "--parents.decoder", second.id)
    assert sample.spec.parents["decoder"] == second.as_parent()
    assert len(list((sample.folder / "samples").glob("*.mp4"))) == 1
