"""Where a process's log lies: named by our supervisor on one machine, by submitit on Slurm; and its last words.

A Slurm job that is requeued appends to the logs of its earlier starts. Each start begins with a line that tells which
one it is, so that the part of one attempt can be found again.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from experiments import secret_words
from experiments.run import AttemptRecord, Run

LAST_WORDS = 4000
_START = re.compile(rb"=== start (\d+) of Slurm job \S+, rank \d+, on .* ===\s*")
START_BEGINS = b"=== start "
"""What the line begins with; a line without it need not be read to its end to tell that it is none."""


def folder_of(run_folder: Path) -> Path:
    """Folder of a run's logs."""
    return run_folder / "logs"


def supervised(run_folder: Path, attempt: int, rank: int) -> Path:
    """Log of one rank of an attempt that a supervisor on this machine started."""
    return folder_of(run_folder) / f"attempt-{attempt:04d}.rank{rank}.log"


def try_print_start() -> None:
    """Print the line with which a start of a Slurm job begins in each rank's log; elsewhere nothing."""
    if (job := os.environ.get("SLURM_JOB_ID")) is not None:
        restart, rank = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ.get("SLURM_PROCID", "0")
        # The start before may have been killed in the middle of a line.
        line = "" if restart == "0" else "\n"
        print(f"{line}=== start {restart} of Slurm job {job}, rank {rank}, on {socket.gethostname()} ===", flush=True)


def start_in(line: bytes) -> int | None:
    """Return which start of its job begins with a line of a log; None: none does. The first is 0."""
    match = _START.fullmatch(line)
    return int(match[1]) if match else None


def of_start(lines: Iterable[bytes], restart: int) -> Iterator[bytes]:
    """Yield the lines that one start of a job wrote, with the one that it begins with."""
    ours = False
    for line in lines:
        if (found := start_in(line)) is not None:
            if ours and found != restart:
                return
            ours = found == restart
        if ours:
            yield line


def hang_report(run_folder: Path, attempt: int, rank: int) -> Path:
    """Where a rank says how it hangs, for whoever records the hang of all."""
    return folder_of(run_folder) / f"attempt-{attempt:04d}.rank{rank}.hang.json"


def last_words(path: Path) -> str:
    """Return the traceback that a process left in its log when it died, without secrets; empty where it left none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4 * LAST_WORDS))
            # Before it is cut: half a secret would not be known for one.
            text = secret_words.redacted(file.read().decode(errors="replace"))
    except OSError:
        return ""
    if (start := text.rfind("Fatal Python error:")) >= 0:
        return text[start:][:LAST_WORDS]
    start = text.rfind("Traceback (most recent call last):")
    return text[start:][-LAST_WORDS:] if start >= 0 else ""


def of_attempt(run: Run, attempt: AttemptRecord, rank: int) -> Path:
    """Log of one rank of any attempt; a requeued Slurm job appends to the log of its earlier attempts."""
    if attempt.claim.get("supervised"):
        return supervised(run.folder, attempt.number, rank)
    slurm = attempt.claim["slurm"]
    array = slurm.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{slurm['SLURM_ARRAY_TASK_ID']}" if array else slurm["SLURM_JOB_ID"]
    return folder_of(run.folder) / f"{job}_{rank}_log.out"


def of_job(run: Run, rank: int = 0) -> Path | None:
    """Log of a rank of the newest job itself: where a reason stands if it could not start an attempt; None if none."""
    folder = folder_of(run.folder)
    return max(folder.glob(f"*_{rank}_log.out"), key=lambda path: path.stat().st_mtime, default=None)
