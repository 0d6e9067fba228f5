"""What videos of a checkpoint are made from: the checkpoint, finished runs of its CLIP, and nothing by chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from registry_fixtures import make_run
from test_watching import committed

from experiments.registry import Registry
from experiments.run import Run
from launch import previews, watching
from launch.arguments import Arguments, load_recipe, parse
from launch.proposal import Proposal, propose
from launch.stages import STAGES

TINY = load_recipe("tiny")
PROMPT = ["--sample.prompts", "a red circle"]


def typed(*more: str) -> Arguments:
    return parse(STAGES["sample"], ["--cluster", "local", *PROMPT, *more])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def made(registry: Registry) -> dict[str, Run]:
    """All stages but the decoder are done, and another, newer CLIP is too."""
    runs = {"preprocess": make_run(registry, TINY, "preprocess")}
    for stage in ("clip", "embed", "prior", "temporal_sr", "decoder"):
        parents = [runs[parent] for parent in STAGES[stage].parents]
        runs[stage] = make_run(registry, TINY, stage, parents, done=stage != "decoder")
    make_run(registry, TINY, "clip", [runs["preprocess"]], salt="newer")
    return runs


def pins(proposal: Proposal) -> dict[str, tuple[str, int | None]]:
    return {role: (pin.id, pin.step) for role, pin in proposal.spec.parents.items()}


def test_a_decoder_is_sampled_at_its_step_with_its_own_clip_and_without_what_comes_after(
    registry: Registry, made: dict[str, Run]
) -> None:
    decoder, of = made["decoder"], {stage: (made[stage].id, None) for stage in ("clip", "prior")}
    first = previews.propose(registry, typed(), decoder, committed(decoder, 10))
    again = previews.propose(registry, typed(), decoder, decoder.commits()[0])
    later = previews.propose(registry, typed(), decoder, committed(decoder, 20))
    assert pins(first) == of | {"decoder": (decoder.id, 10)} and pins(later) == of | {"decoder": (decoder.id, 20)}
    assert first.spec.id == again.spec.id != later.spec.id
    assert first.spec.config == later.spec.config and first.num_tasks == 1
    named = previews.propose(
        registry, typed("--parents.temporal-sr", made["temporal_sr"].id), decoder, decoder.commits()[0]
    )
    assert pins(named)["temporal_sr"] == (made["temporal_sr"].id, None) and named.spec.id != first.spec.id


def test_super_resolution_is_sampled_behind_the_finished_decoder_and_when_done_as_any_sampling(
    registry: Registry, made: dict[str, Run]
) -> None:
    student = make_run(registry, dataclasses.replace(TINY, seed=1), "temporal_sr", [made["preprocess"], made["clip"]])
    with pytest.raises(ValueError, match=r"decoder/\S+ is not finished; go on with it: python launch/decoder.py"):
        previews.propose(registry, typed(), student)
    made["decoder"].mark_done({"digest": "d"})
    commit = committed(student, 5)
    found = pins(previews.propose(registry, typed(), student, commit))
    assert found == {stage: (made[stage].id, None) for stage in ("clip", "prior", "decoder")} | {
        "temporal_sr": (student.id, 5)
    }
    finished = previews.propose(registry, typed(), student)
    ordinary = propose(
        registry, STAGES["sample"], typed("--parents.temporal-sr", student.id, "--parents.clip", made["clip"].id)
    )
    assert finished.spec.id == ordinary.spec.id


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--parents.clip", "x"], "--parents.clip x: --watch"),
        (["--parents.decoder", "x"], "--parents.decoder x: --watch"),
        (["--decoder.unet.dim", "8"], "--decoder.unet.dim: nothing reads it when decoder/"),
        (["--temporal-sr.unet.dim", "8"], "--temporal-sr.unet.dim: nothing reads it"),
    ],
)
def test_what_nothing_would_read_is_refused(
    registry: Registry, made: dict[str, Run], more: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        previews.propose(registry, typed(*more), made["decoder"], committed(made["decoder"], 1))


def test_what_cannot_be_watched_is_refused_with_the_remedy(
    registry: Registry, made: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(registry.home))
    for flags, words in (
        ([*PROMPT, "--watch", made["clip"].id], "sample takes checkpoints of prior, decoder, temporal_sr, spatial_sr"),
        ([*PROMPT, "--watch", made["decoder"].id, "--dry-run"], "--watch has no dry run"),
        ([*PROMPT, "--watch", made["decoder"].id, "--after"], "leave --after out"),
    ):
        assert watching.main("sample", ["--cluster", "local", *flags]) == 2
        assert words in capsys.readouterr().err
    committed(made["decoder"], 1)
    assert watching.main("sample", ["--cluster", "local", "--watch", made["decoder"].id]) == 2
    assert "--sample.prompts is empty" in capsys.readouterr().err
    assert list(registry.runs("sample")) == []
