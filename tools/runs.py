"""Look at runs and stop them: everything is read from the run folders and the queue, nothing is kept elsewhere.

    python tools/runs.py list [--stage clip]
    python tools/runs.py show ID          ID: the run's id, its folder's name or the start of either
    python tools/runs.py why ID
    python tools/runs.py logs ID [--rank 1] [--attempt 3] [--follow]
    python tools/runs.py stop ID

States are derived just as a launcher decides (`slurm/run_state.py`). An error of the user ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.reconcile import FREE_ENDS, State, newest_of_groups
from experiments.registry import AttemptRecord, Registry, Run, default_home
from launch.array_progress import ArrayWatch, span
from launch.progress import STARTING, status
from launch.stages import STAGES
from slurm import job_state, logs, run_state
from slurm.run_state import Standing
from tools.run_story import end_of, story

USER_ERROR = 2
INTERRUPTED = 130
PIPE_COLUMNS = 180
QUESTIONS_AT_ONCE = 8
FOLLOW_POLL_S = 0.25
FOLLOW_ASK_S = 2.0
SHOWN_BAD = 20
SHOWN_ATTEMPTS = 10
_COLOURS: dict[State, str] = {
    "done": "green", "running": "cyan", "queued": "blue", "stopped": "yellow", "failed": "red", "poisoned": "bold red",
    "unknown": "magenta",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    registry = Registry(default_home())
    # A pipe has no width of its own, and a cut id is of no use to the next program.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    try:
        if options.command == "list":
            return _list(console, registry, options.stage)
        stage, _, name = options.run.rpartition("/")
        run = registry.find(name, stage or None)
        if options.command == "logs":
            return _logs(run, options.rank, options.attempt, follow=options.follow)
        return {"show": _show, "why": _why, "stop": _stop}[options.command](console, run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/runs.py", description="Look at runs, and stop them.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="one line a run, oldest first")
    listing.add_argument("--stage", choices=list(STAGES), help="only runs of this stage")
    for name, text in (
        ("show", "all that is on record"),
        ("why", "what happened to it, in sentences"),
        ("logs", "its newest log"),
        ("stop", "ask it to save and stop"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="ID", help="the run's id, its folder's name or the start of either")
        if name == "logs":
            command.add_argument("--rank", type=int, default=0, help="training process; 0 or more (default: 0)")
            command.add_argument("--attempt", type=int, help="attempt (default: the newest)")
            command.add_argument("--follow", action="store_true", help="stay, and print what comes, until it ends")
    return parser


def _list(console: Console, registry: Registry, stage: str | None) -> int:
    runs = sorted(registry.runs(stage), key=lambda run: run.spec.created)
    if not runs:
        console.print(f"no runs in {registry.home}", soft_wrap=True)
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "name", "state", "progress", "attempts"):
        table.add_column(title, no_wrap=True, justify="right" if title == "attempts" else "left")
    table.add_column("last end", no_wrap=True, ratio=1)
    table.add_column("age", no_wrap=True)
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:  # most of the time goes into waiting for squeue
        for row in pool.map(_row, runs):
            table.add_row(*row)
    console.print(table)
    return 0


def _row(run: Run) -> tuple[str, ...]:
    standing = run_state.standing(run)
    attempts, state = run.attempts(), standing.state
    return (
        run.spec.stage,
        run.folder.name,
        f"[{_COLOURS[state]}]{state}[/]",
        _progress(run, state),
        str(len(attempts)),
        escape(end_of(_telling(attempts, state), standing)) if attempts else "",
        span(time.time() - run.spec.created),
    )


def _telling(attempts: Sequence[AttemptRecord], state: State) -> AttemptRecord:
    """Return the attempt whose end tells why the run is in its state: of an array one that failed, if it failed."""
    failed = [one for one in newest_of_groups(attempts) if _failed(one)] if state in ("failed", "poisoned") else []
    return (failed or list(attempts))[-1]


def _failed(attempt: AttemptRecord) -> bool:
    return attempt.end is None or attempt.end["kind"] not in FREE_ENDS


def _progress(run: Run, state: State) -> str:
    if state == "done":
        return "100%"
    share, note = status(run)
    if note == STARTING and state not in ("running", "queued"):
        return ""
    return f"{share:.0%} {note.split('  ')[0]}"


def _show(console: Console, run: Run) -> int:
    spec, standing = run.spec, run_state.standing(run)
    facts: list[tuple[str, str]] = [
        ("run", run.name),
        ("state", f"{standing.state} ({standing.decision.reason})"),
        ("progress", _progress(run, standing.state)),
        ("folder", str(run.folder)),
        ("created", f"{_clock(spec.created)} by {spec.creator}"),
    ]
    facts += [("parent", f"{name} {parent.id}, digest {parent.digest[:16]}") for name, parent in spec.parents.items()]
    facts += [("source", spec.source[:16])] if spec.source else []
    facts += [("input", f"{name} = {value}") for name, value in spec.inputs.items()]
    facts += [("config", line) for line in _leaves(spec.config)]
    if not STAGES[spec.stage].training:
        facts += _array(run, standing)
    facts += _attempts(run, standing)
    facts += [("commit", f"step {commit.step}, attempt {commit.attempt}") for commit in run.commits()]
    newest = {record.get("split", "train"): record for record in run.metrics()}
    for split, record in newest.items():
        shown = ", ".join(f"{name} {_number(record[name])}" for name in sorted(record) if name not in ("split", "time"))
        facts.append((f"metrics, {split}", shown))
    for name, value in sorted((run.done() or {}).items()):
        facts.append(("done", f"{name} = {_clock(value) if name == 'time' else value}"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    last = ""
    for title, value in facts:
        table.add_row("" if title == last else title, escape(value))
        last = title
    console.print(table)
    return 0


def _array(run: Run, standing: Standing) -> list[tuple[str, str]]:
    """Return how far an array is: tasks, clips, and the first bad clips with their reasons."""
    found = ArrayWatch(run).look()
    if found is None:
        return []
    running = min(len(standing.at_work), found.tasks - found.done)
    queued = found.tasks - found.done - running if standing.decision.action == "attach" else 0
    left = found.tasks - found.done - running - queued
    parts = [(found.done, "done"), (running, "running"), (queued, "queued"), (left, "left for the next launch")]
    facts = [("tasks", f"{found.tasks}: " + ", ".join(f"{number} {what}" for number, what in parts if number))]
    if standing.state == "running" and found.left_s is not None:
        unit = "clips" if found.all_clips else "tasks"
        facts.append(("rate", f"{found.per_second:.3g} {unit}/s, {span(found.left_s)} left"))
    if found.all_clips:
        facts.append(("clips", f"{found.clips} of {found.all_clips}, {len(found.bad)} of them bad"))
    bad = list(found.bad.items())
    facts += [("bad clips", f"{clip}: {reason}") for clip, reason in bad[:SHOWN_BAD]]
    if len(bad) > SHOWN_BAD:
        whole = run.folder / "store" / "bad_clips.json"
        where = whole if whole.exists() else f"the events.*.jsonl in {run.folder}"
        facts.append(("bad clips", f"and {len(bad) - SHOWN_BAD} more; all of them: {where}"))
    return facts


def _attempts(run: Run, standing: Standing) -> list[tuple[str, str]]:
    """Return the attempts, of many a sum and the newest that failed."""
    attempts = run.attempts()
    shown = attempts
    facts = []
    if len(attempts) > SHOWN_ATTEMPTS:
        kinds = Counter(end_of(attempt, standing).split(":")[0] for attempt in attempts)
        facts.append(("attempts", f"{len(attempts)}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())))
        shown = [one for one in attempts if _failed(one) and one.number not in standing.at_work][-SHOWN_ATTEMPTS:]
    for attempt in shown:
        facts.append((f"attempt {attempt.number}", f"{_clock(attempt.claim['time'])} {end_of(attempt, standing)}"))
    return facts


def _leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _leaves(item, f"{path}.{key}" if path else key)]
    return [f"{path} = {json.dumps(value, ensure_ascii=False)}"]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _why(console: Console, run: Run) -> int:
    console.print(f"[bold]{run.name}[/bold]", soft_wrap=True)
    for sentence in story(run, run_state.standing(run), now=time.time()):
        console.print(escape(sentence), soft_wrap=True)
    return 0


def _logs(run: Run, rank: int, number: int | None, *, follow: bool) -> int:
    number = run.newest_attempt() if number is None else number
    path = _log_path(run, number, rank)
    print(f"==> {path}", file=sys.stderr)
    asked_s = time.monotonic()
    with path.open("rb") as log:
        while True:
            # Asked before the rest is read, so that the last lines are not missed.
            over = not follow
            if follow and time.monotonic() - asked_s >= FOLLOW_ASK_S:
                asked_s = time.monotonic()
                over = number not in run_state.standing(run).at_work
            sys.stdout.buffer.write(log.read())
            sys.stdout.buffer.flush()
            if over:
                return 0
            time.sleep(FOLLOW_POLL_S)


def _log_path(run: Run, number: int, rank: int) -> Path:
    """Return an attempt's log, or the job's own where it has started none; ValueError where there is no such log."""
    attempts = {attempt.number: attempt for attempt in run.attempts()}
    if number in attempts:
        path: Path | None = logs.of_attempt(run, attempts[number], rank)
    elif attempts:
        raise ValueError(f"{run.name} has no attempt {number}; it has: {', '.join(map(str, attempts))}")
    else:
        path = logs.of_job(run)
    if path is None or not path.exists():
        folder = logs.folder_of(run.folder)
        there = ", ".join(sorted(entry.name for entry in folder.glob("*.*"))) or "nothing yet"
        raise ValueError(f"{run.name}: no log of rank {rank} of attempt {number}; in {folder}: {there}")
    return path


def _stop(console: Console, run: Run) -> int:
    state = run_state.standing(run).state
    if state == "done":
        console.print(f"{run.name} is done already", soft_wrap=True)
        return 0
    run.request_stop()
    for intent in run.intents()[-1:]:
        job_state.try_cancel_queued(intent)
    said = {
        "running": "asked to save and stop",
        "queued": "asked to stop as soon as it starts",
        "unknown": "asked to save and stop, if it is at work at all",
    }.get(state, f"nothing works on it ({state})")
    console.print(f"{run.name}: {said}; the same launch command goes on from there", soft_wrap=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
