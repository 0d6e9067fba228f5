"""`tools/runs.py logs`: a rank's log, once or as it grows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from experiments.run import Run
from slurm import logs, run_state

FOLLOW_POLL_S = 0.25
FOLLOW_ASK_S = 2.0


def show(run: Run, rank: int, number: int | None, *, follow: bool) -> int:
    """Print the log of a rank; follow: stay, and print what comes, until the attempt ends."""
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
