"""What a job array runs: independent tasks that make files, and one last step that joins them.

Nothing here renames or syncs: each step writes whole files into the staging folder it is given and returns
(staged file, path relative to `root`); the caller publishes them in that order and then records the step. A task's
files depend on its input only, so that doing it twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Published = list[tuple[Path, str]]
OnProgress = Callable[[float], None]


class TaskArray(Protocol):
    """One array run."""

    root: Path
    """Folder that published paths are relative to."""
    num_tasks: int

    def prepare(self, staging: Path) -> Published:
        """Write what must exist before any task."""

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Do one task; return its files and a JSON-able record that holds their digests.

        on_progress: takes the share done, in [0, 1].
        """

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Join all tasks' records; return the last files and the summary that DONE keeps."""
