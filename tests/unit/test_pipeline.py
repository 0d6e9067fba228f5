"""The pipeline's command line: which stages, and what each of their launchers is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fixtures import changed, make_run

from experiments.registry import Registry
from launch import chain, submit
from launch.arguments import load_recipe
from launch.pipeline_arguments import PipelineOptions, parse_pipeline, stage_flags
from launch.pipeline_arguments import chain as chain_of
from launch.stages import STAGES, lineage

TINY = load_recipe("tiny")
PROMPT = ["--sample.prompts", "a red circle"]


def stages(*typed: str) -> list[str]:
    return list(parse_pipeline(["--cluster", "local", *typed]).of_stage)


def test_the_chain_is_that_of_the_recipe_ancestors_first() -> None:
    assert stages(*PROMPT) == ["preprocess", "clip", "embed", "prior", "decoder", "temporal_sr", "sample"]
    assert stages() == stages(*PROMPT)[:-1]
    for number, stage in enumerate(stages(*PROMPT)):
        assert set(STAGES[stage].parents) - {"spatial_sr"} <= set(stages(*PROMPT)[:number])


def test_a_part_of_the_chain() -> None:
    assert stages("--until", "prior") == lineage("prior")
    assert stages("--stages", "prior", "clip") == ["clip", "prior"]
    assert stages("--stages", "prior", "decoder", "--until", "prior") == ["prior"]
    assert stages("--parents.clip", "0123456789", "--until", "prior") == ["preprocess", "embed", "prior"]


def test_an_evaluation_is_made_on_request() -> None:
    assert stages("--also", "evaluate") == [*stages(), "evaluate"]
    assert stages("--until", "evaluate") == ["preprocess", "clip", "evaluate"]
    assert stages("--stages", "evaluate", "clip") == ["clip", "evaluate"]
    assert stages("--until", "embed", "--also", "evaluate") == ["preprocess", "clip", "embed", "evaluate"]
    assert chain_of(TINY, PipelineOptions(), {})[1]["evaluate"] == "made on request: --also evaluate"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--also", "spatial_sr"], "spatial_sr cannot be made: recipe tiny has none"),
        (["--also", "evaluat"], "no stage evaluat"),
        (["--until", "spatial_sr"], "spatial_sr cannot be made: recipe tiny has none"),
        (["--stages", "sample"], "no --sample.prompts"),
        (["--stages", "clipp"], "no stage clipp"),
        (["--per-stage", "decoder=8"], "STAGE.OPTION=VALUE"),
        (["--per-stage", "decodr.nodes=8"], "STAGE.OPTION=VALUE"),
        (["--clip.optim.batch-size", "0"], "batch_size"),
    ],
)
def test_what_cannot_be_is_named(typed: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        with pytest.raises(ValueError, match=words):
            parse_pipeline(["--cluster", "local", *typed])
    except SystemExit as end:
        assert end.code == 2 and words in " ".join(capfd.readouterr().err.split())


def test_an_option_reaches_the_stages_that_know_it() -> None:
    typed = ["--nodes", "4", "--tasks", "9", "--micro-batch=2", "--clip.optim.lr", "1.0", "--augment.no-mirror"]
    typed += ["--data-root", "D", "--parents.clip", "c", "--no-dry-run", "--seed", "3", "--sample.prompts", "a b", "c"]
    assert stage_flags(STAGES["preprocess"], typed, []) == [
        "--nodes", "4", "--tasks", "9", "--data-root", "D", "--no-dry-run",
    ]  # fmt: skip
    assert stage_flags(STAGES["clip"], typed, []) == [
        "--nodes", "4", "--micro-batch=2", "--clip.optim.lr", "1.0", "--augment.no-mirror", "--no-dry-run",
        "--seed", "3",
    ]  # fmt: skip
    sample = stage_flags(STAGES["sample"], typed, [])
    assert (
        sample[-3:] == ["--sample.prompts", "a b", "c"]
        and "--parents.clip" in sample
        and "--micro-batch=2" not in sample
    )


def test_an_option_of_one_stage_takes_the_place_of_the_shared_one() -> None:
    mine = [
        "decoder.nodes=8",
        "decoder.sbatch=exclusive gres=x:1",
        "decoder.activation-checkpointing=full",
        "clip.nodes=2",
    ]
    found = stage_flags(STAGES["decoder"], ["--nodes", "4", "--partition", "p"], mine)
    assert found == [
        "--partition", "p", "--nodes", "8", "--sbatch", "exclusive", "gres=x:1", "--activation-checkpointing", "full",
    ]  # fmt: skip
    parsed = parse_pipeline(["--cluster", "slurm", "--nodes", "4", "--per-stage", *mine, "embed.tasks=16"]).of_stage
    assert {stage: one.placement.nodes for stage, one in parsed.items() if STAGES[stage].training} == {
        "clip": 2, "prior": 4, "decoder": 8, "temporal_sr": 4,
    }  # fmt: skip
    assert parsed["embed"].array.tasks == 16 and parsed["preprocess"].array.tasks == 2
    assert parsed["decoder"].runtime.activation_checkpointing == "full"


def test_all_stages_have_one_recipe() -> None:
    parsed = parse_pipeline(["--cluster", "local", "--clip.optim.lr", "0.5", "--embed.hop", "2"])
    expected = changed(changed(TINY, "clip.optim.lr", 0.5), "embed.hop", 2)
    assert all(one.recipe == expected == parsed.recipe for one in parsed.of_stage.values())


def test_nothing_of_a_recipe_is_left_out_without_a_word() -> None:
    found, left_out = chain_of(TINY, PipelineOptions(), {})
    assert {*found, *left_out} == set(STAGES)


def test_a_dry_run_tells_of_the_whole_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(tmp_path))
    registry = Registry(tmp_path)
    store = make_run(registry, TINY, "preprocess")
    made = make_run(registry, TINY, "clip", [store])
    assert chain.main(["--cluster", "slurm", "--dry-run", *PROMPT]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == [
        f"{made.name}: done already",
        "embed: would be launched",
        "prior: would be queued behind embed",
        "decoder: would be queued behind embed",
        "temporal_sr: would be launched",
        "sample: would be queued behind prior, decoder, temporal_sr",
    ]
    assert not (tmp_path / "plans").exists()


def test_without_a_store_the_chain_needs_the_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(tmp_path))
    assert chain.main(["--cluster", "local"]) == submit.USER_ERROR
    assert "--data-root is missing" in capfd.readouterr().err
    assert chain.main(["--cluster", "local", "--stages", "clip"]) == submit.USER_ERROR
    assert "no preprocess run matches" in capfd.readouterr().err


def test_a_launcher_queues_behind_parents_on_slurm_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(tmp_path))
    assert submit.main("prior", ["--cluster", "local", "--after"]) == submit.USER_ERROR
    assert "launch/pipeline.py" in capfd.readouterr().err
    assert submit.main("prior", ["--cluster", "slurm", "--after"]) == submit.USER_ERROR
    assert "no preprocess run matches this recipe" in capfd.readouterr().err
    make_run(Registry(tmp_path), TINY, "preprocess")
    assert submit.main("prior", ["--cluster", "slurm", "--after"]) == submit.USER_ERROR
    assert "clip: nothing was submitted that makes it" in capfd.readouterr().err
