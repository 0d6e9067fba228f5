"""Stopping: signals and switches set a flag; the loop reads it once a step, at the same step on all ranks.

USR2 (preemption with notice, time limit) is PREEMPT: save, then ask for a requeue. TERM, INT and the STOP switch of
the run folder are STOP: save and never requeue, or the job would be immune to scancel. The SAVE switch stops nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

STOP = 1
PREEMPT = 2
_SWITCH_INTERVAL_S = 1.0


class Switch:
    """A switch in the run folder that any member of the group may create; looked at at most once a second."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._looked_s = 0.0

    def poll(self) -> bool:
        """Return whether it was seen just now; between two looks it is not."""
        now = time.monotonic()
        if now - self._looked_s < _SWITCH_INTERVAL_S:
            return False
        self._looked_s = now
        return self._look()


class StopSignals:
    """What signals told this process since this was made: 0, STOP or PREEMPT; the highest ever seen stays.

    Made before the long imports: a signal that nobody catches kills, and one that is ignored is lost.
    """

    def __init__(self) -> None:
        self.value = 0
        self._pid = os.getpid()
        for number, value in ((signal.SIGUSR2, PREEMPT), (signal.SIGTERM, STOP), (signal.SIGINT, STOP)):
            signal.signal(number, lambda *_, value=value: self._raise_to(value))

    def _raise_to(self, value: int) -> None:
        # Loader workers inherit the handlers; their signals are not the trainer's.
        if os.getpid() == self._pid:
            self.value = max(self.value, value)


class StopFlag:
    """This process's wish to stop, by signal or by the switch: 0, STOP or PREEMPT; the highest ever seen stays."""

    def __init__(self, switch: Callable[[], bool], signals: StopSignals | None = None) -> None:
        """switch: whether somebody asked through the run folder; asked at most once a second, on rank 0.

        signals: those caught so far; None: they are caught from now on.
        """
        self._switch = Switch(switch)
        self._signals = signals or StopSignals()
        self._switched = 0

    def poll(self) -> int:
        """Return the flag of this process."""
        if self._switch.poll():
            self._switched = STOP
        return max(self._switched, self._signals.value)
