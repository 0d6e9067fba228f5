"""Watchdog of one rank: ends the process when its training makes no progress.

The trainer names each phase as it enters it: a step, waiting for data, a save, a validation, the export. One that
lasts longer than max(minimum_s, factor x the median step of this attempt) is a hang, at the start one longer than
START_S if that is more: the stacks of all threads go to the log, `on_hang` puts it on record, and the process ends,
whatever becomes of the record. A rank that computes and a rank that waits for it in a collective both hang; `summary`
tells them apart. Where a C call sits on the interpreter's lock, so that no thread of Python's gets to run,
faulthandler's own thread ends the process a little later. A process that was stopped (SIGSTOP, scontrol suspend) for
as long counts as hanging too.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

log = logging.getLogger(__name__)

HANG_EXIT = 1
START_S = 900.0
"""What a phase may always take before the first step: a thousand processes import from one file system."""
RECORD_S = 30.0
"""Time that putting the hang on record may take."""
LOCKED_S = 10.0
"""Time after which the process ends although the interpreter's lock is held."""
STEPS_REMEMBERED = 1000
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_WRAPPER = "deepspeed/utils/nvtx.py"


@dataclass(frozen=True, kw_only=True)
class Hang:
    """What one rank knows of its hang; plain JSON types."""

    phase: str
    step: int
    """Steps done when it began; as far as this rank knows."""
    seconds: float
    limit_s: float
    place: str
    """Where the main thread stands: `file:line in function`."""
    in_collective: bool
    """Whether it waits for other ranks there."""
    stack: str
    """Of the main thread, innermost call last."""


class Watchdog:
    """Watches this process from a thread, from its making until `stop`."""

    def __init__(
        self,
        *,
        minimum_s: float,
        factor: float,
        on_hang: Callable[[Hang], None],
        on_phase: Callable[[str], None] = lambda _: None,
    ) -> None:
        """on_hang: puts a hang on record; called once, from another thread than the trainer's; on_phase: hears of each
        phase as it begins."""
        self._on_phase = on_phase
        self._minimum_s, self._factor, self._on_hang = minimum_s, factor, on_hang
        self._step_s: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._step = 0
        self._main = threading.get_ident()
        self._over = threading.Event()
        self.phase("starting", start=True)
        self._expect_return(self.limit_s())
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def phase(self, what: str, *, start: bool = False) -> None:
        """Tell that the trainer got on and is about to do `what`; start: before the first step."""
        self._now = (what, time.monotonic(), START_S if start else 0.0)
        self._on_phase(what)

    def step_took(self, step: int, seconds: float) -> None:
        """Tell that step `step` (1 is the first) is done and how long it took."""
        self._step = step
        self._step_s.append(seconds)

    def limit_s(self) -> float:
        """Return how long the phase may take."""
        steps = list(self._step_s)
        return max(self._minimum_s, self._now[2], self._factor * statistics.median(steps) if steps else 0.0)

    def stop(self) -> None:
        """Watch no more: training is over and what follows may wait as long as it will."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._minimum_s / 10)):
            phase, since, _ = self._now
            limit_s = self.limit_s()
            seconds = time.monotonic() - since
            if seconds > limit_s:
                self._end(phase, seconds, limit_s)
            self._expect_return(limit_s)

    def _expect_return(self, seconds: float) -> None:
        """Let faulthandler end the process unless this is called again in time."""
        faulthandler.dump_traceback_later(seconds + LOCKED_S, exit=True)

    def _end(self, phase: str, seconds: float, limit_s: float) -> None:
        self._expect_return(RECORD_S)
        frames = traceback.extract_stack(sys._current_frames()[self._main])
        last = next((frame for frame in reversed(frames) if _WRAPPER not in frame.filename), frames[-1])
        hang = Hang(
            phase=phase,
            step=self._step,
            seconds=seconds,
            limit_s=limit_s,
            place=f"{last.filename}:{last.lineno} in {last.name}",
            in_collective=any(map(_waits_for_others, frames)),
            stack="".join(traceback.format_list(frames)),
        )
        log.error("no progress for %.0f s (limit %.0f s): %s; stacks of all threads:", seconds, limit_s, phase)
        faulthandler.dump_traceback(all_threads=True)
        # In a thread, for the file system of the record may be what hangs.
        recorder = threading.Thread(target=self._on_hang, args=(hang,), daemon=True)
        recorder.start()
        recorder.join(RECORD_S)
        os._exit(HANG_EXIT)


def _waits_for_others(frame: traceback.FrameSummary) -> bool:
    # A collective that was started before is waited for by its handle, a call into C from one of ZeRO's own `wait`s.
    return any(part in frame.filename for part in _COLLECTIVES) or (
        "/deepspeed/" in frame.filename and frame.name == "wait"
    )


def suspect(hangs: Mapping[int, Hang]) -> int:
    """Return the rank to look at first: the lowest that does not wait for others, else the lowest."""
    return min(hangs, key=lambda rank: (hangs[rank].in_collective, rank))


def summary(hangs: Mapping[int, Hang], world_size: int) -> str:
    """Tell in a sentence which ranks hang and where: first those that others wait for.

    hangs: by rank, what was heard; a rank of `world_size` that is not among them said nothing.
    """

    def told(rank: int) -> tuple[bool, str]:
        hang = hangs[rank]
        doing = "waiting for other ranks" if hang.in_collective else "stuck"
        return hang.in_collective, f"{doing} at {hang.place} ({hang.phase})"

    ranks = sorted(hangs, key=lambda rank: (*told(rank), rank))
    parts = [f"{_named(list(same))} {words}" for (_, words), same in groupby(ranks, key=told)]
    if silent := [rank for rank in range(world_size) if rank not in hangs]:
        parts.insert(0, f"{_named(silent)} silent")
    first = hangs[suspect(hangs)]
    return (
        f"no progress for {first.seconds:.0f} s after step {first.step}: {'; '.join(parts)}; the stacks are in the "
        f"ranks' logs. If it was merely slow, raise --hang-min-s (the limit was {first.limit_s:.0f} s)"
    )


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
