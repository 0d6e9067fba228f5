"""What the benches share: contestants measured in turns, medians, the table for people, the flat object for `--json`.

All contestants run once a round, each round beginning one contestant further, so that a machine that slows down slows
all of them alike. A ratio is the median of the rounds' ratios: both sides of a round saw the same machine. Invariant: a
figure that could not be measured is absent from the JSON and its reason is printed; nothing is ever filled in.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROUNDS = 5
"""Rounds of every bench, `--quick` included: `--quick` makes the work of a round smaller, not the medians."""


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    """What every bench takes."""

    quick: bool = False
    """Less work a round, so that the bench ends within 50 s on 2 cores."""
    json: Path | None = None
    """File for the flat object of figures."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure should be: at least `low`, at most `high`."""

    low: float = float("-inf")
    high: float = float("inf")

    def __str__(self) -> str:
        return f"<= {self.high:g}" if self.high < float("inf") else f">= {self.low:g}"

    def met(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return self.low <= value <= self.high


@dataclass(kw_only=True)
class Results:
    """`figures` go into the JSON; `rounds`: what was measured, by contestant; `absent`: why a figure is missing."""

    unit: str
    """Of the rounds' values."""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def ratio(self, key: str, above: str, below: str) -> None:
        """Add figure `key`: contestant `above` over contestant `below`; absent if one of the two is."""
        for name in (above, below):
            if name not in self.rounds:
                self.absent[key] = self.absent.get(name, f"{name} was not measured")
                return
        self.figures[key] = median_ratio(self.rounds[above], self.rounds[below])


def interleaved(
    contestants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS, *, show: bool = True
) -> dict[str, list[float]]:
    """Call each contestant once a round and return what they gave, by contestant, in the order of the rounds.

    A contestant does its work and returns its own figure, for example `cpu_seconds(work) / clips`. show: the progress.
    """
    names = list(contestants)
    values: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(rounds), "rounds", console=Console(stderr=True), transient=True, disable=not show):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            values[name].append(contestants[name]())
    return values


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of above / below."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of `work` in this process, all threads, user and system."""
    start = time.process_time()
    work()
    return time.process_time() - start


def children_cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of the child processes that `work` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def publish(results: Results, goals: Mapping[str, Goal], arguments: BenchArguments) -> None:
    """Print both tables and what is absent; write the JSON if a file is given."""
    console = Console()
    console.print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}")
    measured = Table("contestant", f"median, {results.unit}", "lowest", "highest")
    for name, values in results.rounds.items():
        row = (statistics.median(values), min(values), max(values))
        measured.add_row(name, *(f"{value:.4g}" for value in row))
    console.print(measured)
    figures = Table("figure", "value", "goal", "")
    for key, value in results.figures.items():
        goal = goals.get(key)
        verdict = "" if goal is None else "met" if goal.met(value) else "MISSED"
        figures.add_row(key, f"{value:.4g}", "" if goal is None else str(goal), verdict)
    console.print(figures)
    for name, reason in results.absent.items():
        console.print(f"{name}: not measured: {reason}", highlight=False, soft_wrap=True, markup=False)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results.figures, indent=1) + "\n")
