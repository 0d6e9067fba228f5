"""`launch/sample.py` as it is typed: hostile prompts, files, what is part of the run's identity and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dalle2_video.config_io import to_dict
from dalle2_video.sample_config import SampleConfig
from dalle2_video.sampling_rates import strides_of
from experiments.identity import without_defaults
from experiments.recipes import celebv_text_64
from launch import pipeline_arguments
from launch.arguments import parse
from launch.proposal import inputs_of, parts_of
from launch.stages import STAGES
from launch.submit import main


def typed(*words: str) -> SampleConfig:
    return parse(STAGES["sample"], words).recipe.sample


def test_hostile_prompts_arrive_as_they_are(tmp_path: Path) -> None:
    hostile = ("$(id) `id`", 'it\'s "so"', "<script>alert(1)</script>", "a; rm -rf /", "../x", "日本")
    assert typed("--sample.prompts", *hostile).prompts == hostile
    assert typed("--sample.prompts=-n --help").prompts == ("-n --help",)
    path = tmp_path / "list.txt"
    path.write_text("\n".join((*hostile, "-n", "--help")))
    found = typed("--sample.prompts-file", str(path))
    assert found.prompts == (*hostile, "-n", "--help") and found.prompts_file == ""
    # The same prompts from a file of any name are the same run.
    assert found == typed("--sample.prompts-file", str(path.rename(tmp_path / "other.txt")))
    flags = ["--data-root", "D", "--sample.prompts-file", str(tmp_path / "other.txt")]
    chain = pipeline_arguments.parse_pipeline(flags)
    assert chain.recipe.sample == chain.of_stage["sample"].recipe.sample == found


@pytest.mark.parametrize("word", ["-a star", "--a star", "-x"])
def test_a_prompt_that_looks_like_an_option_is_refused_with_the_remedy(
    word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main("sample", ["--sample.prompts", "a", word]) == 2
    assert "--sample.prompts='-...'" in capfd.readouterr().err
    assert typed("--sample.prompts", "a", "--sample.decoder-guidance", "3").decoder_guidance == 3


@pytest.mark.parametrize("prompt", ["\x1b[31mred", "two\nlines", "a\x07bell"])
def test_what_steers_a_terminal_is_refused_and_not_printed(prompt: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("sample", ["--sample.prompts", prompt])
    assert ended.value.code == 2
    said = "".join(capfd.readouterr())
    assert "control character" in " ".join(said.replace("│", " ").split())
    assert "\x1b[31mred" not in said and "\x07" not in said


def test_the_file_that_videos_begin_with_is_known_by_its_content(tmp_path: Path) -> None:
    flags = ["--sample.prompts", "a", "--sample.start"]
    recipes = []
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("c.png", b"2")):
        (tmp_path / name).write_bytes(content)
        recipes.append(parse(STAGES["sample"], [*flags, str(tmp_path / name)]).recipe)
    starts = [parts_of(recipe, "sample")["sample"].start for recipe in recipes]
    assert starts[0] == starts[1] != starts[2] and starts[0].startswith("sha256:")
    assert inputs_of(recipes[1], "sample") == {"start": str(tmp_path / "b.png")}
    with pytest.raises(ValueError, match=r"--sample.start .*none.png: cannot be read"):
        parts_of(parse(STAGES["sample"], [*flags, str(tmp_path / "none.png")]).recipe, "sample")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompts": ("a",), "split": "val", "split_clips": 1}, "sample.prompts and sample.split both say"),
        ({"split": "val"}, "split_clips=0 must say of how many"),
        ({"split_clips": 3}, "is read with split alone"),
        ({"prompts": ("a",), "interpolate": 3}, "goes from each prompt to the next"),
        ({"candidates": 0}, "candidates"),
        ({"seconds": -1.0}, "seconds=-1.0 must be 0 or more"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"seeds": (1, 1)}, "must differ"),
        ({"seeds": (-1,)}, "must each be 0 or more"),
        ({"also": ("gif", "gif")}, "names a kind twice"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SampleConfig(**values)


def test_new_options_at_their_defaults_leave_the_identity_of_old_runs_alone() -> None:
    config = SampleConfig(prompts=("a",), samples_per_prompt=2)
    assert without_defaults(config) == {"prompts": ["a"], "samples_per_prompt": 2}
    assert to_dict(config)["batches_per_task"] == 1


def test_a_rate_is_one_that_all_stages_have_learnt() -> None:
    recipe = celebv_text_64.recipe()
    stages = {"decoder": recipe.decoder} | ({"temporal_sr": recipe.temporal_sr} if recipe.temporal_sr else {})
    own = {name: config.window.stride for name, config in stages.items()}
    assert strides_of(stages, recipe.data.fps, 0.0) == own
    with pytest.raises(ValueError, match="frames a second; give one, or none"):
        strides_of(stages, recipe.data.fps, 1000.0)
