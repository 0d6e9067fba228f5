"""A training that is killed, damaged, starved and doubled, again and again, and must end as if nothing had happened.

    python tools/bench/chaos.py --kills 200 --seed 0 --json chaos.json
    python tools/bench/chaos.py --quick

Trains the prior of the recipe `tiny` on two ranks of this machine: once undisturbed, then as often as it takes to
spend the kills, at most ten a run, the last one within the export. After each the same command again. `chaos_faults.py`
says what happens, `chaos_ledger.py` what is held against a run. Fills the disk only where it may mount a tmpfs (root).

kills            what happened, all kinds
identical        1: weights, masters, moments, EMA and metrics of every run equal the undisturbed one's to the bit; or 0
commits_lost     commits that vanished without two newer ones being there
max_steps_lost   steps that one kill or one damaged checkpoint cost, at most
interval         steps between checkpoints: what max_steps_lost may be

Exit code 1 where a run was not identical, lost a commit, used a damaged one or committed though it was superseded.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tools.bench import chaos_faults
from tools.bench.chaos_compare import differences, left_over, undisturbed
from tools.bench.chaos_faults import Fault, Strike
from tools.bench.chaos_home import fresh_home, make_parents, small_disk, training_command
from tools.bench.chaos_ledger import Account
from tools.bench.chaos_run import Disturbed
from tools.bench.timing import BenchArguments

PHASES = ("launching", "starting", "training", "committing", "exporting")
KILLS_A_RUN = 10
STEPS, INTERVAL = 48, 4


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Kill a training at random moments and hold its end against an undisturbed one."""

    kills: int = 200
    """Kills and other mishaps; 1 or more. With --quick 2."""
    seed: int = 0
    """Seed of what happens and when; 0 or more."""


@dataclass(kw_only=True)
class Report:
    """What happened and what came of it."""

    interval: int
    strikes: list[tuple[str, Strike]] = field(default_factory=list)
    """Kind and what it struck."""
    account: Account = field(default_factory=Account)
    differences: list[str] = field(default_factory=list)
    """What was not as in the undisturbed run."""
    runs: int = 0
    launches: int = 0
    retries: int = 0
    """Launches with `--retry`, of runs that were poisoned by kills."""
    attempts: int = 0
    left_over_mib: float = 0.0
    """In hidden files and folders below the done runs."""
    left_out: str = ""
    """Why a kind was left out."""

    def figures(self) -> dict[str, float]:
        """Return what goes into the JSON."""
        return {
            "kills": len(self.strikes),
            "identical": int(not self.differences),
            "commits_lost": self.account.commits_lost,
            "max_steps_lost": self.account.max_steps_lost,
            "interval": self.interval,
        }

    def failures(self) -> list[str]:
        """Return what must not be."""
        found = [*self.differences, *self.account.notes]
        if self.account.max_steps_lost > self.interval:
            found.append(f"more steps lost than the interval of {self.interval}: {self.account.worst}")
        return found


