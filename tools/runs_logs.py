"""`tools/runs.py logs`: a rank's log, once or as it grows; of a requeued Slurm job the part of one attempt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from experiments import secret_words
from experiments.run import AttemptRecord, Run
from launch.console import shown
from slurm import logs, run_state

FOLLOW_POLL_S = 0.25
FOLLOW_ASK_S = 2.0
SHOWN_NAMES = 20


def show(run: Run, rank: int, number: int | None, group: int | None, *, follow: bool) -> int:
    """Print the log of a rank of an attempt, or of the newest one of an array's group; follow: until it ends."""
    attempt = _attempt(run, number, group)
    path = _log_path(run, attempt, rank)
    restart = _restart(attempt, path)
    part = "" if restart is None else f" (start {restart} of its job)"
    print(f"==> {path}{part}", file=sys.stderr)
    over = _over(run, attempt) if follow else lambda: True
    on_terminal, without_secrets = sys.stdout.isatty(), secret_words.redactor()
    with path.open("rb") as log:
        lines = _lines(log, over)
        for line in lines if restart is None else logs.of_start(lines, restart):
            # What a job says of names and captions may not steer the terminal; a pipe gets the other bytes as they are.
            told = without_secrets(line.decode(errors="surrogateescape"))
            sys.stdout.buffer.write((shown(told) if on_terminal else told).encode(errors="surrogateescape"))
            if follow:
                sys.stdout.buffer.flush()
    sys.stdout.buffer.flush()
    return 0


def _attempt(run: Run, number: int | None, group: int | None) -> AttemptRecord | None:
    """Return the attempt that is asked for, the newest unless told; None where the run has started none."""
    attempts = run.attempts()
    if number is not None:
        chosen = [attempt for attempt in attempts if attempt.number == number]
    elif group is not None:
        chosen = [attempt for attempt in attempts if attempt.claim.get("group", 0) == group]
    else:
        chosen = attempts
    if not chosen and number is not None and attempts:
        numbers = ", ".join(str(attempt.number) for attempt in attempts[-SHOWN_NAMES:])
        raise ValueError(f"{run.name} has no attempt {number}; it has: {numbers}")
    if not chosen and group is not None:
        groups = sorted({attempt.claim.get("group", 0) for attempt in attempts})
        shown = ", ".join(map(str, groups[:SHOWN_NAMES])) + ", ..." * (len(groups) > SHOWN_NAMES)
        raise ValueError(f"{run.name}: group {group} has started no attempt; those that have: {shown or 'none'}")
    return chosen[-1] if chosen else None


def _log_path(run: Run, attempt: AttemptRecord | None, rank: int) -> Path:
    """Return an attempt's log, or the job's own where none was started; ValueError where there is no such log."""
    path = logs.of_job(run, rank) if attempt is None else logs.of_attempt(run, attempt, rank)
    if path is None or not path.exists():
        folder = logs.folder_of(run.folder)
        names = sorted(entry.name for entry in folder.glob("*.*"))
        there = ", ".join(names[-SHOWN_NAMES:]) or "nothing yet"
        raise ValueError(
            f"{run.name}: no log of rank {rank} of attempt {attempt.number if attempt else 0}; in {folder}: {there}"
        )
    return path


def _restart(attempt: AttemptRecord | None, path: Path) -> int | None:
    """Return which part of a log is the attempt's; None: all of it, or it cannot be told."""
    if attempt is None or attempt.claim.get("supervised"):
        return None
    restart = int((attempt.claim.get("slurm") or {}).get("SLURM_RESTART_COUNT", "0"))
    with path.open("rb") as log:
        starts = {found for line in log if (found := logs.start_in(line)) is not None}
    if restart in starts:
        return restart
    if restart:
        print(f"which part is attempt {attempt.number}'s cannot be told: all of the job's log", file=sys.stderr)
    return None


def _over(run: Run, attempt: AttemptRecord | None) -> Callable[[], bool]:
    """Return what tells, asking now and then, whether nothing works on the attempt any more."""
    asked_s, number = time.monotonic(), attempt.number if attempt else 0

    def over() -> bool:
        nonlocal asked_s
        if time.monotonic() - asked_s < FOLLOW_ASK_S:
            return False
        asked_s = time.monotonic()
        return number not in run_state.standing(run).at_work

    return over


def _lines(log: BinaryIO, over: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the lines of a log as they come; a last one that is not whole in the pieces in which it comes."""
    held = b""
    while True:
        # Asked before the rest is read, so that the last lines are not missed.
        last = over()
        while piece := log.readline():
            held += piece
            # Of a start's first line the whole is needed to tell it.
            if piece.endswith(b"\n") or not held.startswith(logs.START_BEGINS[: len(held)]):
                yield held
                held = b""
        if last:
            if held:
                yield held
            return
        time.sleep(FOLLOW_POLL_S)
