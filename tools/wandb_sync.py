"""Send runs' metrics to Weights & Biases: of offline runs, or what a mirror could not send while the run was at work.

    python tools/wandb_sync.py ID [ID ...] [--project NAME] [--entity NAME] [--dry-run]
    python tools/wandb_sync.py --all          every run that was told --wandb offline or online

What goes out are the run's own `metrics.*.jsonl`, not what wandb wrote offline, and of these only the records whose
steps W&B does not have: stopped half-way or run again, nothing is sent twice. One at a time: two that send the same
run at the same moment do not know of each other. Needs the account's key, as `wandb login` stores it or in
WANDB_API_KEY. Exit code 1: something could not be sent; 2: an error of the user.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.registry import Registry, default_home
from experiments.run import Run
from launch.console import Console, print_error
from slurm import run_state, tracking
from slurm.wandb_mirror import Mirror, NewRecords, in_short

USER_ERROR = 2
INTERRUPTED = 130
DEFAULT_PROJECT = "dalle2-video"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run with metrics and what its newest launch said of W&B."""

    run: Run
    mode: str
    project: str
    entity: str | None
    records: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        sources = list(_chosen(Registry(default_home()), options))
        failures = sum(not _sent(console, source, dry_run=options.dry_run) for source in sources)
    except ValueError as error:
        print_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if not sources:
        console.print("no run with metrics was told to use W&B (--wandb offline or online); name others by their ids")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/wandb_sync.py", description="Send runs' metrics to Weights & Biases.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("runs", nargs="*", default=[], metavar="ID", help="a run's id, its folder's name or its start")
    which.add_argument("--all", action="store_true", help="every run that was launched with --wandb offline or online")
    parser.add_argument("--project", metavar="NAME", help="project (default: the run's own)")
    parser.add_argument("--entity", metavar="NAME", help="user or team (default: the run's own, or the account's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent where; ask nobody, send nothing")
    return parser


def _chosen(registry: Registry, options: argparse.Namespace) -> Iterator[Source]:
    """Yield the runs to send. Raises ValueError where one that is named has nothing to send."""
    if options.all:
        sources = (_source(run, options) for run in registry.runs())
        yield from (source for source in sources if source.mode != "disabled" and source.records)
        return
    for reference in options.runs:
        stage, _, name = reference.rpartition("/")
        source = _source(registry.find(name, stage or None), options)
        if not source.records:
            raise ValueError(f"{source.run.name} has no metrics; see: python tools/runs.py show {source.run.id}")
        yield source


def _source(run: Run, options: argparse.Namespace) -> Source:
    number = run.newest_intent()
    told = run.intent(number).request.get("runtime", {}) if number else {}
    return Source(
        run=run,
        mode=told.get("wandb", "disabled"),
        project=options.project or told.get("wandb_project", DEFAULT_PROJECT),
        entity=options.entity or told.get("wandb_entity"),
        records=len(NewRecords(run.folder).read()),
    )


def _sent(console: Console, source: Source, *, dry_run: bool) -> bool:
    """Send what W&B does not have of a run; return whether that came about."""
    run = source.run
    running = run_state.standing(run).state == "running"
    if running and source.mode == "online" and not _mirror_gave_up(run):
        console.print(f"{run.name}: at work and mirrored already")
        return True
    where = "/".join(filter(None, (source.entity, source.project)))
    if dry_run:
        console.print(f"{run.name}: would send what {where} does not have of {source.records} records")
        return True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    sent = 0
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dalle2_video-wandb-", ignore_cleanup_errors=True) as folder,
            Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        ):
            bar = progress.add_task(f"{run.name}: connecting", total=None)
            mirror = Mirror(
                run,
                mode="online",
                project=source.project,
                entity=source.entity,
                folder=Path(folder),
                x_disable_stats=True,
                x_update_finish_state=not running,
            )
            for record in progress.track(mirror.pending(), task_id=bar, description=run.name):
                mirror.send(record)
                sent += 1
            progress.update(bar, description=f"{run.name}: waiting until all is sent")
            mirror.finish("done" if run.is_done() else _last_end(run))
    # wandb may raise anything, and what one run meets need not stop the others.
    except Exception as error:
        print_error(f"{run.name} could not be sent to {where}: {in_short(error)}")
        return False
    console.print(f"{run.name}: {sent} of {source.records} records sent to {mirror.url or where}", markup=False)
    return True


def _mirror_gave_up(run: Run) -> bool:
    newest = run.newest_attempt()
    return any(event["event"] == tracking.EVENT and event["attempt"] == newest for event in run.events())


def _last_end(run: Run) -> str | None:
    end = run.attempt(run.newest_attempt()).end
    return end["kind"] if end else None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Past wandb's exit hooks, which wait half a minute for a server that did not answer before.
    os._exit(code)