def disturb(
    parents: Path, folder: Path, command: Sequence[str], *, steps: int, interval: int, kills: int, seed: int,
    progress: Progress | None = None,
) -> Report:  # fmt: skip
    """Disturb trainings of one command until `kills` things have happened.

    parents: a home with the finished parents of a prior; folder: an empty folder to work in; command: trains a prior
    of so many steps on two ranks, with a commit every `interval` and a metrics record every step.
    """
    draw = Random(seed)
    report = Report(interval=interval)
    bar = progress.add_task("undisturbed", total=kills) if progress else None
    reference, pace = undisturbed(parents, folder / "undisturbed", command, steps, interval)
    plan: list[str] = []
    idle = 0
    while len(report.strikes) < kills:
        home = folder / f"run-{report.runs}"
        with small_disk(home) as refused:
            report.left_out = f"disk full: no small disk could be mounted: {refused}" if refused else ""

            def told(kind: str, strike: Strike) -> None:
                report.strikes.append((kind, strike))
                if progress is not None and bar is not None:
                    progress.update(bar, completed=len(report.strikes), description=f"{kind}, {strike.phase}")

            mine = min(KILLS_A_RUN, kills - len(report.strikes))
            while len(plan) < mine - 1:
                plan += deck(draw, without=["disk full"] if refused else [])
            last = list(chaos_faults.LAST)[report.runs % len(chaos_faults.LAST)]
            run = Disturbed(fresh_home(parents, home), command, folder / "scratch", report.account, pace)
            done = 0
            try:
                for kind in [*plan[: mine - 1], last]:
                    fault: Fault = chaos_faults.LAST[kind] if kind == last else chaos_faults.MIDDLE[kind][0]
                    strike = fault(run, draw)
                    if strike is None:
                        break
                    told(kind, strike)
                    done += 1
                run.finish()
                assert run.run is not None
                report.differences += differences(run.run, reference)
                report.left_over_mib += left_over(run.run) / 2**20
                report.attempts += run.run.newest_attempt()
            finally:
                run.close()
                report.launches += run.launches
                report.retries += run.retries
        plan = plan[min(done, mine - 1) :]
        report.runs += 1
        idle = 0 if done else idle + 1
        if idle > len(chaos_faults.LAST):
            raise RuntimeError("runs end before anything can happen to them; give them more steps")
    return report


def deck(draw: Random, without: Sequence[str]) -> list[str]:
    """Return kinds of what happens while a run trains, shuffled."""
    kinds = [kind for kind, (_, times) in chaos_faults.MIDDLE.items() for _ in range(times) if kind not in without]
    draw.shuffle(kinds)
    return kinds


def show(console: Console, report: Report, wall_s: float) -> None:
    """Print the tables."""
    table = Table("what happened", *PHASES, "all", title="by what the attempt was at")
    counts = Counter((kind, strike.phase) for kind, strike in report.strikes)
    for kind in [*chaos_faults.MIDDLE, *chaos_faults.LAST]:
        row = [counts[kind, phase] for phase in PHASES]
        if any(row):
            table.add_row(kind, *(str(count or "") for count in row), str(sum(row)))
    table.add_section()
    columns = [sum(counts[kind, phase] for kind in [*chaos_faults.MIDDLE, *chaos_faults.LAST]) for phase in PHASES]
    table.add_row("all", *map(str, columns), str(sum(columns)))
    console.print(table)
    account = report.account
    facts = Table("figure", "value")
    for name, value in report.figures().items():
        facts.add_row(name, f"{value:g}")
    facts.add_row("attempts at another checkpoint than the newest sound one", str(account.damaged_used))
    facts.add_row("commits removed though just one newer one was sound", str(account.sound_alone))
    facts.add_row("damaged checkpoints skipped without a word", str(account.untold))
    facts.add_row("commits by attempts that were superseded", str(account.fenced_commits))
    facts.add_row("runs / attempts / launches", f"{report.runs} / {report.attempts} / {report.launches}")
    facts.add_row("launches with --retry, poisoned by kills", str(report.retries))
    facts.add_row("hidden leftovers below the done runs", f"{report.left_over_mib:.1f} MiB")
    facts.add_row("wall time", f"{wall_s:.0f} s")
    console.print(facts)
    if report.left_out:
        console.print(f"left out: {report.left_out}", markup=False)
    for line in report.failures():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Arguments) -> int:
    """Disturb, print, return the exit code."""
    started = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    steps, kills = (STEPS // 2, 2) if arguments.quick else (STEPS, arguments.kills)
    with tempfile.TemporaryDirectory(prefix="chaos-") as made, Progress(*columns, console=console) as progress:
        parents = Path(made) / "parents"
        parents.mkdir()
        command = training_command(steps, INTERVAL, *make_parents(parents))
        report = disturb(
            parents, Path(made) / "work", command, steps=steps, interval=INTERVAL, kills=kills, seed=arguments.seed,
            progress=progress,
        )  # fmt: skip
    show(Console(), report, time.monotonic() - started)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.figures(), indent=1) + "\n")
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
