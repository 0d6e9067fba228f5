"""Alignment: the judges are right on clips whose truth is known, at the size and rate of the smallest system."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch.arguments import parse
from launch.stages import STAGES
from tools.bench import alignment, alignment_chain, alignment_judges
from tools.bench.alignment_chain import SETS, VARIANTS, Chain, all_prompts
from tools.bench.alignment_judges import NOTHING, Score, classify, direction_of, outline, read_clip, read_truth, score
from tools.sample_data.captions import COLOURS, OBJECTS, Facts, combination_of, facts_of, thing_of
from tools.sample_data.dataset import build
from tools.sample_data.drawing import frames_of
from tools.sample_data.encode import write_mp4
from tools.sample_data.scenes import plan

SCRIPT = Path(alignment.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    build(out, plan(36, 0), [], seed=0, workers=1, progress=lambda done: None)
    return out


@pytest.fixture(scope="module")
def real(data: Path) -> tuple[list[np.ndarray], list[Facts], list[str]]:
    paths, facts = read_truth(data)
    videos = [read_clip(path, size=16, frames=16, fps=8.0) for path in paths]
    return videos, facts, alignment_judges.identities_of(paths)


def test_colour_and_direction_of_real_clips_at_16_px(real: tuple[list[np.ndarray], list[Facts], list[str]]) -> None:
    videos, facts, _ = real
    assert {video.shape for video in videos} == {(16, 16, 16, 3)}
    right = [classify(video) == (fact.colour, fact.direction) for video, fact in zip(videos, facts, strict=True)]
    assert np.mean(right) > 0.95


def test_direction_is_right_in_every_window_and_at_half_the_rate(data: Path) -> None:
    paths, facts = read_truth(data)
    right = []
    for path, fact in zip(paths[:16], facts[:16], strict=True):
        whole = read_clip(path, size=16, frames=512, fps=8.0)
        for start in range(0, len(whole) - 15, 4):
            window = whole[start : start + 16]
            right += [direction_of(window) == fact.direction, direction_of(window[::2]) == fact.direction]
    assert len(right) > 60
    assert np.mean(right) > 0.95


def test_held_out_shapes_are_told_far_above_chance(real: tuple[list[np.ndarray], list[Facts], list[str]]) -> None:
    videos, facts, identities = real
    scores, classifier = alignment_judges.real_scores(videos, facts, identities)
    assert scores["shape"].share > 2 * scores["shape"].chance
    seen = alignment_judges.generated_scores(videos, facts, classifier)
    assert seen["shape"].share > 0.95


def test_clips_that_show_something_else_score_zero(real: tuple[list[np.ndarray], list[Facts], list[str]]) -> None:
    videos, facts, identities = real
    _, classifier = alignment_judges.real_scores(videos, facts, identities)
    backwards = [video[::-1] for video in videos]
    recoloured = [255 - video for video in videos]
    assert alignment_judges.generated_scores(backwards, facts, classifier)["direction"].share == 0
    assert alignment_judges.generated_scores(recoloured, facts, classifier)["colour"].share == 0


def test_empty_and_still_videos_agree_with_no_prompt() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (16, 16, 16, 1), dtype=np.uint8).repeat(3, axis=3)
    assert classify(grey) == (NOTHING, NOTHING)
    assert not outline(grey).any()
    still = grey.copy()
    still[:, 4:10, 4:10] = (230, 30, 30)
    assert classify(still) == ("red", NOTHING)


def test_outline_is_the_same_wherever_the_object_is(real: tuple[list[np.ndarray], list[Facts], list[str]]) -> None:
    video = real[0][0]
    moved = np.roll(video, (5, 11), axis=(1, 2))
    np.testing.assert_allclose(outline(moved), outline(video), atol=1e-6)
    assert outline(video).sum() == pytest.approx(1, abs=1e-5)


def test_wilson_interval_and_chance_of_known_counts() -> None:
    # Wilson's interval of 8 in 10 is 0.4902 to 0.9433 (any table of it).
    low, high = Score(right=8, count=10, chance=0.25).interval()
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    found = score(["left", "left", "up", None], ["left", "up", "up", "up"])
    assert (found.right, found.count, found.chance) == (2, 3, pytest.approx(2 / 3))
    with pytest.raises(ValueError, match="--print-prompts"):
        score([None], ["up"])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_command_measures_a_samples_folder_and_writes_flat_json(
    data: Path, real: tuple[list[np.ndarray], list[Facts], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "samples"
    folder.mkdir(parents=True)
    entries = []
    # Clips of other scenes stand for generated ones; the last prompt of four asks for the wrong direction.
    for number, scene in enumerate(plan(4, 7)):
        write_mp4(folder / f"{number:04}.mp4", frames_of(replace(scene, fps=8, num_frames=16)), fps=8)
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
        asked = scene.facts.direction if number < 3 else opposite[str(scene.facts.direction)]
        prompt = f"A {thing_of(scene.facts)} moving {asked}."
        entries.append({"file": f"{number:04}.mp4", "prompt": prompt, "seed": number})
    (folder / "samples.json").write_text(json.dumps(entries))
    result = run("--samples", folder.parent, "--data", data, "--json", tmp_path / "figures.json", "--quick")
    assert result.returncode == 0, result.stderr
    assert "direction" in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["colour"], figures["direction"], figures["direction_n"]) == (1.0, 0.75, 4)
    assert figures["colour_real"] > 0.95 and 0 < figures["shape_chance"] <= 1
    assert all(isinstance(value, int | float) for value in figures.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--samples", "none", "--data", "none"], "python launch/sample.py"),
        (["--samples", "empty", "--data", "none"], "is empty"),
        (["--samples", "wrong", "--data", "none"], "generate again"),
        (["--samples", "good", "--data", "none"], "python tools/make_sample_data.py --out"),
        (["--samples", "good", "--data", "none", "--size", "4"], "--size must be 8"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    for name, text in (("empty", "[]"), ("wrong", '{"a": 1}'), ("good", '[{"file": "a.mp4", "prompt": "red"}]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.json").write_text(text)
        (tmp_path / name / "a.mp4").touch()
    result = run(*[str(tmp_path / word) if word in ("none", "empty", "wrong", "good") else word for word in arguments])
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_training_data_lacks_one_colour_of_each_object_and_half_of_the_prompts_ask_for_it() -> None:
    combinations = [Facts(colour=colour, object=thing, direction="up") for colour in COLOURS for thing in OBJECTS]
    held_out = [facts.object for facts in combinations if combination_of(facts) == "held_out"]
    assert sorted(held_out, key=str) == sorted(OBJECTS)
    trained = [scene.facts for scene in plan(300, 0, "trained")]
    assert {combination_of(facts) for facts in trained} == {"trained"}
    assert {facts.object for facts in trained} == set(OBJECTS) and {facts.colour for facts in trained} == set(COLOURS)
    for name, texts in all_prompts(12).items():
        assert {combination_of(facts_of(text)) for text in texts} == {name} and len(texts) == 12
    assert set(all_prompts(1)) == set(SETS)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_each_way_of_sampling_is_a_command_line_of_the_launcher(variant: alignment_chain.Variant) -> None:
    flags = ["--recipe", "motion", "--sample.prompts", "a red circle moving left", *variant.flags]
    sampled = parse(STAGES["sample"], flags).recipe.sample
    sampled.decoder.check("sample.decoder", parse(STAGES["sample"], flags).recipe.decoder.diffusion)
    plain = parse(STAGES["sample"], flags[:4]).recipe.sample
    assert (sampled == plain) == (variant.name == "full")


def test_a_command_of_the_chain_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"make_sample_data.py ended with code 2"):
        Chain(folder=tmp_path, recipe="motion", clips=0).train()
