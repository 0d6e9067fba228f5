"""The stages as the launchers know them: what each learns from and which runs it needs. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.plan import TEACHER


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """One launchable stage."""

    name: str
    parts: tuple[str, ...]
    """Fields of the recipe that enter the run's identity, beside its parents."""
    parents: tuple[str, ...]
    """Stages whose finished runs it needs, ancestors first."""
    training: bool = False
    """Trained by the loop; else an array of tasks."""
    whole_batch: bool = False
    """The loss compares the samples of a batch, so that gradient accumulation would change it."""
    on_request: bool = False
    """No part of the chain that a pipeline makes, unless it is asked for."""
    distillable: bool = False
    """Where the recipe says so it learns from a finished run of its own stage, a parent in the role of `TEACHER`."""

    @property
    def roles(self) -> dict[str, str]:
        """Stages of the parents that it can have, by their role: a stage's name or `TEACHER`; ancestors first."""
        return {stage: stage for stage in self.parents} | ({TEACHER: self.name} if self.distillable else {})


_ALL = (
    StageInfo(name="preprocess", parts=("data",), parents=()),
    StageInfo(
        name="clip",
        parts=("seed", "captions", "augment", "clip"),
        parents=("preprocess",),
        training=True,
        whole_batch=True,
    ),
    StageInfo(name="embed", parts=("embed",), parents=("preprocess", "clip")),
    StageInfo(
        name="prior", parts=("seed", "captions", "prior"), parents=("preprocess", "clip", "embed"), training=True
    ),
    StageInfo(
        name="decoder",
        parts=("seed", "captions", "augment", "decoder"),
        parents=("preprocess", "clip", "embed"),
        training=True,
        distillable=True,
    ),
    StageInfo(
        name="temporal_sr",
        parts=("seed", "captions", "augment", "temporal_sr"),
        parents=("preprocess", "clip"),
        training=True,
        distillable=True,
    ),
    StageInfo(
        name="spatial_sr",
        parts=("seed", "captions", "augment", "spatial_sr"),
        parents=("preprocess", "clip"),
        training=True,
        distillable=True,
    ),
    StageInfo(
        name="sample",
        parts=("seed", "sample"),
        parents=("clip", "prior", "decoder", "temporal_sr", "spatial_sr"),
    ),
    StageInfo(name="evaluate", parts=("seed", "captions", "evaluate"), parents=("preprocess", "clip"), on_request=True),
)
STAGES = {info.name: info for info in _ALL}


def lineage(name: str) -> list[str]:
    """Return a stage and all its ancestors, ancestors first."""
    found: list[str] = []
    for parent in STAGES[name].parents:
        found += [stage for stage in lineage(parent) if stage not in found]
    return [*found, name]
