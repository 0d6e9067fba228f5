"""How long an attempt takes from the start of its process to the end of its first step, by part.

The parts follow each other without a gap, so that their sum is the whole; recorded once an attempt, by rank 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from slurm.local import start_ticks

EVENT = "first step"
_PHASES = {
    "building the model": "model and engine",
    "loading the checkpoint": "checkpoint",
    "waiting for the data of step": "first batch",
    "step": "first step",
}
"""Part by the beginning of the phase that the watchdog is told of, in the order of their coming."""


class Startup:
    """Measures the parts of one start; made first thing in the process."""

    def __init__(self) -> None:
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._since = now
        self._part: str | None = None
        self.seconds = {"interpreter": now - ticks / os.sysconf("SC_CLK_TCK")}
        """Seconds of each part that is over, in order."""

    def begins(self, part: str) -> None:
        """Tell that the part before is over and this one begins."""
        self.ends()
        self._part = part

    def ends(self) -> None:
        """Tell that the part before is over."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._part is not None:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._since, self._part = now, None

    def follow(self, record: Callable[[dict[str, float]], None]) -> Callable[[str], None]:
        """Return what is to be told of every phase; after the first step `record` is called, once."""
        over = False

        def phase(what: str) -> None:
            nonlocal over
            part = next((part for words, part in _PHASES.items() if what.startswith(words)), None)
            if over or (part is None and self._part not in _PHASES.values()):
                return  # done with, or not there yet
            if part is not None and part not in self.seconds:
                self.begins(part)
                return
            over = True
            complete = self._part == _PHASES["step"]
            self.ends()
            if complete:
                record(self.seconds)

        return phase


def in_words(seconds: dict[str, float]) -> str:
    """Return the parts for people: `8.1 s: imports 4.2, rendezvous 0.5, ...`."""
    parts = ", ".join(f"{part} {length:.1f}" for part, length in seconds.items())
    return f"{sum(seconds.values()):.1f} s after the process started: {parts}"
