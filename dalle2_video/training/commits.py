"""From a training state to a committed checkpoint, and from the newest sound one back.

Invariant: what is raised is raised on all ranks alike, and a save that fails leaves nothing behind and the commits
before it as they were.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from dalle2_video.training import checkpoint, distributed, notes
from dalle2_video.training.checkpoint import CheckpointNotSaved
from dalle2_video.training.run_control import RunControl
from dalle2_video.training.zero_state import ShardedState

log = logging.getLogger(__name__)


class Commits:
    """The checkpoints of the run that is trained. All methods are collective."""

    def __init__(self, control: RunControl, state: ShardedState, module: nn.Module) -> None:
        self._control, self._state, self._module = control, state, module

    def save(self, step: int, remembered: dict[str, Any]) -> None:
        """Commit the state after `step` steps. Raises CheckpointNotSaved where a rank could not write.

        remembered: what the loop has to know when it goes on, JSON types.
        """
        staged: Path | None = None
        try:
            staged = distributed.from_rank_zero(self._stage)
            checkpoint.save(staged, self._state, self._module, step)
            distributed.from_rank_zero(lambda: self._commit(step, staged, remembered))
        except BaseException:
            if staged is not None and distributed.rank() == 0:
                shutil.rmtree(staged, ignore_errors=True)
            raise

    def _stage(self) -> Path:
        with _not_saved():
            return self._control.stage_commit()

    def _commit(self, step: int, staged: Path, remembered: dict[str, Any]) -> None:
        with _not_saved():
            notes.write(staged, remembered)
            self._control.commit_checkpoint(step, staged)

    def load(self) -> tuple[Path, int, dict[str, Any]] | None:
        """Load the newest sound checkpoint; return it, its step and what was remembered, None where there is none."""
        found = self._newest_sound()
        if found is None:
            return None
        folder, remembered = found
        step = checkpoint.load(folder, self._state, self._module)
        log.info("resumed at step %d from %s", step, folder)
        return folder, step, remembered

    def _newest_sound(self) -> tuple[Path, dict[str, Any]] | None:
        for _, folder in reversed(distributed.from_rank_zero(self._control.checkpoints)):
            try:
                checkpoint.verify_together(folder)
                return folder, distributed.from_rank_zero(functools.partial(notes.read, folder))
            except checkpoint.DamagedCheckpointError as error:
                if distributed.rank() == 0:
                    log.warning("damaged checkpoint skipped, a sound one before it is used or else step 0: %s", error)
                    self._control.skipped(folder)
                    self._control.append("events", {"event": "damaged checkpoint", "message": str(error)})
        return None


@contextlib.contextmanager
def _not_saved() -> Iterator[None]:
    """Make of rank 0's failure to write what a failure of any rank is."""
    try:
        yield
    except OSError as error:
        raise CheckpointNotSaved(error.errno or errno.EIO, f"rank 0 could not write: {error}") from error
