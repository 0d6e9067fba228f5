"""Real runs in a real registry, made without training: what a launcher and a job would have written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dalle2_video.config import Recipe
from experiments import identity
from experiments.plan import TEACHER
from experiments.reconcile import FREE_ENDS
from experiments.registry import Registry
from experiments.run import AttemptRecord, Run, RunSpec
from launch.arguments import to_dict_or_value
from launch.stages import STAGES


def changed(config: Any, path: str, value: Any) -> Any:
    """Return a config in which the field at a dotted path has another value."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def make_spec(**changes: Any) -> RunSpec:
    """Return a CLIP run's spec with a small made-up config."""
    return dataclasses.replace(
        RunSpec(
            stage="clip",
            recipe="tiny",
            id="0123456789",
            config={"seed": 0, "clip": {"dim": 8}},
            source=None,
            parents={},
        ),
        **changes,
    )


def stage_config(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return what a run of a stage stores of its recipe."""
    return {part: to_dict_or_value(getattr(recipe, part)) for part in STAGES[stage].parts}


def make_run(
    registry: Registry,
    recipe: Recipe,
    stage: str,
    parents: Sequence[Run] = (),
    *,
    teacher: Run | None = None,
    done: bool = True,
    salt: str = "",
) -> Run:
    """Create the run that a launcher would, by default a finished one; salt: gives another run of the same recipe."""
    pinned = {run.spec.stage: run.as_parent() for run in parents}
    pinned |= {TEACHER: teacher.as_parent()} if teacher is not None else {}
    parts = {part: getattr(recipe, part) for part in STAGES[stage].parts}
    run = registry.create(
        RunSpec(
            stage=stage,
            recipe=recipe.name,
            id=identity.run_id(stage=stage, config=parts, source=salt or None, parents=pinned),
            config=json.loads(json.dumps(stage_config(recipe, stage))),
            source=salt or None,
            parents=pinned,
        )
    )
    if done:
        run.mark_done({"digest": identity.digest([stage, run.spec.id])})
    return run


def attempt(
    number: int, end: str | None, *, group: int = 0, supervised: bool = False, intent: int = 1, **details: Any
) -> AttemptRecord:
    """Return an attempt that ended as told, None: without a word."""
    assert end is None or end in FREE_ENDS | {"error", "hang"}
    claim = {"group": group, "supervised": supervised, "intent": intent}
    return AttemptRecord(number=number, claim=claim, end=None if end is None else {"kind": end, **details})


def squeue_rows(*rows: tuple[str, str]) -> str:
    """Return a shell command that prints what squeue does of (job, state)."""
    return "; ".join(f"printf '%-24s%-24s%-48s\\n' {job} {state} None" for job, state in rows)
