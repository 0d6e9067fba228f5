"""`tools/runs.py list`: one line a run, filtered, sorted and cut, quick also where there are ten thousand.

What can be said by folder names and one look at run.json comes first; the state is derived only of the runs that are
left to show, unless it is what they are chosen or sorted by, and the queue is asked once for all.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
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
from tools import run_facts
from tools.run_story import end_of

SHOWN = 50
STATES: tuple[State, ...] = get_args(State)
_BY_URGENCY: tuple[State, ...] = ("running", "queued", "poisoned", "failed", "unknown", "stopped", "done")
COLOURS: dict[State, str] = {
    "done": "green", "running": "cyan", "queued": "blue", "stopped": "yellow", "failed": "red", "poisoned": "bold red",
    "unknown": "magenta",
}  # fmt: skip
_TITLES = ("stage", "name", "state", "progress", "nodes", "restarts", "attempts", "last end", "age")
_RIGHT = ("restarts", "attempts")
_LEAST_LAST_END = 24
"""Width of the last end below which there is no room for nodes and restarts."""
WATCH_S = 5.0
LEAST_WATCH_S = 0.5
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
        help="newest first (default), by name, what is at work or needs you first (default of --watch), or what is "
        "furthest first",
    )
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=WATCH_S,
        metavar="SECONDS",
        help=f"stay, as a live table with rate, time left, loss and nodes, looked at again every SECONDS "
        f"(default: {WATCH_S:g}); Ctrl-C ends it",
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


def seconds(text: str) -> float:
    """Return the length of time between two looks."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not LEAST_WATCH_S <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, {LEAST_WATCH_S} or more")
    return found


def filtered(registry: Registry, options: argparse.Namespace) -> list[Run]:
    """Return the runs that the options let through, by what their names and times tell."""
    return [
        run
        for run in registry.runs(options.stage)
        if (options.recipe is None or run.folder.name.rpartition("-")[0] == options.recipe)
        and (options.name is None or options.name in run.name)
        and (options.since is None or run.created >= options.since)
    ]


def show(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Print the list."""
    runs = filtered(registry, options)
    chosen, more = choose(runs, options, options.limit or len(runs), run_state.standings, default_sort="age")
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


def choose(
    runs: list[Run],
    options: argparse.Namespace,
    limit: int,
    standings: Callable[[Sequence[Run]], list[Standing]],
    *,
    default_sort: str,
) -> tuple[list[tuple[Run, Standing]], int]:
    """Return the runs to show in their order, each with its standing, and how many more there are.

    limit: runs to show; standings: tells where runs stand; default_sort: the order unless the options name one.
    """
    sort = options.sort or default_sort
    runs.sort(key=lambda run: run.created, reverse=True)
    if sort == "name":
        runs.sort(key=lambda run: run.name)
    if options.state is None and sort in ("age", "name"):
        return list(zip(runs[:limit], standings(runs[:limit]), strict=True)), max(0, len(runs) - limit)
    found = list(zip(runs, standings(runs), strict=True))
    if options.state is not None:
        found = [(run, standing) for run, standing in found if standing.state in options.state]
    if sort == "state":
        found.sort(key=lambda pair: _BY_URGENCY.index(pair[1].state))
    elif sort == "progress":
        found.sort(key=lambda pair: 1.0 if pair[1].state == "done" else status(pair[0])[0], reverse=True)
    return found[:limit], max(0, len(found) - limit)


def _row(run: Run, standing: Standing) -> tuple[str, ...]:
    restarts = run_facts.restarts(standing.attempts)
    return (
        run.stage,
        run.folder.name,
        standing.state,
        progress(run, standing.state),
        run_facts.nodes(standing),
        str(restarts) if restarts else "",
        str(run.num_attempts()),
        last_end(standing),
        span(time.time() - run.created),
    )


def last_end(standing: Standing) -> str:
    """Return how the attempt ended that tells why a run is in its state, in one line."""
    return _printable(end_of(telling(standing.attempts, standing.state), standing)) if standing.attempts else ""


def _printable(text: str) -> str:
    """Return a text, which may quote what a library wrote, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _lines(rows: Sequence[tuple[str, ...]], console: Console) -> list[str]:
    """Return the table's lines; the last end takes what room is left, the other columns are whole.

    Nodes and restarts are left out where no run has any, and where the last end would have no room beside them.
    """
    widths = {
        title: max(map(len, (title, *column))) for title, column in zip(_TITLES, zip(*rows, strict=True), strict=True)
    }
    empty = [title for title in ("nodes", "restarts") if not any(row[_TITLES.index(title)] for row in rows)]
    titles = [title for title in _TITLES if title not in empty]
    if _room(titles, widths, console) < min(_LEAST_LAST_END, widths["last end"]):
        titles = [title for title in titles if title not in ("nodes", "restarts")]
    widths["last end"] = max(len("last end"), min(widths["last end"], _room(titles, widths, console)))
    colour = console.is_terminal and not console.no_color

    def line(row: Sequence[str]) -> str:
        cells = dict(zip(_TITLES, row, strict=True))
        shown = {
            title: cells[title][: widths[title]].rjust(widths[title])
            if title in _RIGHT
            else cells[title][: widths[title]].ljust(widths[title])
            for title in titles
        }
        if colour and row is not _TITLES:
            style = Style.parse(COLOURS[cells["state"]])  # type: ignore[index]
            shown["state"] = style.render(shown["state"], color_system=ColorSystem.STANDARD)
        return " ".join(shown.values()).rstrip()

    return [line(_TITLES), *map(line, rows)]


def _room(titles: Sequence[str], widths: dict[str, int], console: Console) -> int:
    """Return the width that the other columns leave for the last end."""
    return console.width - sum(widths[title] + 1 for title in titles if title != "last end")


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
