"""Trainings on a real Slurm to which everything happens that happens on clusters, for an hour, and none may notice.

    python tools/bench/slurm_chaos.py --minutes 60 --seed 1 --json slurm_chaos.json
    python tools/bench/slurm_chaos.py --quick

Starts a sandbox of three nodes (`tools/slurm_sandbox`, root) and launches the prior and the decoder of the recipe
`tiny`, two nodes each, as a user does; a launch whenever a run has no job keeps them going. At random moments jobs are
preempted, requeued, cancelled and run out of time, nodes lose their power or their network, daemons are killed and
restarted (`slurm_mishaps.py`). When both are done they begin anew, until the time is over.

mishaps            what happened, all kinds
identical          1: weights, masters, moments, EMA and metrics are the undisturbed runs' to the bit; else 0
commits_lost       commits that vanished without two newer ones being there
max_lost_told      steps lost at most where the job was told: must be 0
max_lost_untold    steps lost at most where nothing was told: at most the interval between checkpoints
interval           that interval

Exit code 1 where a run was not identical, lost a commit or more steps than it may, or did not end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import tyro
from rich.console import Console
from rich.table import Table

from experiments.run import Run
from tools.bench.chaos_compare import differences
from tools.bench.chaos_home import fresh_home, make_parents
from tools.bench.chaos_ledger import Account
from tools.bench.slurm_mishaps import MISHAPS, Cluster
from tools.bench.slurm_runs import INTERVAL, STAGES, ClusterRun, Loss
from tools.bench.timing import BenchArguments

PAUSE_S = (2.0, 14.0)
"""Between two mishaps."""
STUCK_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Disturb trainings on a Slurm sandbox and hold their ends against undisturbed ones."""

    minutes: float = 60.0
    """Time in which things happen; runs that are at work then come to their end. With --quick a third of a minute."""
    seed: int = 1
    """Seed of what happens and when; 0 or more."""
    markdown: Path | None = None
    """File for the tables in Markdown."""


