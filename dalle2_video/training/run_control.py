"""What training asks of the run that it trains for; `slurm/training_job.py` answers from the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol


class RunControl(Protocol):
    """One attempt at one run; rank 0 alone calls it."""

    def checkpoints(self) -> Sequence[tuple[int, Path]]:
        """Committed checkpoints as (step, folder), oldest first."""

    def stage_commit(self) -> Path:
        """Return an empty folder, visible to all ranks, for the next checkpoint."""

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        """Publish a complete checkpoint, take back a request to save, and remove the checkpoints no longer needed."""

    def skipped(self, folder: Path) -> None:
        """Note that a checkpoint is damaged: it does not count as one that is kept."""

    def publish_export(self, staged: Path, record: dict[str, Any]) -> None:
        """Publish the exported weights and record the run as done."""

    def append(self, kind: Literal["metrics", "events"], record: dict[str, Any]) -> None:
        """Append to the attempt's metrics or events. Never raises OSError: a full disk must not end a training."""

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers how far the attempt is. Never raises OSError."""

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""

    def save_requested(self) -> bool:
        """Whether somebody asked for a checkpoint now."""
