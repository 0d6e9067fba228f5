"""The command line of the launchers: what it offers, what it refuses, and that its flags say all that was changed."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import changed

from dalle2_video.config import Recipe
from dalle2_video.runtime import RuntimeConfig
from experiments.identity import run_id
from launch.arguments import load_recipe, override_flags, parse, recipe_names
from launch.parents import needed_parts
from launch.stages import STAGES, lineage
from slurm.placement import Placement

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = load_recipe("tiny")
PARTS = ("data", "captions", "clip", "embed", "prior", "decoder", "temporal-sr", "spatial-sr", "sample", "evaluate")


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What `--help` of each launcher prints; every one was run as a user runs it and ended well."""

    def ask(stage: str) -> str:
        command = [sys.executable, str(REPOSITORY / "launch" / f"{stage}.py"), "--recipe", "celebv_text_256", "--help"]
        # From another folder: a launcher finds its repository by itself.
        answer = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=os.environ | {"COLUMNS": "200"}, check=False
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(STAGES, pool.map(ask, STAGES), strict=True))


def offered(text: str) -> set[str]:
    """Return the option names in a help text."""
    return set(re.findall(r"--([a-z][a-z0-9.-]*)", text))


@pytest.mark.parametrize("stage", STAGES)
def test_help_explains_every_option_of_the_parts_that_the_stage_reads(helps: dict[str, str], stage: str) -> None:
    options = offered(helps[stage])
    read = {part.replace("_", "-") for part in needed_parts(STAGES[stage])}
    for part in set(PARTS) & read:
        assert any(option.startswith(f"{part}.") for option in options), part
    assert ("seed" in options) == ("seed" in read)
    assert {"dry-run", "retry", "wait", "cluster", "partition"} <= options
    assert ", ".join(recipe_names()) in " ".join(re.sub(r"[│\n]", " ", helps[stage]).split())


@pytest.mark.parametrize("stage", STAGES)
def test_a_launcher_offers_no_option_of_a_part_that_its_stage_does_not_read(helps: dict[str, str], stage: str) -> None:
    options = offered(helps[stage])
    read = {part.replace("_", "-") for part in needed_parts(STAGES[stage])}
    for part in set(PARTS) - read:
        assert not [option for option in options if option.startswith(f"{part}.")]
    training = STAGES[stage].training
    assert ("micro-batch" in options) == training
    assert ("tasks" in options) == ("parallel" in options) == (not training)
    assert ("data-root" in options) == (stage == "preprocess")
    parents = {option.removeprefix("parents.") for option in options if option.startswith("parents.")}
    assert parents == {role.replace("_", "-") for role in STAGES[stage].roles}


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("clip", ["--prior.candidates", "3"]),
        ("clip", ["--clip.optim.lerning-rate", "1"]),
        ("clip", ["--tasks", "3"]),
        ("embed", ["--micro-batch", "3"]),
        ("prior", ["--data-root", "/data"]),
        ("decoder", ["--decoder.optim.steps", "many"]),
        ("sample", ["--parents.embed", "abc"]),
        ("clip", ["clip"]),
    ],
)
def test_an_option_that_is_unknown_or_ill_typed_ends_with_exit_code_2(
    stage: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(STAGES[stage], flags)
    assert raised.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_help_may_be_read_in_part() -> None:
    command = f"set -o pipefail; {{ {shlex.quote(sys.executable)} launch/decoder.py --help; echo code $? >&2; }} | true"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True)
    assert done.stderr.decode() == "code 141\n"


def test_an_unknown_recipe_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"--recipe huge: no such recipe; there are: celebv_text_256, .*tiny"):
        parse(STAGES["clip"], ["--recipe", "huge"])


def test_a_stage_that_the_recipe_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe tiny has no spatial_sr stage"):
        parse(STAGES["spatial_sr"], ["--recipe", "tiny"])


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("preprocess", {"data.frame_sizes": (16, 32), "data.tokenizer": "/a folder/with 'quotes'"}),
        ("clip", {"seed": 7, "clip.optim.betas": (0.5, 0.75), "clip.optim.lr": 3e-05, "clip.text.depth": 3}),
        ("embed", {"embed.hop": 2, "data.text_folders.action": "texts/other"}),
        ("prior", {"prior.diffusion.logsnr_shift": -2.5e-07, "prior.diffusion.objective": "eps"}),
        ("decoder", {"decoder.unet.spatial_attention": (True, False, False), "clip.embed_dim": 32}),
        ("temporal_sr", {"temporal_sr.max_augmentation": 0.25}),
        ("clip", {"captions.choose": "joined", "captions.weights.light_color": 0.0, "captions.weights.action": 2.5}),
        ("evaluate", {"evaluate.split": "train", "evaluate.max_clips": 9, "captions.weights.emotion": 0.0, "seed": 2}),
        ("sample", {"sample.prompts": ("a red circle", 'it\'s "quoted"', "ü $x"), "sample.decoder_guidance": 2.5}),
        ("sample", {"sample.decoder.steps": 12, "sample.decoder.method": "dpmpp", "sample.prior.variance": "large"}),
    ],
)
def test_the_printed_command_gives_the_same_recipe_again(stage: str, changes: dict[str, Any]) -> None:
    recipe = TINY
    for path, value in changes.items():
        recipe = changed(recipe, path, value)
    flags = override_flags(TINY, recipe, needed_parts(STAGES[stage]))
    parsed = parse(STAGES[stage], ["--recipe", "tiny", *flags])
    assert parsed.recipe == recipe
    python, script, *printed = shlex.split(parsed.command(stage))
    assert (python, script) == ("python", f"launch/{stage}.py")
    again = parse(STAGES[stage], printed)
    assert again.recipe == recipe


