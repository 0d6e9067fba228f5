"""`tools/runs.py heal`: bring to work again what should be at work and is not, without a person; fit for cron.

Says nothing where there is nothing to do. Runs are resumed by the same code as by a launch command (`launch.relaunch`),
whose exclusive claim of an intent lets two calls at once make one job. Decisions are `experiments.healing`'s.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from experiments import files, healing, plan
from experiments.intents import Launched
from experiments.reconcile import newest_of_groups
from experiments.registry import Registry
from experiments.run import Intent, Run
from launch.console import print_error
from slurm import accounting, notify, run_state
from slurm.accounting import Ended
from slurm.run_state import Standing
from tools import runs_list

RESUMED = 20
USER_ERROR = 2
CRONTAB = """for cron (crontab -e), every ten minutes; cron knows neither your PATH nor your variables:

  */10 * * * * cd SUITE && DALLE2_VIDEO_HOME=/shared/runs PATH=$PATH:/opt/slurm/bin .venv/bin/python tools/runs.py heal

scrontab (Slurm's own) takes the same line without the PATH."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `heal`."""
    parser.epilog = CRONTAB
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry-run", action="store_true", help="say what would be done about each run; change nothing")
    parser.add_argument(
        "--limit", type=int, default=RESUMED, metavar="N", help=f"runs to resume at most (default: {RESUMED})"
    )
    parser.add_argument(
        "--older-than",
        type=runs_list.since,
        default="2min",
        metavar="WHEN",
        help="only runs of which nothing was heard for so long: 2min (default), 1h",
    )
    parser.add_argument(
        "--since",
        type=runs_list.since,
        default="14d",
        metavar="WHEN",
        help="only runs that were heard of since: 14d (default), 2026-05-31; what is older was left for good",
    )
    parser.add_argument(
        "--all-users", action="store_true", help="also runs that others launched last (default: your own)"
    )


def heal(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Resume what should be at work; return the exit code, 0 unless something went wrong."""
    now = time.time()
    runs = list(registry.runs())
    if not options.dry_run:
        for run in runs:
            for name in notify.try_again(run):
                console.print(f"{run.name}: {name} could be told now", soft_wrap=True)
    found = _facts(runs, all_users=options.all_users, now=now)
    code, resumed = 0, 0
    for run, number, facts in found:
        told = healing.verdict(facts, older_than_s=now - options.older_than, newer_than_s=now - options.since)
        if options.dry_run:
            resumed += told.resume
            late = " (in a later call: see --limit)" if told.resume and resumed > options.limit else ""
            what = "would resume" if told.resume else "left alone"
            console.print(f"{run.name}: {what}{late}: {escape(told.reason)}", soft_wrap=True)
            continue
        if told.resume and resumed == options.limit:
            continue
        if told.resume:
            resumed += 1
            code = max(code, _resume(console, run))
        elif told.say and files.create_exclusive(run.folder / notify.FOLDER / f"left-{number:04d}", b""):
            console.print(f"{run.name}: left alone: {escape(told.reason)}", soft_wrap=True)
        if told.event is not None:
            what = "it was started again: " if told.resume else ""
            notify.try_tell(run, told.event, f"{what}{told.reason}", occasion=notify.of_launch(number))
    return max(code, _mend_plans(console, registry, options))


def _mend_plans(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Queue again what ended because of a parent that is at work again; return the exit code."""
    if not (registry.home / plan.FOLDER).is_dir():
        return 0
    from launch import plans  # brings submitit, as above

    code = 0
    for one, verdict in plans.to_mend(registry, lambda one: options.all_users or _mine(one)):
        if options.dry_run:
            behind = f" behind {verdict.reason}" if verdict.reason else ""
            console.print(f"{one.name}: would be queued again{escape(behind)}", soft_wrap=True)
            continue
        try:
            brought = plans.mend(registry, one, verdict, lambda _: None)
        except (OSError, ValueError) as error:
            print_error(f"{one.name} could not be queued again: {error}")
            code = USER_ERROR if isinstance(error, ValueError) else 1
            continue
        if brought is not None:
            console.print(escape(brought.words()), soft_wrap=True)
    return code


def _facts(runs: Sequence[Run], *, all_users: bool, now: float) -> list[tuple[Run, int, healing.Facts]]:
    """Return what is known of each run that nothing is at work on, and the number of its newest launch.

    Asks the queue and its accounting once.
    """
    open_runs = [run for run in runs if not run.is_done() and (all_users or _mine(run))]
    idle = [
        (run, standing)
        for run, standing in zip(open_runs, run_state.standings(open_runs), strict=True)
        if standing.decision.action not in ("finished", "attach")
    ]
    intents = {run.name: run.intent(number) for run, _ in idle if (number := run.newest_intent())}
    jobs = {job for intent in intents.values() for job in accounting.jobs_of(intent)}
    history = accounting.history(jobs) if jobs else []
    return [
        (run, intent.number if intent else 0, _of(run, standing, intent, history, now=now))
        for run, standing in idle
        for intent in [intents.get(run.name)]
    ]


def _of(
    run: Run, standing: Standing, intent: Intent | None, history: Sequence[Ended] | None, *, now: float
) -> healing.Facts:
    number = intent.number if intent else 0
    attempts = [one for one in newest_of_groups(standing.attempts) if one.claim.get("intent", 0) == number]
    jobs = accounting.jobs_of(intent) if intent else []
    ends = {job: accounting.last_ends(history or (), job) for job in jobs}
    cancelled = [end for found in ends.values() for end in found if end.state == "CANCELLED"]
    by = cancelled[0].cancelled_by if cancelled else None
    who = "" if by is None else f" by {accounting.user_name(by)}"
    heard = [intent.request.get("time", run.created) if intent else run.created]
    for attempt in attempts:
        heard += [attempt.claim.get("time", 0.0), (attempt.end or {}).get("time", 0.0)]
        heard.append((run.beat(attempt.number) or {}).get("time", 0.0))
    return healing.Facts(
        decision=standing.decision,
        launched=intent is not None,
        barren=_barren(run, standing, number),
        stop_requested=run.stop_requested(),
        attempts=attempts,
        cancelled=f"{who or ' by somebody'}" if cancelled else "",
        end_known=bool(jobs) and all(ends.values()),
        silent_s=max(0.0, now - max(heard)),
    )


def _barren(run: Run, standing: Standing, newest: int) -> int:
    """Count the newest launches in a row that had a job and started no attempt."""
    fruitful = max((attempt.claim.get("intent", 0) for attempt in standing.attempts), default=0)
    return sum(run.intent(number).job is not None for number in range(fruitful + 1, newest + 1))


def _mine(run: Launched) -> bool:
    """Tell whether this user launched the run, or plan, last: Slurm bills a job to whoever submits it."""
    number = run.newest_intent()
    file = run.folder / "intent" / f"{number:04d}.json" if number else run.folder / "run.json"
    try:
        return file.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _resume(console: Console, run: Run) -> int:
    """Start a run again; return the exit code."""
    from launch.relaunch import relaunch  # brings submitit, which a call with nothing to do does not need

    said: list[str] = []
    try:
        if run.stop_requested():
            return 0
        started = relaunch(run, said.append)
    except (OSError, ValueError) as error:
        print_error(f"{run.name} could not be resumed: {error}")
        return USER_ERROR if isinstance(error, ValueError) else 1
    if started.submission is None:
        return 0  # another launcher was quicker
    record: dict[str, Any] = started.submission.record
    job = f"Slurm job {', '.join(record['ids'])}" if record["executor"] == "slurm" else f"process {record['pid']}"
    refused = f"; sbatch refused the rest: {started.submission.refused}" if started.submission.refused else ""
    console.print(f"{run.name}: {escape(started.decision.reason)}: {job}{escape(refused)}", soft_wrap=True)
    return 0
