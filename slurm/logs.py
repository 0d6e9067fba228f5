"""Where a process's log lies: named by our supervisor on one machine, by submitit on Slurm; and its last words."""

from __future__ import annotations

from pathlib import Path

from experiments.run import AttemptRecord, Run

LAST_WORDS = 4000


def folder_of(run_folder: Path) -> Path:
    """Folder of a run's logs."""
    return run_folder / "logs"


def supervised(run_folder: Path, attempt: int, rank: int) -> Path:
    """Log of one rank of an attempt that a supervisor on this machine started."""
    return folder_of(run_folder) / f"attempt-{attempt:04d}.rank{rank}.log"


def hang_report(run_folder: Path, attempt: int, rank: int) -> Path:
    """Where a rank says how it hangs, for whoever records the hang of all."""
    return folder_of(run_folder) / f"attempt-{attempt:04d}.rank{rank}.hang.json"


def last_words(path: Path) -> str:
    """Return the traceback that a process left in its log when it died; empty where it left none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4 * LAST_WORDS))
            text = file.read().decode(errors="replace")
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


def of_job(run: Run) -> Path | None:
    """Log of the newest job itself: where a reason stands if it could not start an attempt; None if there is none."""
    folder = folder_of(run.folder)
    return max(folder.glob("*_log.out"), key=lambda path: path.stat().st_mtime, default=None)
