"""Which runs a report is about: those named, with their lineage or alone, or the newest of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.registry import Registry
from experiments.run import Run
from tools.runs_lineage import related

NEWEST = 500


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The runs of a report."""

    runs: list[Run]
    """The newest first."""
    named: list[Run]
    """Those that were asked for by name; none where the whole registry was."""
    left_out: int
    """Older runs of the registry that are not among them because there are so many."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a report was asked for."""

    named: Sequence[str] = ()
    """References as `tools/runs.py` takes them; none: the whole registry."""
    alone: bool = False
    """Leave the lineage of the named runs out."""
    newest: int = NEWEST
    """Runs of a whole registry, 1 or more."""

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise ValueError(f"--newest {self.newest} must be 1 or more")
        if self.alone and not self.named:
            raise ValueError("--alone needs the id of a run: tools/report.py ID --alone")

    def choose(self, registry: Registry) -> Chosen:
        """Return the runs as of now.

        Raises ValueError where a reference does not name just one run, or there is no run at all.
        """
        everything = sorted(registry.runs(), key=lambda run: run.created, reverse=True)
        if not everything:
            raise ValueError(f"there are no runs in {registry.home}; set DALLE2_VIDEO_HOME to the registry's folder")
        if not self.named:
            return Chosen(runs=everything[: self.newest], named=[], left_out=max(0, len(everything) - self.newest))
        by_id = {run.id: run for run in everything}
        named = [registry.find(name, stage or None) for stage, _, name in (one.rpartition("/") for one in self.named)]
        wanted = {one.id for one in named}
        if not self.alone:
            wanted |= {relative for one in named for relative in related(by_id, one.id)}
        return Chosen(runs=[run for run in everything if run.id in wanted], named=named, left_out=0)
