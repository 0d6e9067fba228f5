"""`tools/runs.py list`: one line a run, filtered, sorted and cut, quick also where there are ten thousand.

What can be said by folder names and one look at run.json comes first; the state is derived only of the runs that are
left to show, unless it is what they are chosen or sorted by, and the queue is asked once for all.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from typing import get_args

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from experiments.reconcile import FREE_ENDS, State, newest_of_groups
from experiments.registry import Registry
from experiments.run import AttemptRecord, Run
from launch.array_progress import span
from launch.progress import STARTING, status
from launch.stages import STAGES
from slurm import run_state
from slurm.run_state import Standing
from tools.run_story import end_of

SHOWN = 50
STATES: tuple[State, ...] = get_args(State)
_BY_URGENCY: tuple[State, ...] = ("running", "queued", "poisoned", "failed", "unknown", "stopped", "done")
_COLOURS: dict[State, str] = {
    "done": "green", "running": "cyan", "queued": "blue", "stopped": "yellow", "failed": "red", "poisoned": "bold red",
    "unknown": "magenta",
}  # fmt: skip
_TITLES = ("stage", "name", "state", "progress", "attempts", "last end", "age")
_UNITS_S = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `list`."""
    parser.add_argument("--stage", choices=list(STAGES), help="only runs of this stage")
    parser.add_argument("--state", nargs="+", choices=STATES, metavar="STATE", help=f"only: {', '.join(STATES)}")
    parser.add_argument("--recipe", help="only runs that this recipe made first")
    parser.add_argument("--name", metavar="TEXT", help="only runs with this text in their name or id")
    parser.add_argument(
        "--since", type=since, metavar="WHEN", help="only runs created since: 30min, 12h, 3d, 2026-05-31"
    )
    parser.add_argument(
        "--sort",
        choices=("age", "name", "state", "progress"),
        default="age",
        help="newest first (default), by name, what is at work or needs you first, or what is furthest first",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--limit", type=int, default=SHOWN, metavar="N", help=f"lines to show (default: {SHOWN})")
    number.add_argument("--all", action="store_const", const=0, dest="limit", help="show all")


def since(text: str) -> float:
    """Return the time that `3d` (before now) or `2026-05-31` stands for, in seconds since the epoch."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(min|h|d|w)", text):
        return time.time() - float(match[1]) * _UNITS_S[match[2]]
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d"))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time such as 30min, 12h, 3d nor a day") from None


def show(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Print the list."""
    runs = [
        run
        for run in registry.runs(options.stage)
        if (options.recipe is None or run.folder.name.rpartition("-")[0] == options.recipe)
        and (options.name is None or options.name in run.name)
        and (options.since is None or run.created >= options.since)
    ]
    chosen, more = _choose(runs, options)
    if not chosen:
        like = "" if next(registry.runs(), None) is None else " like this"
        console.print(f"no runs{like} in {registry.home}", soft_wrap=True)
        return 0
    lines = _lines([_row(run, standing) for run, standing in chosen], console)
    # Not through rich, which would take a second for every three thousand lines.
    console.file.write("\n".join(lines) + "\n")
    if more:
        console.print(f"and {more:,} more: --all, --limit N, or choose by --state, --stage, --recipe, --name, --since")
    return 0


def _choose(runs: list[Run], options: argparse.Namespace) -> tuple[list[tuple[Run, Standing]], int]:
    """Return the runs to show in their order, each with its standing, and how many more there are."""
    limit = options.limit or len(runs)
    runs.sort(key=lambda run: run.created, reverse=True)
    if options.sort == "name":
        runs.sort(key=lambda run: run.name)
    if options.state is None and options.sort in ("age", "name"):
        return list(zip(runs[:limit], run_state.standings(runs[:limit]), strict=True)), max(0, len(runs) - limit)
    found = list(zip(runs, run_state.standings(runs), strict=True))
    if options.state is not None:
        found = [(run, standing) for run, standing in found if standing.state in options.state]
    if options.sort == "state":
        found.sort(key=lambda pair: _BY_URGENCY.index(pair[1].state))
    elif options.sort == "progress":
        found.sort(key=lambda pair: 1.0 if pair[1].state == "done" else status(pair[0])[0], reverse=True)
    return found[:limit], max(0, len(found) - limit)


def _row(run: Run, standing: Standing) -> tuple[str, ...]:
    state, attempts = standing.state, standing.attempts
    return (
        run.stage,
        run.folder.name,
        state,
        progress(run, state),
        str(run.num_attempts()),
        _printable(end_of(telling(attempts, state), standing)) if attempts else "",
        span(time.time() - run.created),
    )


def _printable(text: str) -> str:
    """Return a text, which may quote what a library wrote, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _lines(rows: Sequence[tuple[str, ...]], console: Console) -> list[str]:
    """Return the table's lines; the last end takes what room is left, the other columns are whole."""
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    last = _TITLES.index("last end")
    room = console.width - sum(widths) + widths[last] - (len(widths) - 1)
    widths[last] = max(len(_TITLES[last]), min(widths[last], room))
    colour = console.is_terminal and not console.no_color

    def line(row: Sequence[str]) -> str:
        cells = [
            cell[:width].rjust(width) if title == "attempts" else cell[:width].ljust(width)
            for title, cell, width in zip(_TITLES, row, widths, strict=True)
        ]
        if colour and row is not _TITLES:
            style = Style.parse(_COLOURS[row[2]])  # type: ignore[index]
            cells[2] = style.render(cells[2], color_system=ColorSystem.STANDARD)
        return " ".join(cells).rstrip()

    return [line(_TITLES), *map(line, rows)]


def telling(attempts: Sequence[AttemptRecord], state: State) -> AttemptRecord:
    """Return the attempt whose end tells why the run is in its state: of an array one that failed, if it failed."""
    ended_badly = [one for one in newest_of_groups(attempts) if failed(one)] if state in ("failed", "poisoned") else []
    return (ended_badly or list(attempts))[-1]


def failed(attempt: AttemptRecord) -> bool:
    """Return whether an attempt ended in error, hang or without a word."""
    return attempt.end is None or attempt.end["kind"] not in FREE_ENDS


def progress(run: Run, state: State) -> str:
    """Return how far a run is, in a few words."""
    if state == "done":
        return "100%"
    share, note = status(run)
    if note == STARTING and state not in ("running", "queued"):
        return ""
    return f"{share:.0%} {note.split('  ')[0]}"
