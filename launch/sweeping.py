"""The flow of `launch/sweep.py`: points -> runs -> those that are missing, at most so many at once -> table and plot.

On Slurm each job waits for the one so many places before it: a chain of `afterany` for each of the `--parallel` lanes.
On this machine runs are started as others end, and Ctrl-C asks those at work to save and stop.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from experiments import identity
from experiments.registry import Registry, default_home
from experiments.run import Run
from launch import submit, sweep_table
from launch.arguments import Arguments, parse
from launch.console import Console, print_error
from launch.parents import shared
from launch.proposal import Proposal, check_batch, create, order, parts_of, propose
from launch.stages import STAGES, StageInfo
from launch.start import start
from launch.sweep_points import Point, applied, points
from slurm import run_state

FOLDER = "sweeps"
POLL_S = 2.0
PIPE_COLUMNS = 180
"""A pipe has no width of its own, and a cut id is of no use to the next program."""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A point and the run that it means."""

    point: Point
    arguments: Arguments
    proposal: Proposal


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A parsed command line."""

    name: str
    info: StageInfo
    parallel: int
    """Runs at once; 0: on Slurm no limit, on this machine one."""
    show_only: bool
    base: Arguments
    trials: tuple[Trial, ...]
    typed: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring a sweep to work, or only show it; return the exit code."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    return submit.guarded(lambda: _run(typed))


def _run(typed: Sequence[str]) -> int:
    registry = Registry(default_home())
    sweep = parse_sweep(registry, typed)
    if sweep.base.options.dry_run or sweep.show_only:
        _tell(registry, sweep, write=sweep.show_only)
        return 0
    registry.check_writable()
    local = sweep.base.placement.resolved_cluster() == "local"
    code = _work(registry, sweep) if local else _submit(registry, sweep)
    _tell(registry, sweep, write=True)
    return code


def parse_sweep(registry: Registry, typed: Sequence[str]) -> Sweep:
    """Parse the command line; prints help, or an error and exits with code 2, where the parsers say so."""
    parser = _parser()
    own, rest = parser.parse_known_args(list(typed))
    if own.help:
        parser.print_help()
        print(f"\nand, of launch/{own.stage or 'STAGE'}.py:\n", flush=True)
        parse(STAGES[own.stage or "prior"], ["--help"])
    if own.stage is None:
        parser.error(f"--stage is missing: one of {', '.join(_stages())}")
    if own.parallel < 0 or own.random < 0:
        raise ValueError("--parallel and --random must be 0 or more")
    if own.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", own.name):
        raise ValueError(f"--name {own.name!r}: use letters, digits, dots, dashes and underscores")
    info = STAGES[own.stage]
    base = parse(info, rest)
    found = points(
        base.recipe, info.name, grid=own.grid, ranges=own.range, random=own.random, seed=own.sweep_seed
    )  # fmt: skip
    trials: list[Trial] = []
    for point in found:
        # One set of parents for all, even if another is finished meanwhile.
        pinned = shared(trials[0].proposal.spec.parents) if trials else {}  # a teacher goes by the point
        named = {stage: parent.id for stage, parent in pinned.items()}
        mine = replace(base, recipe=applied(base.recipe, point), parents=base.parents | named)
        check_batch(info, mine)
        trials.append(Trial(point=point, arguments=mine, proposal=propose(registry, info, mine)))
    return Sweep(
        name=own.name or _name(info, base, own),
        info=info,
        parallel=own.parallel,
        show_only=own.show,
        base=base,
        trials=tuple(trials),
        typed=shlex.join(["python", "launch/sweep.py", *typed]),
    )


def _stages() -> list[str]:
    return [name for name, info in STAGES.items() if info.training]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py", add_help=False, allow_abbrev=False, description="Try a stage with many settings."
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the options of the stage's launcher")
    parser.add_argument("--stage", choices=_stages(), help="training to try")
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="FIELD=V,V", help="values of a field of the recipe, each with each"
    )
    parser.add_argument("--random", type=int, default=0, metavar="N", help="draws from --range; 0 or more (default: 0)")
    parser.add_argument(
        "--range",
        nargs="+",
        default=[],
        metavar="FIELD=LOW..HIGH",
        help="where a number is drawn from; log:LOW..HIGH: evenly in its logarithm",
    )
    parser.add_argument("--sweep-seed", type=int, default=0, metavar="N", help="other draws (default: 0)")
    parser.add_argument(
        "--parallel", type=int, default=0, metavar="K", help="runs at once; 0 (default): on Slurm no limit, here one"
    )
    parser.add_argument("--name", help="name of the sweep's folder (default: made of what is swept)")
    parser.add_argument("--show", action="store_true", help="only the table and the plot, of what is there")
    return parser


def _name(info: StageInfo, base: Arguments, own: argparse.Namespace) -> str:
    """Name of a sweep: more values or draws, or other placements, leave it the sweep it is."""
    fields = sorted(text.partition("=")[0] for text in [*own.grid, *own.range])
    fixed = identity.without_defaults(parts_of(base.recipe, info.name))
    mark = identity.digest([info.name, fields, fixed, own.sweep_seed])[:6]
    return f"{info.name}-{base.recipe.name}-{mark}"


def _existing(registry: Registry, sweep: Sweep) -> list[Run | None]:
    folders = [registry.folder_of(trial.proposal.spec) for trial in sweep.trials]
    return [Run(folder) if (folder / "run.json").exists() else None for folder in folders]


def _submit(registry: Registry, sweep: Sweep) -> int:
    """Submit what is missing to Slurm; return the exit code."""
    runs = _existing(registry, sweep)
    there = [run for run in runs if run is not None and run.newest_intent()]
    standings = dict(zip([run.id for run in there], run_state.standings(there), strict=True))
    queue = _jobs([run for run in there if standings[run.id].decision.action == "attach"])
    code = submitted = 0
    for trial, run in zip(sweep.trials, runs, strict=True):
        known = standings.get(run.id) if run is not None else None
        if known is not None and known.decision.action in ("finished", "attach") and known.state != "stopped":
            continue
        before = behind(queue, sweep.parallel)
        proposal = trial.proposal
        asked = order(
            sweep.info, trial.arguments, tasks=0, clips=0, dependency=f"afterany:{before},singleton" if before else ""
        )
        try:
            started = start(create(registry, proposal, _say), asked, _say)
        except ValueError as error:
            print_error(error)
            code = submit.USER_ERROR
            continue
        if started.submission is not None:
            queue.append(started.submission.record["ids"][-1])
            submitted += 1
            _say(f"  {_words(trial.point)}: Slurm job {queue[-1]}{f', after {before}' if before else ''}")
    _say(f"{submitted} submitted, {len(queue) - submitted} in the queue already; the same command goes on")
    if sweep.base.options.wait == "yes":
        _wait(registry, sweep)
    return code


def behind(queue: Sequence[str], parallel: int) -> str:
    """Return the job that the next one waits for, "" where it may start at once.

    queue: jobs that are there, in the order of their submission. Each waits for the one `parallel` places before it,
    so that there are as many chains, and at most so many jobs at once.
    """
    return queue[-parallel] if parallel and len(queue) >= parallel else ""


def _jobs(runs: Sequence[Run]) -> list[str]:
    """Return the jobs of runs, the first submitted first."""
    jobs = [run.intent(run.newest_intent()).job or {} for run in runs]
    return sorted((job for record in jobs for job in record.get("ids", ())[-1:]), key=int)


def _wait(registry: Registry, sweep: Sweep) -> None:
    while True:
        runs = [run for run in _existing(registry, sweep) if run is not None]
        if not any(standing.decision.action == "attach" for standing in run_state.standings(runs)):
            return
        time.sleep(POLL_S)


def _work(registry: Registry, sweep: Sweep) -> int:
    """Run what is missing on this machine; return the exit code."""
    waiting = list(sweep.trials)
    working: list[Run] = []
    code = 0
    try:
        while waiting or working:
            while waiting and len(working) < max(1, sweep.parallel):
                trial = waiting.pop(0)
                run = create(registry, trial.proposal, _say)
                asked = order(sweep.info, trial.arguments, tasks=0, clips=0)
                try:
                    started = start(run, asked, _say)
                except ValueError as error:
                    print_error(error)
                    code = submit.USER_ERROR
                    continue
                if started.decision.action != "finished":
                    working.append(run)
            time.sleep(POLL_S / 4)
            standings = run_state.standings(working)
            for run, standing in zip(working, standings, strict=True):
                if standing.decision.action != "attach":
                    _say(f"{run.name}: {standing.state}")
                    code = code or (0 if standing.state in ("done", "stopped") else 1)
            working = [
                run for run, one in zip(working, standings, strict=True) if one.decision.action == "attach"
            ]  # fmt: skip
    except KeyboardInterrupt:
        for run in working:
            run.request_stop()
        _say("\nasked to save and stop; the same command goes on from there")
        return submit.INTERRUPTED
    return code


def _tell(registry: Registry, sweep: Sweep, *, write: bool) -> None:
    """Print the table, and keep it and the plot."""
    runs = [run if run is not None and run.newest_intent() else None for run in _existing(registry, sweep)]
    standings = iter(run_state.standings([run for run in runs if run is not None]))
    results = [
        sweep_table.result_of(
            trial.point,
            f"{sweep.info.name}/{registry.folder_of(trial.proposal.spec).name}",
            trial.proposal.spec.id,
            run,
            next(standings).state if run is not None else "new",
        )
        for trial, run in zip(sweep.trials, runs, strict=True)
    ]
    wide = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    sweep_table.show(wide, f"{sweep.name}: {len(results)} points", results)
    if write:
        folder: Path = registry.home / FOLDER / sweep.name
        facts: dict[str, Any] = {"name": sweep.name, "stage": sweep.info.name, "recipe": sweep.base.recipe.name}
        sweep_table.write(folder, facts | {"command": sweep.typed, "time": time.time()}, results)
        _say(f"{folder / 'sweep.json'}\n{folder / 'plot.svg'}")


def _words(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _say(text: str) -> None:
    console.print(escape(text))
