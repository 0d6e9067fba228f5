"""`tools/runs.py list --watch`: the list as a live table, cheap also where there are ten thousand runs.

At each refresh the queue is asked once, for runs that may be at work. A run that is over is read again when one of its
folders has changed: whatever its state depends on is a file that is made or renamed in one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.reconcile import State
from experiments.registry import Registry
from experiments.run import Run
from launch.array_progress import span
from slurm import run_state
from slurm.run_state import Standing
from tools import run_facts, runs_list
from tools.run_facts import Looker

_FOLDERS = ("", "/attempts", "/intent", "/checkpoints", "/tasks")
_LINES_AROUND = 6
"""Title, head and foot with the blank lines and the rule between them."""
_TITLES = ("run", "state", "progress", "rate", "left", "loss", "nodes", "restarts", "last end")
_ALWAYS = ("run", "state", "progress", "last end")
_RIGHT = ("progress", "rate", "left", "loss", "restarts")


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen of a run at an earlier look."""

    folders: tuple[int, ...]
    """Times of change of its folders, in ns."""
    standing: Standing
    settled: bool
    """Read at two looks with the same times: one look may fall into the tick of the clock in which a file was made."""


class Standings:
    """Tells where runs stand again and again, and reads again only what may have changed."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self.read = 0
        """Runs that were read at the newest look."""

    def __call__(self, runs: Sequence[Run]) -> list[Standing]:
        """Tell where each run stands."""
        times = [_times(run) for run in runs]
        todo = [place for place, run in enumerate(runs) if not self._stays(run, times[place])]
        fresh = dict(zip(todo, run_state.standings([runs[place] for place in todo]), strict=True))
        seen = {}
        for place, run in enumerate(runs):
            before = self._seen.get(run.name)
            if place in fresh:
                settled = before is not None and before.folders == times[place]
                seen[run.name] = _Seen(folders=times[place], standing=fresh[place], settled=settled)
            elif before is not None:
                seen[run.name] = before
        self._seen, self.read = seen, len(todo)
        return [seen[run.name].standing for run in runs]

    def _stays(self, run: Run, folders: tuple[int, ...]) -> bool:
        before = self._seen.get(run.name)
        # Of what is in the queue, or may be, the queue has to be asked.
        return before is not None and before.settled and before.standing.idle and before.folders == folders


def _times(run: Run) -> tuple[int, ...]:
    if run.is_done():
        return ()
    return tuple(_changed(f"{run.folder}{folder}") for folder in _FOLDERS)


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 - asked of every run of a registry
    except FileNotFoundError:
        return 0


def show(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Show the table until Ctrl-C; ValueError where there is no terminal to show it on."""
    if not console.is_terminal:
        raise ValueError("list --watch needs a terminal; to print the list once: python tools/runs.py list")
    watch = Watch(registry, options)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                began_s = time.monotonic()
                live.update(watch.table(console), refresh=True)
                # A registry that is slow to read is not read all the time.
                took_s = time.monotonic() - began_s
                time.sleep(max(options.watch - took_s, took_s))
        except KeyboardInterrupt:
            return 0


class Watch:
    """The table, look by look."""

    def __init__(self, registry: Registry, options: argparse.Namespace) -> None:
        self.registry, self.options = registry, options
        self.standings = Standings()
        self._looker = Looker()

    def table(self, console: Console) -> Table | Text:
        """Look, and return the table that fits on the console."""
        room = max(1, console.height - _LINES_AROUND)
        limit = min(room, self.options.limit or room)
        try:
            runs = runs_list.filtered(self.registry, self.options)
            chosen, more = runs_list.choose(runs, self.options, limit, self.standings, default_sort="state")
            rows = [self._row(run, standing) for run, standing in chosen]
        except (FileNotFoundError, ValueError) as error:  # a run was removed while it was read
            return Text(f"{self.registry.home}: {error}; looking again")
        shown = [title for title in _TITLES if title in _ALWAYS or any(row[title] for _, row in rows)]
        clock = time.strftime("%H:%M:%S")
        table = Table(
            title=Text(
                f"{clock}, every {self.options.watch:g} s, Ctrl-C ends: {self.registry.home}",
                no_wrap=True,
                overflow="ellipsis",
            ),
            caption=f"and {more:,} more" if more else None,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            expand=True,
        )
        for title in shown:
            table.add_column(
                title,
                justify="right" if title in _RIGHT else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if title == "last end" else None,
                min_width=len(title),
            )
        for state, row in rows:
            table.add_row(
                *(Text(row[title], style=runs_list.COLOURS[state] if title == "state" else "") for title in shown)
            )
        return table

    def _row(self, run: Run, standing: Standing) -> tuple[State, dict[str, str]]:
        state = standing.state
        facts = self._looker.look(run, state)
        again = run_facts.restarts(standing.attempts)
        return state, {
            "run": run.name,
            "state": state,
            "progress": f"{facts.done}/{facts.of}" if facts.of else "",
            "rate": f"{facts.per_second:.3g}/s" if facts.per_second is not None else "",
            "left": span(facts.left_s) if facts.left_s is not None else "",
            "loss": f"{facts.loss:.4g}" if facts.loss is not None else "",
            "nodes": run_facts.nodes(standing),
            "restarts": str(again) if again else "",
            "last end": runs_list.last_end(standing),
        }
