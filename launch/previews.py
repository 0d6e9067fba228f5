"""Videos of a checkpoint, for `launch/sample.py --watch`: of the checkpoint and of finished runs of the other stages.

Super-resolution that comes after the watched stage has no part unless it is named: a picture of what is being learnt,
and the same stages at every step, whatever else becomes finished meanwhile.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from experiments import kept_checkpoint
from experiments.registry import Registry
from experiments.run import Commit, Run
from launch import proposal
from launch.arguments import Arguments
from launch.proposal import Proposal
from launch.stages import STAGES

PREVIEWED = ("prior", "decoder", "temporal_sr", "spatial_sr")
"""Stages of whose checkpoints videos can be made."""
_OPTIONAL = ("temporal_sr", "spatial_sr")


def propose(registry: Registry, arguments: Arguments, target: Run, commit: Commit | None = None) -> Proposal:
    """Return the sampling of a checkpoint of a run, or of the finished run.

    Raises ValueError with the remedy where there can be none, FileNotFoundError where the checkpoint is gone.
    """
    named = arguments.parents
    for role in ("clip", target.stage):
        if role in named:
            flag = f"--parents.{role.replace('_', '-')} {named[role]}"
            raise ValueError(f"{flag}: --watch {target.id} says which run that is; leave it out")
    after = PREVIEWED[PREVIEWED.index(target.stage) + 1 :]
    left_out = [stage for stage in _OPTIONAL if stage in after and stage not in named]
    not_read = tuple(f"--{stage.replace('_', '-')}." for stage in ("clip", target.stage, *left_out))
    if words := [word for word in shlex.split(arguments.typed) if word.startswith(not_read)]:
        raise ValueError(f"{words[0]}: nothing reads it when {target.name} is watched; leave it out")
    without: dict[str, Any] = dict.fromkeys(left_out)
    pin = target.as_parent() if commit is None else kept_checkpoint.as_parent(target, commit)
    asked = replace(
        arguments,
        recipe=replace(arguments.recipe, **without),
        parents=named | {"clip": target.spec.parents["clip"].id},
    )
    return proposal.propose(registry, STAGES["sample"], asked, taken={target.stage: (target, pin)})
