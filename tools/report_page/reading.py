"""From a registry to all that a page shows, again and again: of a run that did not change nothing is read twice."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import track

from experiments.reconcile import Decision
from experiments.registry import Registry
from experiments.run import Intent, Run
from launch.stages import STAGES
from slurm import run_state
from slurm.run_state import Standing
from tools.report_page.collect import DAMAGE, Collected, Look, buckets_per_curve, collect
from tools.report_page.selection import Selection
from tools.report_page.text import visible
from tools.run_story import SlurmWords

_FOLDERS = ("", "attempts", "intent", "tasks", "checkpoints", "samples", "evaluation", "store")
"""Folders of a run in which something appears when it changes."""
MOST_CLIPS = 24

Signature = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows, as plain values."""

    index: dict[str, Any]
    """What the overview needs: `runs`, newest first, and what the report is about."""
    details: dict[str, str]
    """JSON of each run's page by its id."""


@dataclass(kw_only=True)
class Reader:
    """Reads a selection of a registry's runs."""

    registry: Registry
    selection: Selection
    most_clips: int = MOST_CLIPS
    show_progress: bool = False
    _known: dict[str, tuple[Signature, Collected]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.most_clips < 0:
            raise ValueError(f"--clips {self.most_clips} must be 0 or more")

    def read(self) -> Report:
        """Return the report as of now. Raises ValueError where the selection names no runs."""
        chosen = self.selection.choose(self.registry)
        runs, now = chosen.runs, time.time()
        standings = _standings(runs)
        unfinished = [run for run, standing in zip(runs, standings, strict=True) if standing.state != "done"]
        slurm = SlurmWords.asked([intent for run in unfinished for intent in _intents(run)])
        digests = {run.id: _digest(run) for run in self.registry.runs()}
        known: dict[str, tuple[Signature, Collected]] = {}
        pairs = list(zip(runs, standings, strict=True))
        for run, standing in track(pairs, description="reading", disable=not self.show_progress, transient=True):
            look = Look(
                standing=standing,
                slurm=slurm,
                digests=digests,
                now=now,
                most_buckets=buckets_per_curve(len(runs)),
                most_clips=self.most_clips,
            )
            # The words on a run say how long ago things were, and what Slurm says of it.
            words = int(now // 3600) if standing.state == "done" else (int(now // 60), repr(slurm))
            pinned = tuple(digests.get(parent) for parent in _parents(run))
            signature = (_signature(run), repr(standing), words, pinned, look.most_buckets)
            before = self._known.get(run.name)
            known[run.name] = before if before and before[0] == signature else (signature, collect(run, look))
        self._known = known
        collected = [known[run.name][1] for run in runs]
        return Report(
            index={
                "title": visible(", ".join(run.name for run in chosen.named) or str(self.registry.home)),
                "named": [visible(run.id) for run in chosen.named],
                "home": visible(str(self.registry.home)),
                "made": now,
                "left_out": chosen.left_out,
                "stages": list(STAGES),
                "runs": [one.row for one in collected],
            },
            details={one.row["id"]: one.detail for one in collected},
        )


def _standings(runs: Sequence[Run]) -> list[Standing]:
    """Tell where runs stand; of one whose records are damaged that this is so."""
    try:
        return run_state.standings(runs)
    except DAMAGE:
        return [_standing(run) for run in runs]


def _standing(run: Run) -> Standing:
    try:
        return run_state.standings([run])[0]
    except DAMAGE as error:
        reason = f"its records are damaged ({type(error).__name__}: {error})"
        return Standing(
            state="unknown", decision=Decision(action="unknown", reason=reason), at_work=frozenset(), attempts=()
        )


def _intents(run: Run) -> list[Intent]:
    with contextlib.suppress(*DAMAGE):  # collecting the run says so
        return run.intents()
    return []


def _parents(run: Run) -> list[str]:
    with contextlib.suppress(*DAMAGE):
        return [parent.id for parent in run.spec.parents.values()]
    return []


def _digest(run: Run) -> str | None:
    with contextlib.suppress(*DAMAGE):
        return (run.done() or {}).get("digest")
    return None


def _signature(run: Run) -> Signature:
    """Return what changes when something in a run's folder does."""
    found: list[tuple[str, int, int]] = []
    for name in _FOLDERS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(run.folder / name) as entries:
            for entry in entries:
                facts = entry.stat(follow_symlinks=False)
                found.append((f"{name}/{entry.name}", facts.st_mtime_ns, facts.st_size))
    return tuple(sorted(found))
