"""An attempt's metrics, events and beat on a disk that may be full.

Invariant: `append` raises no OSError and leaves no half line behind. What cannot be written waits, in memory, and goes
first as soon as there is room; of a very long wait the oldest records are given up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from typing import Any, Literal

from experiments.run import Attempt

log = logging.getLogger(__name__)

WAITING = 10_000
"""Records that may wait."""
BEAT_S = 0.5
Kind = Literal["metrics", "events"]


class Records:
    """The one writer of an attempt's metrics, events and beat."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._waiting: deque[tuple[Kind, dict[str, Any]]] = deque(maxlen=WAITING)
        self._beat_s = 0.0

    def append(self, kind: Kind, record: dict[str, Any]) -> None:
        """Append a record, after those that waited."""
        had_room = not self._waiting
        if len(self._waiting) == WAITING:
            log.warning("%d records wait for room on the disk; the oldest is given up", WAITING)
        self._waiting.append((kind, record | {"time": time.time()}))
        try:
            self.flush()
        except OSError as error:
            if had_room:
                log.warning("metrics and events wait until they can be written: %s", error)
            return
        if not had_room:
            log.info("metrics and events that waited are written")

    def flush(self) -> None:
        """Write what waits. Raises OSError where there is still no room."""
        while self._waiting:
            self._write(*self._waiting[0])
            self._waiting.popleft()

    def _write(self, kind: Kind, record: dict[str, Any]) -> None:
        path = self._attempt.run.folder / f"{kind}.{self._attempt.number:04d}.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            self._attempt.append(kind, record)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, size)  # half a line would spoil the next one
            raise

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers how far the attempt is, at most twice a second; on a full disk they hear the next one."""
        if time.monotonic() - self._beat_s >= BEAT_S:
            self._beat_s = time.monotonic()
            with contextlib.suppress(OSError):
                self._attempt.beat(status)
