"""The command line of the pipeline: every option of every launcher, and which of them each stage is given.

An option counts for all stages that know it; `--per-stage decoder.nodes=8` sets it for one. What a stage is given is a
command line of its launcher, which checks it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from dalle2_video import given_files
from dalle2_video.config import Recipe
from dalle2_video.runtime import RuntimeConfig
from launch.arguments import Arguments as StageArguments
from launch.arguments import (
    ArrayOptions,
    DataFiles,
    LaunchOptions,
    load_recipe,
    named_parents,
    options_type,
    parse,
    recipe_names,
)
from launch.parents import needed_parts
from launch.stages import STAGES, StageInfo, lineage
from slurm import clusters
from slurm.placement import Placement


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Which stages, and what is different for one of them."""

    stages: tuple[str, ...] = ()
    """Only these stages; what else they need must be done, at work or planned."""
    until: str | None = None
    """Only this stage and what it needs."""
    also: tuple[str, ...] = ()
    """Stages that are made on request alone: `evaluate`."""
    per_stage: tuple[str, ...] = ()
    """Options of single stages, STAGE.OPTION=VALUE: `decoder.nodes=8 clip.partition=long embed.tasks=16`."""

    def __post_init__(self) -> None:
        for stage in [*self.stages, *self.also, *([self.until] if self.until else [])]:
            if stage not in STAGES:
                raise ValueError(f"no stage {stage}; there are: {', '.join(STAGES)}")
        for text in self.per_stage:
            stage, dot, option = text.partition(".")
            if stage not in STAGES or not dot or "=" not in option:
                raise ValueError(
                    f"--per-stage {text!r}: write STAGE.OPTION=VALUE, such as decoder.nodes=8; the stages are: "
                    f"{', '.join(STAGES)}"
                )


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A parsed command line of the pipeline."""

    recipe: Recipe
    pipeline: PipelineOptions
    options: LaunchOptions
    parents: dict[str, str]
    """Run ids given by the user, by stage."""
    data_root: str
    placement: Placement
    of_stage: dict[str, StageArguments]
    """What the launcher of each stage of the chain is given, in the chain's order."""
    left_out: dict[str, str]
    """Why stages of the recipe are not in the chain."""
    typed: str


def parse_pipeline(arguments: Sequence[str]) -> Arguments:
    """Parse the command line; prints help, or an error and exits with code 2, where tyro says so."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tiny")
    first.add_argument("--cluster", default="auto")
    known, rest = first.parse_known_args(list(arguments))
    recipe = load_recipe(known.recipe)
    parts = [name for name in (f.name for f in dataclasses.fields(recipe)) if name in _PARTS]
    parts = [part for part in parts if getattr(recipe, part) is not None]
    flat = tyro.conf.arg(name="")
    parsed: Any = tyro.cli(
        options_type(
            recipe,
            parts,
            clusters.defaults(known.cluster),
            training=True,
            array=True,
            files=True,
            queue=False,
            parents=[stage for stage in STAGES if any(stage in info.parents for info in STAGES.values())],
            more=[("pipeline", Annotated[PipelineOptions, flat], field(default_factory=PipelineOptions))],
        ),
        args=rest,
        prog="launch/pipeline.py",
        description=f"All stages of recipe {known.recipe} (--recipe NAME takes: {', '.join(recipe_names())}).",
    )
    changed = given_files.with_prompts(dataclasses.replace(recipe, **{part: getattr(parsed, part) for part in parts}))
    named = named_parents(parsed)
    stages, left_out = chain(changed, parsed.pipeline, named)
    shared = ["--recipe", known.recipe, "--cluster", known.cluster]
    of_stage = {
        stage: dataclasses.replace(
            parse(STAGES[stage], [*shared, *stage_flags(STAGES[stage], rest, parsed.pipeline.per_stage)]),
            recipe=changed,
        )
        for stage in stages
    }
    return Arguments(
        recipe=changed,
        pipeline=parsed.pipeline,
        options=parsed.options,
        parents=named,
        data_root=parsed.files.data_root,
        placement=parsed.placement,
        of_stage=of_stage,
        left_out=left_out,
        typed=shlex.join(["python", "launch/pipeline.py", *arguments]),
    )


def chain(recipe: Recipe, options: PipelineOptions, named: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the stages to bring to work, in order, and why others are left out."""
    left_out: dict[str, str] = {}
    found: list[str] = []
    asked = {*options.stages, *options.also, *filter(None, [options.until])}
    until = lineage(options.until) if options.until else [*STAGES]
    for stage in STAGES:
        outside = stage not in until or (options.stages and stage not in options.stages)
        if outside and stage not in options.also:
            continue
        if getattr(recipe, stage, recipe) is None:
            left_out[stage] = f"recipe {recipe.name} has none"
        elif stage in named:
            left_out[stage] = f"--parents.{stage.replace('_', '-')} names a run"
        elif stage == "sample" and not recipe.sample.has_prompts:
            left_out[stage] = "no --sample.prompts"
        elif STAGES[stage].on_request and stage not in asked:
            left_out[stage] = f"made on request: --also {stage}"
        else:
            found.append(stage)
    missing = [stage for stage in STAGES if stage in asked and stage in left_out]
    if missing:
        raise ValueError(f"{missing[0]} cannot be made: {left_out[missing[0]]}")
    return found, left_out


_PARTS = {part for info in STAGES.values() for part in info.parts}


def stage_flags(info: StageInfo, typed: Sequence[str], per_stage: Sequence[str]) -> list[str]:
    """Return those of the typed options that a stage knows, then those that are for this stage alone."""
    mine: list[str] = []
    for text in per_stage:
        stage, _, rest = text.partition(".")
        if stage == info.name:
            option, _, value = rest.partition("=")
            mine += _flag(option, value)
    overridden = {_head(word, whole=True) for word in mine if word.startswith("--")}
    kept = [
        word
        for flag in _grouped(typed)
        if _head(flag[0]) in _known(info, flag[0]) and _head(flag[0], whole=True) not in overridden
        for word in flag
    ]
    return [*kept, *mine]


def _grouped(typed: Sequence[str]) -> list[list[str]]:
    """Return each option with its values."""
    found: list[list[str]] = []
    for word in typed:
        if word.startswith("--") or not found:
            found.append([])
        found[-1].append(word)
    return found


def _head(flag: str, *, whole: bool = False) -> str:
    """Return the first part of an option's name, or all of it: `clip` of `--clip.optim.batch-size=8`."""
    name = flag.removeprefix("--").partition("=")[0].replace("-", "_")
    name = name.removeprefix("no_") if "." not in name else name
    return name if whole else name.partition(".")[0]


def _known(info: StageInfo, flag: str) -> set[str]:
    if flag.startswith("--parents."):
        stage = _head(flag, whole=True).partition(".")[2]
        return {"parents"} if stage in info.parents else set()
    kinds: list[type] = [LaunchOptions, Placement, RuntimeConfig if info.training else ArrayOptions]
    if info.name == "preprocess":
        kinds.append(DataFiles)
    return {one.name for kind in kinds for one in dataclasses.fields(kind)} | set(needed_parts(info))


def _flag(option: str, value: str) -> list[str]:
    """Return `nodes=8` as the command line takes it."""
    if value.lower() in ("true", "false"):
        head, dot, last = option.rpartition(".")
        return [f"--{head}{dot}{last}" if value.lower() == "true" else f"--{head}{dot}no-{last}"]
    return [f"--{option}", *shlex.split(value)]
