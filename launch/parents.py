"""Which finished runs a new run builds on: chosen by what the recipe says, pinned by digest.

Of the finished runs that match the recipe the newest is taken, unless the user names one. All parents must share their
own parents: a decoder of one CLIP never meets the prior of another. Only teachers are the student's own affair.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dalle2_video.config_io import to_dict
from experiments import identity
from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Run
from launch.stages import STAGES, StageInfo, lineage

IMPORT_COMMAND = "import_command"
"""Input of a preprocess run that tools/import_h5.py made: the command line that goes on with it."""
IMPORTED_CLIPS = "imported_clips"
"""Input of such a run: fingerprint of its clips, since its source is that of the imported files."""


def resolve(
    registry: Registry,
    info: StageInfo,
    expected_parts: Callable[[str], dict[str, Any] | None],
    named: Mapping[str, str],
    command_for: Callable[[str], str],
    taken: Mapping[str, tuple[Run, Parent]] | None = None,
) -> dict[str, Run]:
    """Return the parent runs by role (`StageInfo.roles`), ancestors first.

    expected_parts: the recipe's parts that a parent's run must have been made from, None where the recipe has no such
    parent; named: run ids the user gave; command_for: the command that makes a parent's run; taken: what is a parent
    already, finished or not, with its pin; all by role. Raises ValueError with that command.
    """
    taken = taken or {}
    chosen: dict[str, Run] = {}
    pinned: dict[str, Parent] = {}
    for role, stage in info.roles.items():
        parts = expected_parts(role)
        if role in taken:
            run = taken[role][0]
            if problem := _conflict(run, pinned):
                raise ValueError(problem)
        elif parts is None:
            continue
        elif role in named:
            run = registry.find(named[role], stage)
            if run.done() is None:
                raise ValueError(f"--parents.{role.replace('_', '-')} {named[role]}: {run.name} is not finished")
            problem = _conflict(run, pinned)
            if problem:
                raise ValueError(f"--parents.{role.replace('_', '-')} {named[role]}: {problem}")
        else:
            run = _newest(registry, role, stage, parts, pinned, command_for)
        chosen[role] = run
        pinned |= shared(run.spec.parents)
        pinned[role] = taken[role][1] if role in taken else run.as_parent()
    return chosen


def shared(parents: Mapping[str, Parent]) -> dict[str, Parent]:
    """Return those of a run's parents that all of its relatives must share: one run a stage."""
    return {role: parent for role, parent in parents.items() if role == parent.stage}


def _newest(
    registry: Registry,
    role: str,
    stage: str,
    parts: dict[str, Any],
    pinned: Mapping[str, Parent],
    command_for: Callable[[str], str],
) -> Run:
    matching = [run for run in registry.runs(stage) if made_from(run, parts) and _conflict(run, pinned) is None]
    finished = [(done["time"], run) for run in matching if (done := run.done()) is not None]
    if finished:
        return max(finished, key=lambda pair: pair[0])[1]
    if matching:
        raise ValueError(
            f"{matching[-1].name} is not finished; go on with it: {_command(matching[-1], command_for(role))}\n"
            f"(its log: {matching[-1].folder / 'logs'})"
        )
    what = "matches this recipe" if role == stage else f"is the {role} that this recipe means"
    raise ValueError(f"no {stage} run {what} in {registry.home}; make one: {command_for(role)}")


def made_from(run: Run, parts: dict[str, Any]) -> bool:
    """Whether a run's identity is that of the recipe's parts, and means today what it meant when the run was made."""
    spec = run.spec
    own_id = identity.run_id(stage=spec.stage, config=parts, source=spec.source, parents=spec.parents)
    return own_id == spec.id and not identity.drift(spec.config, to_dict(parts))


def _command(run: Run, command: str) -> str:
    """Return the command that goes on with an unfinished run; what it was made from is in its inputs."""
    inputs = run.spec.inputs
    if IMPORT_COMMAND in inputs:
        return inputs[IMPORT_COMMAND]
    return f"{command} --data-root {shlex.quote(inputs['data_root'])}" if "data_root" in inputs else command


def _conflict(run: Run, pinned: Mapping[str, Parent]) -> str | None:
    """Return why a run cannot be a parent beside those already pinned, or None."""
    for name, parent in shared(run.spec.parents).items():
        if name in pinned and pinned[name] != parent:
            return f"{run.name} was made from {name} {parent.id}, the others from {name} {pinned[name].id}"
    return None


def lineage_parts(info: StageInfo) -> tuple[str, ...]:
    """Return the recipe's fields that a stage and all its ancestors are made from."""
    return _parts(lineage(info.name))


def needed_parts(info: StageInfo) -> tuple[str, ...]:
    """Return the recipe's fields that a launcher needs: the stage's own and those that find its parents."""
    return _parts([*info.parents, info.name])


def _parts(stages: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for stage in stages for part in STAGES[stage].parts))