def test_flags_can_take_values_back_to_none_and_to_empty() -> None:
    default = changed(changed(TINY, "sample.prompts", ("a",)), "sample.decoder_guidance", 2.5)
    flags = override_flags(default, TINY, ["sample"])
    assert flags == ["--sample.prompts", "--sample.decoder-guidance", "None"]
    parsed = parse(STAGES["sample"], ["--sample.prompts", "b", "--sample.decoder-guidance", "3.5", *flags])
    assert parsed.recipe == TINY


def test_an_unchanged_recipe_needs_no_flags() -> None:
    for stage in STAGES:
        assert override_flags(TINY, TINY, needed_parts(STAGES[stage])) == []


def test_the_command_for_a_parent_carries_only_options_that_it_takes() -> None:
    parsed = parse(STAGES["sample"], ["--seed", "3", "--clip.embed-dim", "32", "--sample.prompts", "a b"])
    assert parsed.command("clip") == "python launch/clip.py --recipe tiny --seed 3 --clip.embed-dim 32"
    assert parsed.command("preprocess") == "python launch/preprocess.py --recipe tiny"


def test_runtime_placement_and_parents_are_read_and_stay_out_of_the_recipe() -> None:
    parsed = parse(
        STAGES["decoder"],
        [
            *("--ranks-per-node", "4", "--micro-batch", "2", "--activation-checkpointing", "selective"),
            *("--parents.clip", "abc", "--retry", "--wait", "no"),
        ],
    )
    assert parsed.recipe == TINY
    assert parsed.placement == Placement(ranks_per_node=4)
    assert parsed.runtime == RuntimeConfig(micro_batch=2, activation_checkpointing="selective")
    assert parsed.parents == {"clip": "abc"}
    assert (parsed.options.retry, parsed.options.wait, parsed.options.dry_run) == (True, "no", False)


@pytest.mark.parametrize("name", ["nodes", "ranks_per_node", "cpus_per_rank", "time_min"])
def test_a_placement_names_the_option_that_must_be_one_or_more(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} 0 must be 1 or more"):
        changed(Placement(), name, 0)


@pytest.mark.parametrize("name", ["gpus_per_node", "mem_gb", "signal_lead_s"])
def test_a_placement_names_the_option_that_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} -1 must be 0 or more"):
        changed(Placement(), name, -1)


@pytest.mark.parametrize(("flags", "name"), [(["--tasks", "0"], "--tasks 0"), (["--parallel", "-1"], "--parallel -1")])
def test_an_array_needs_a_job_and_no_negative_limit(flags: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be"):
        parse(STAGES["preprocess"], flags)


def test_how_an_array_is_shared_out_stays_out_of_the_recipe() -> None:
    parsed = parse(STAGES["embed"], ["--tasks", "500", "--parallel", "40"])
    assert (parsed.array.tasks, parsed.array.parallel) == (500, 40)
    assert parsed.recipe == TINY


def test_several_nodes_need_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--nodes 2 needs Slurm, and this is --cluster local"):
        Placement(nodes=2, cluster="local")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="`sbatch` is not found"):
        Placement(nodes=2)
    assert Placement(nodes=2, ranks_per_node=4, cluster="slurm").world_size == 8


def test_packages_of_slurm_make_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert Placement().resolved_cluster() == "local"
    with pytest.raises(ValueError, match=r"SLURM_CONF=.*slurm\.conf is not a file"):
        Placement(nodes=2)
    (tmp_path / "slurm.conf").touch()
    assert Placement(nodes=2).resolved_cluster() == "slurm"


def test_an_integer_written_for_a_float_is_the_same_science(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (REPOSITORY / "experiments/recipes/tiny.py").read_text()
    assert "guidance_scale=3.0" in source
    (tmp_path / "as_integer.py").write_text(source.replace("guidance_scale=3.0", "guidance_scale=3"))
    import experiments.recipes

    monkeypatch.setattr(experiments.recipes, "__path__", [*experiments.recipes.__path__, str(tmp_path)])
    loaded = load_recipe("as_integer")
    ids = {
        run_id(stage="decoder", config={"decoder": recipe.decoder}, source=None, parents={})
        for recipe in (loaded, TINY)
    }
    assert len(ids) == 1


def test_stages_come_after_all_that_they_build_on() -> None:
    for stage, info in STAGES.items():
        order = lineage(stage)
        assert order[-1] == stage and len(set(order)) == len(order)
        for ancestor in order[:-1]:
            assert set(STAGES[ancestor].parents) <= set(order[: order.index(ancestor)])
        assert set(info.parts) <= {field.name for field in dataclasses.fields(Recipe)}
