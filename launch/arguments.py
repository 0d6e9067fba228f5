"""The command line of every launcher: `--recipe NAME`, then any field of the recipe and of the run, checked by type.

A launcher offers just the parts of the recipe that its stage reads, so that no option is silently without effect.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import pkgutil
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

import experiments.recipes
from dalle2_video import given_files
from dalle2_video.config import Recipe
from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.teaching import teachers_config
from experiments.plan import TEACHER
from launch.parents import lineage_parts, needed_parts
from launch.stages import STAGES, StageInfo
from slurm import clusters, delivery
from slurm.placement import Placement

_SEED_HELP = "Seed of order, crops, captions, noise, dropout and initial weights; 0 or more."


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What to do about the run."""

    dry_run: bool = False
    """Show the decision, the sizes and the sbatch file; change nothing."""
    dump_deepspeed_config: bool = False
    """Print the config that DeepSpeed would get, as JSON, and change nothing; of trainings."""
    retry: bool = False
    """Start again although attempts failed three times in a row, or although an earlier job cannot be asked about."""
    wait: Literal["auto", "yes", "no"] = "auto"
    """Stay and show progress until the run ends; auto: on this machine yes, on Slurm no."""


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How an array's tasks are shared out."""

    tasks: int = 2
    """Jobs that share the run's tasks that are not done yet; 1 or more."""
    parallel: int = 0
    """Jobs that run at once; 0 or more. 0: on Slurm as many as it starts, on this machine one a core."""

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"--tasks {self.tasks} must be 1 or more")
        if self.parallel < 0:
            raise ValueError(f"--parallel {self.parallel} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """What to do where parents are not done."""

    after: bool = False
    """Queue the job behind the jobs of parents that are not done yet, on Slurm. It looks at them again when it starts,
    and ends with the reason where one failed."""


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Where the data set lies. Not part of the identity: the clips' names and sizes are."""

    data_root: str = ""
    """Folder that holds `videos/` and `texts/` as CelebV-Text lays them out, or its archives (.tar, .zip)."""


@dataclass(frozen=True, kw_only=True)
class JudgedOptions:
    """Which run is evaluated; none of these: the newest CLIP that matches the recipe."""

    of: str = ""
    """Id of a finished run to judge: a CLIP, a prior, a decoder, or the videos of a sample run. Store, CLIP and
    captions are those that it was made with; --parents.clip judges videos by another CLIP."""
    watch: str = ""
    """Id of a training, of a CLIP, a prior or a decoder: each new checkpoint is judged by a job of its own, until the
    run is done. Stop it by Ctrl-C; the same command goes on."""

    def __post_init__(self) -> None:
        if self.of and self.watch:
            raise ValueError(f"--of {self.of} --watch {self.watch}: give one of them")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Of which training videos are made while it goes on; none: videos of finished runs."""

    watch: str = ""
    """Id of a training, of a prior, a decoder or super-resolution: videos of each new checkpoint are made by a job of
    its own, until the run is done, under the same prompts and seeds. Stages before it must be done, and a prior needs a
    decoder; super-resolution after it has no part, unless --parents names it. Stop it by Ctrl-C; the same command goes
    on."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A parsed command line."""

    recipe: Recipe
    runtime: RuntimeConfig
    placement: Placement
    options: LaunchOptions
    parents: dict[str, str]
    """Run ids given by the user, by role: a stage, or the teacher of this one."""
    array: ArrayOptions
    """Of a training nothing reads it."""
    data_root: str
    after: bool
    """Queue the job behind its parents'."""
    command: Callable[[str], str]
    """The command that launches the parent of a role with the same options of the recipe."""
    typed: str
    """This command as it was typed."""
    of: str = ""
    """Id of the finished run that an evaluation judges."""
    watch: str = ""
    """Id of the training whose checkpoints are judged, or sampled."""


def recipe_names() -> list[str]:
    """Names of the recipes in experiments/recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(experiments.recipes.__path__))


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name; ValueError lists the names there are."""
    if name not in recipe_names():
        raise ValueError(f"--recipe {name}: no such recipe; there are: {', '.join(recipe_names())}")
    recipe = importlib.import_module(f"experiments.recipes.{name}").recipe()
    # A float field written as an integer would have another text, and so another identity, than from the command line.
    return from_dict(Recipe, to_dict(recipe))


def parse(info: StageInfo, arguments: Sequence[str]) -> Arguments:
    """Parse a launcher's command line; prints help, or an error and exits with code 2, where tyro says so."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tiny")
    first.add_argument("--cluster", default="auto")
    known, rest = first.parse_known_args(list(arguments))
    if info.name == "sample":
        given_files.check_words(rest)
    recipe = load_recipe(known.recipe)
    if getattr(recipe, info.name, recipe) is None:
        raise ValueError(f"recipe {known.recipe} has no {info.name} stage")
    # To find what parents that are not done will be made from takes the parts of all ancestors.
    needed = lineage_parts(info) if "--after" in rest else needed_parts(info)
    parts = [part for part in needed if getattr(recipe, part) is not None]
    parsed: Any = tyro.cli(
        options_type(
            recipe,
            parts,
            clusters.defaults(known.cluster),
            training=info.training,
            array=not info.training,
            files=info.name == "preprocess",
            queue=bool(info.parents),
            parents=[*info.roles],
            more=_more(info),
        ),
        args=rest,
        prog=f"launch/{info.name}.py",
        description=f"Stage {info.name}, recipe {known.recipe} (--recipe NAME takes: {', '.join(recipe_names())}).",
    )
    delivery.check(parsed.placement.notify)
    changed = given_files.with_prompts(dataclasses.replace(recipe, **{part: getattr(parsed, part) for part in parts}))

    def command(role: str) -> str:
        stage = info.name if role == TEACHER else role
        wanted = teachers_recipe(changed, stage) if role == TEACHER else changed
        assert wanted is not None, f"{stage} needs no teacher"
        flags = override_flags(recipe, wanted, needed_parts(STAGES[stage]))
        return shlex.join(["python", f"launch/{stage}.py", "--recipe", known.recipe, *flags])

    return Arguments(
        recipe=changed,
        runtime=getattr(parsed, "runtime", RuntimeConfig()),
        placement=parsed.placement,
        options=parsed.options,
        parents=named_parents(parsed),
        array=getattr(parsed, "array", ArrayOptions()),
        data_root=parsed.files.data_root if hasattr(parsed, "files") else "",
        after=hasattr(parsed, "queue") and parsed.queue.after,
        command=command,
        typed=shlex.join(["python", f"launch/{info.name}.py", *arguments]),
        of=getattr(getattr(parsed, "trained", None), "of", ""),
        watch=getattr(getattr(parsed, "trained", None), "watch", ""),
    )


def _more(info: StageInfo) -> list[tuple[str, Any, Any]]:
    """Return the options that one launcher alone has."""
    groups: dict[str, type] = {"evaluate": JudgedOptions, "sample": PreviewOptions}
    if info.name not in groups:
        return []
    group = groups[info.name]
    return [("trained", Annotated[group, tyro.conf.arg(name="")], field(default_factory=group))]


def named_parents(parsed: Any) -> dict[str, str]:
    """Return the run ids that a parsed command line names, by role."""
    named = vars(parsed.parents) if hasattr(parsed, "parents") else {}
    return {role: given for role, given in named.items() if given}


def teachers_recipe(recipe: Recipe, stage: str) -> Recipe | None:
    """Return the recipe of the run that a stage learns from; None where it learns from data alone."""
    config = getattr(recipe, stage) if STAGES[stage].distillable else None
    of_teacher = teachers_config(config) if config is not None else None
    changes: dict[str, Any] = {stage: of_teacher}
    return None if of_teacher is None else dataclasses.replace(recipe, **changes)


def options_type(
    recipe: Recipe,
    parts: Sequence[str],
    placement: Placement,
    *,
    training: bool,
    array: bool,
    files: bool,
    queue: bool,
    parents: Sequence[str],
    more: Sequence[tuple[str, Any, Any]] = (),
) -> type:
    """Return the dataclass of a launcher's options; its defaults are the recipe's and the cluster profile's.

    parts: fields of the recipe that are offered; parents: roles of runs that may be named; more: further fields, as
    `dataclasses.make_dataclass` takes them.
    """
    flat = tyro.conf.arg(name="")
    fields: list[tuple[str, Any, Any]] = [
        ("options", Annotated[LaunchOptions, flat], field(default_factory=LaunchOptions)),
        *more,
        ("placement", Annotated[Placement, flat], field(default_factory=lambda: placement)),
    ]
    for wanted, name, group in (
        (training, "runtime", RuntimeConfig),
        (array, "array", ArrayOptions),
        (files, "files", DataFiles),
        (queue, "queue", QueueOptions),
    ):
        if wanted:
            fields.append((name, Annotated[group, flat], field(default_factory=group)))
    if parents:
        named = dataclasses.make_dataclass(
            "Parents",
            [
                (
                    stage,
                    Annotated[str, tyro.conf.arg(help="Id of a finished run; default: the newest that matches.")],
                    "",
                )
                for stage in parents
                if getattr(recipe, stage, recipe) is not None
            ],
            frozen=True,
            kw_only=True,
        )
        fields.append(("parents", named, field(default_factory=named)))
    for part in parts:
        value = getattr(recipe, part)
        kind: Any = Annotated[int, tyro.conf.arg(help=_SEED_HELP)] if part == "seed" else type(value)
        fields.append((part, kind, field(default_factory=functools.partial(getattr, recipe, part))))
    return dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)


def override_flags(default: Recipe, changed: Recipe, parts: Sequence[str]) -> list[str]:
    """Return the command-line flags that turn `default` into `changed` in the given parts of a recipe."""
    flags: list[str] = []
    for part in parts:
        flags += _flags(part, to_dict_or_value(getattr(default, part)), to_dict_or_value(getattr(changed, part)))
    return flags


def to_dict_or_value(value: Any) -> Any:
    """Return a config dataclass as plain types, and a plain value as it is."""
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def _flags(path: str, default: Any, changed: Any) -> list[str]:
    if isinstance(default, dict) and isinstance(changed, dict):
        return [flag for key in changed for flag in _flags(f"{path}.{key}", default[key], changed[key])]
    if default == changed:
        return []
    if isinstance(changed, bool):
        before, dot, name = path.rpartition(".")
        return [f"--{before}{dot}{'' if changed else 'no-'}{name}".replace("_", "-")]
    values = changed if isinstance(changed, list) else [changed]
    return [f"--{path.replace('_', '-')}", *map(str, values)]
