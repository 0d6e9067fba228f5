"""An attempt's mirror at an experiment tracker, as the training sees it: a process of its own beside rank 0.

`metrics.*.jsonl` is the truth; the mirror (`slurm/wandb_mirror.py`) reads it as any other reader would, so training
calls nothing of the tracker's, loads nothing of it, and cannot be slowed, crashed or kept from exiting by it. What is
not mirrored while a training runs, `tools/wandb_sync.py` sends later.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, Protocol

from experiments.run import Run
from slurm import logs

log = logging.getLogger(__name__)

Mode = Literal["disabled", "offline", "online"]
FINISH_S = 30
"""Time that the mirror has to send what is left once its attempt is over."""
EVENT = "tracking"
"""Event under which an attempt records what `Tracker.trouble` says."""
REASON = "mirror: "
"""Begins the line of the mirror's log that says why it gave up."""
_REPOSITORY = Path(__file__).resolve().parents[1]


class Tracker(Protocol):
    """What rank 0 holds of its mirror."""

    def trouble(self) -> str | None:
        """Say once why the metrics are mirrored no longer; None where there is nothing new to say."""

    def finish(self) -> None:
        """Give the mirror a little time to send the rest, once the attempt's end is on record.

        It would do so by itself; a job whose processes are killed when rank 0 leaves has to wait for it.
        """


def start(run: Run, attempt: int, *, mode: Mode, project: str, entity: str | None) -> Tracker:
    """Start mirroring an attempt: its metrics and those of earlier attempts that the tracker does not have.

    Returns at once and never raises: what goes wrong is said by `trouble`.
    """
    if mode == "disabled":
        return NoTracker()
    # The key to the account reaches the mirror by its environment alone; a command line is seen by all users.
    command = [sys.executable, "-m", "slurm.wandb_mirror", str(run.folder), str(attempt), mode, project, entity or ""]
    path = log_file(run, attempt)
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            process = subprocess.Popen(
                [*command, str(os.getpid())], cwd=_REPOSITORY, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
    except OSError as error:
        return FailedTracker(f"the mirror could not be started ({error})", run)
    return MirrorProcess(process, path, run)


def log_file(run: Run, attempt: int) -> Path:
    """Log of an attempt's mirror."""
    return logs.folder_of(run.folder) / f"attempt-{attempt:04d}.wandb.log"


class NoTracker:
    """Nothing is mirrored."""

    def trouble(self) -> None:
        """Nothing can go wrong."""
        return

    def finish(self) -> None:
        """Nothing is left to send."""


class FailedTracker(NoTracker):
    """Something was to be mirrored, and cannot be."""

    def __init__(self, reason: str, run: Run) -> None:
        self._message: str | None = _gave_up(reason, run)

    def trouble(self) -> str | None:  # type: ignore[override]
        """Say the reason, once."""
        message, self._message = self._message, None
        return message


class MirrorProcess:
    """A mirror at work."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, run: Run) -> None:
        self._process, self._log_path, self._run = process, log_path, run
        self._said = False

    def trouble(self) -> str | None:
        """Say once why the process ended before its attempt; costs one system call while it lives."""
        if self._said or (code := self._process.poll()) is None:
            return None
        self._said = True
        return _gave_up(self._reason(code), self._run) if code else None

    def finish(self) -> None:
        """Wait for the process, at most a little longer than it allows itself, then kill it."""
        try:
            self._process.wait(FINISH_S + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if message := self.trouble():
            log.warning("%s", message)

    def _reason(self, code: int) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.removeprefix(REASON) for line in lines if line.startswith(REASON)]
        return said[-1] if said else f"its mirror ended with exit code {code}"


def _gave_up(reason: str, run: Run) -> str:
    return (
        f"metrics are mirrored to W&B no longer: {reason.rstrip('.')}; none is lost, and "
        f"python tools/wandb_sync.py {run.id} sends the rest"
    )