@dataclass(kw_only=True)
class Report:
    """What happened and what came of it."""

    mishaps: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)
    losses: list[Loss] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What was not as in the undisturbed run."""
    runs: int = 0
    attempts: int = 0
    launches: int = 0
    retries: int = 0

    def figures(self) -> dict[str, float]:
        """Return what goes into the JSON."""
        return {
            "mishaps": self.mishaps.total(),
            "runs": self.runs,
            "attempts": self.attempts,
            "launches": self.launches,
            "retries": self.retries,
            "identical": int(not self.wrong),
            "commits_lost": self.account.commits_lost,
            "max_lost_told": max((loss.steps for loss in self.losses if loss.told), default=0),
            "max_lost_untold": max((loss.steps for loss in self.losses if not loss.told), default=0),
            "interval": INTERVAL,
        }

    def failures(self) -> list[str]:
        """Return what must not be."""
        found = [*self.wrong, *self.account.notes]
        for loss in self.losses:
            if loss.steps > (0 if loss.told else INTERVAL):
                found.append(f"{loss.where}: {loss.steps} steps lost, though the attempt ended {loss.end}")
        return found


def chaos(cluster: Cluster, folder: Path, *, minutes: float, seed: int, console: Console) -> Report:
    """Disturb runs for so many minutes."""
    draw, report = Random(seed), Report()
    parents = folder / "parents"
    parents.mkdir()
    flags = make_parents(parents)
    reference: dict[str, Run] = {}
    for stage in STAGES:
        calm = ClusterRun(cluster, fresh_home(parents, folder / f"undisturbed-{stage}"), stage, flags, Account())
        calm.until_done(STUCK_S)
        assert calm.run is not None
        reference[stage] = calm.run
        console.print(f"undisturbed {stage}: done")
    ends_s = time.monotonic() + 60 * minutes
    while time.monotonic() < ends_s:
        home = fresh_home(parents, folder / f"runs-{report.runs:04d}")
        runs = [ClusterRun(cluster, home, stage, flags, report.account) for stage in STAGES]
        _disturb(cluster, runs, draw, report, ends_s, console)
        for run in runs:
            assert run.run is not None
            report.wrong += differences(run.run, reference[run.stage])
            report.losses += run.losses()
            report.runs += 1
            report.attempts += run.run.newest_attempt()
            report.launches += run.launches
            report.retries += run.retries
    return report


def _disturb(
    cluster: Cluster, runs: list[ClusterRun], draw: Random, report: Report, ends_s: float, console: Console
) -> None:
    """Bring runs to their end, while things happen to them as long as there is time."""
    deadline_s = max(ends_s, time.monotonic()) + STUCK_S
    next_s = time.monotonic() + draw.uniform(*PAUSE_S)
    while not all(run.over() for run in runs):
        for run in runs:
            run.look()
        cluster.mend_what_is_due()
        now_s = time.monotonic()
        if now_s > deadline_s:
            raise RuntimeError("\n".join(run.words() for run in runs if not run.over()))
        if next_s < now_s < ends_s:
            jobs = [run.job for run in runs if run.job and not run.over()]
            kind = draw.choices(list(MISHAPS), [weight for weight, _ in MISHAPS.values()])[0]
            if jobs and MISHAPS[kind][1](cluster, draw.choice(jobs), draw):
                report.mishaps[kind] += 1
                console.print(f"{report.mishaps.total()}: {kind}")
            next_s = now_s + draw.uniform(*PAUSE_S)
        time.sleep(0.05)
    cluster.mend_all()


def tables(report: Report, wall_s: float) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables: title, columns, rows."""
    ends = sorted({loss.end for loss in report.losses})
    rows = []
    for end in ends:
        of_end = [loss for loss in report.losses if loss.end == end]
        waited = sorted(loss.seconds for loss in of_end if loss.seconds is not None)
        seconds = [f"{waited[len(waited) // 2]:.1f} s", f"{waited[-1]:.1f} s"] if waited else ["-", "-"]
        rows.append([end, str(len(of_end)), str(max(loss.steps for loss in of_end)), *seconds])
    figures = [[name, f"{value:g}"] for name, value in report.figures().items()] + [["wall time", f"{wall_s:.0f} s"]]
    return [
        ("what happened", ["mishap", "times"], [[kind, str(n)] for kind, n in sorted(report.mishaps.items())]),
        (
            "how attempts ended that others followed",
            ["end", "attempts", "steps lost at most", "last step to next, median", "at most"],
            rows,
        ),
        ("figures", ["figure", "value"], figures),
    ]


def markdown(report: Report, wall_s: float) -> str:
    """Return the tables in Markdown."""
    parts = []
    for title, columns, rows in tables(report, wall_s):
        lines = [columns, ["---"] * len(columns), *rows]
        parts.append(f"{title.capitalize()}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def show(console: Console, report: Report, wall_s: float) -> None:
    """Print the tables and what must not be."""
    for title, columns, rows in tables(report, wall_s):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in report.failures():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Arguments) -> int:
    """Disturb, print, return the exit code."""
    started_s = time.monotonic()
    if os.getuid() != 0:
        print("error: a Slurm sandbox needs root; see tools/slurm_sandbox", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    # A short path: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="chaos") as made:
        cluster = Cluster(Path(made) / "s")
        try:
            cluster.start()
            work = Path(made) / "work"
            work.mkdir()
            minutes = 1 / 3 if arguments.quick else arguments.minutes
            report = chaos(cluster, work, minutes=minutes, seed=arguments.seed, console=console)
        except subprocess.CalledProcessError as error:
            print(f"error: {error}\n{error.stderr}", file=sys.stderr)
            return 1
        finally:
            cluster.stop()
    wall_s = time.monotonic() - started_s
    show(Console(), report, wall_s)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(report, wall_s))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.figures() | dict(report.mishaps), indent=1) + "\n")
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
