"""Look at runs, stop them, tidy up: everything is read from the run folders and the queue, nothing is kept elsewhere.

    python tools/runs.py list [--state failed poisoned] [--stage clip] [--name TEXT] [--since 3d] [--sort state]
    python tools/runs.py list --watch [SECONDS]
    python tools/runs.py show ID          ID: the run's id, its folder's name or the start of either
    python tools/runs.py why ID
    python tools/runs.py logs ID [--rank 1] [--attempt 3 | --group 2] [--follow]
    python tools/runs.py stop ID
    python tools/runs.py save ID
    python tools/runs.py lineage ID
    python tools/runs.py compare ID ID [--svg FILE]
    python tools/runs.py heal [--dry-run] [--limit N] [--older-than 2min]
    python tools/runs.py gc [--dry-run] [--older-than DAYS] [--runs]

States are derived just as a launcher decides (`slurm/run_state.py`). An error of the user ends with exit code 2.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.markup import escape

from experiments.registry import Registry, default_home
from experiments.run import Run
from launch.console import Console, print_error
from launch.stages import STAGES
from slurm import job_state, run_state
from tools import (
    runs_compare,
    runs_gc,
    runs_heal,
    runs_lineage,
    runs_list,
    runs_logs,
    runs_plans,
    runs_show,
    runs_watch,
)
from tools.run_story import SlurmWords, story

USER_ERROR = 2
INTERRUPTED = 130
PIPE_COLUMNS = 180


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    registry = Registry(default_home())
    # A pipe has no width of its own, and a cut id is of no use to the next program.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    try:
        return _do(options, console, registry)
    except ValueError as error:
        print_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _do(options: argparse.Namespace, console: Console, registry: Registry) -> int:
    match options.command:
        case "list":
            if options.watch is not None:
                return runs_watch.show(console, registry, options)
            code = runs_list.show(console, registry, options)
            if not (options.state or options.name or options.recipe or options.since):
                runs_plans.show(console, registry, options.stage)
            return code
        case "heal":
            return runs_heal.heal(console, registry, options)
        case "gc":
            return runs_gc.collect(console, registry, options)
        case "compare":
            first, second = (_find(registry, reference) for reference in options.runs)
            return runs_compare.show(console, (first, second), options.svg)
    if options.command == "why" and (one := runs_plans.find(registry, options.run)) is not None:
        return runs_plans.why(console, registry, one)
    run = _find(registry, options.run)
    match options.command:
        case "show":
            return runs_show.show(console, run)
        case "why":
            return _why(console, run)
        case "logs":
            return runs_logs.show(run, options.rank, options.attempt, options.group, follow=options.follow)
        case "lineage":
            return runs_lineage.show(console, registry, run)
        case "save":
            return _save(console, run)
    return _stop(console, run)


def _find(registry: Registry, reference: str) -> Run:
    stage, _, name = reference.rpartition("/")
    return registry.find(name, stage or None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/runs.py", description="Look at runs, stop them, tidy up.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs_list.add_options(commands.add_parser("list", help="one line a run"))
    which = "the run's id, its folder's name or the start of either"
    for name, text in (
        ("show", "all that is on record of a run"),
        ("why", "what happened to a run, in sentences"),
        ("logs", "a rank's log, of the newest attempt"),
        ("stop", "ask a run to save and stop"),
        ("save", "ask a training for a checkpoint now"),
        ("lineage", "the tree from store to samples in which a run stands"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("run", metavar="ID", help=which)
        if name == "logs":
            command.add_argument("--rank", type=int, default=0, help="training process; 0 or more (default: 0)")
            which_one = command.add_mutually_exclusive_group()
            which_one.add_argument("--attempt", type=int, metavar="N", help="attempt (default: the newest)")
            which_one.add_argument("--group", type=int, metavar="G", help="newest attempt of this group of an array")
            command.add_argument("-f", "--follow", action="store_true", help="stay, and print what comes, to its end")
    text = "how two runs differ in config, parents and metrics, with their curves"
    compare = commands.add_parser("compare", help=text, description=text)
    compare.add_argument("runs", nargs=2, metavar="ID", help=which)
    compare.add_argument("--svg", type=Path, metavar="FILE", help="draw both loss curves into this file")
    text = "remove what nobody needs: superseded checkpoints and leftovers of attempts that are over"
    runs_gc.add_options(commands.add_parser("gc", help=text, description=text))
    text = "resume what should be at work and is not: lost and failed runs that nobody stopped; says nothing if none is"
    runs_heal.add_options(commands.add_parser("heal", help=text, description=text))
    return parser


def _why(console: Console, run: Run) -> int:
    console.print(f"[bold]{run.name}[/bold]", soft_wrap=True)
    for sentence in story(run, run_state.standing(run), SlurmWords.asked(run.intents()), now=time.time()):
        console.print(escape(sentence), soft_wrap=True)
    return 0


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


def _save(console: Console, run: Run) -> int:
    state = run_state.standing(run).state
    if state != "running" or not STAGES[run.stage].training:
        what = (
            f"no training is at work on it ({state})" if STAGES[run.stage].training else "an array saves task by task"
        )
        raise ValueError(f"{run.name}: {what}; there is nothing to save")
    run.request_save()
    console.print(f"{run.name}: asked for a checkpoint after the step at hand", soft_wrap=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
