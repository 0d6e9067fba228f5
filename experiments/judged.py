"""What evaluations judge, and the figures of a run by step. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import files
from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Run

STAGE = "evaluate"
EVALUATION = Path("evaluation") / "evaluation.json"
JUDGED = ("sample", "decoder", "prior", "clip")
"""Stages that can be judged; of the parents of an evaluation the first of these, its CLIP being needed for each."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One evaluation of a run."""

    evaluation: Run
    step: int | None
    """Of the checkpoint that was judged; None: the finished run."""
    found: Mapping[str, Any] | None
    """What evaluation.json says; None where it is not done."""

    def figures(self) -> Iterator[tuple[str, Mapping[str, float]]]:
        """Yield name, such as `prior.cosine_text`, and value, low and high of each figure."""
        for group, of_group in (self.found or {}).items():
            if isinstance(of_group, Mapping):
                for name, one in of_group.items():
                    if isinstance(one, Mapping) and "value" in one:
                        yield f"{group}.{name}", one


def judgements(registry: Registry, judged: Run) -> list[Judgement]:
    """Return the evaluations that judged a run, by step, those of the finished run last."""
    found = []
    for evaluation in registry.runs(STAGE):
        parents = evaluation.spec.parents
        if stage_of(parents) == judged.stage and (pin := parents[judged.stage]).id == judged.id:
            record = files.read_record(evaluation.folder / EVALUATION) if evaluation.is_done() else None
            found.append(Judgement(evaluation=evaluation, step=pin.step, found=record))
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, one.evaluation.created))


def stage_of(parents: Mapping[str, Parent]) -> str:
    """Return the stage that an evaluation with these parents judges."""
    return next(stage for stage in JUDGED if stage in parents)
