"""What can happen to a run: one function a kind, which waits for its moment and returns what it struck.

A function draws its moment from the generator that it is given, and returns None where the run was done before it came
to that. None of them knows how the product is built beyond its files, its commands and its processes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from experiments.run import Commit
from tools.bench.chaos_home import Filler
from tools.bench.chaos_run import Disturbed

COMMIT_CALLS = 14
"""Calls of fsync, rename and link that two checkpoints make on rank 0, retention included, roughly."""
EXPORT_CALLS = 3
"""rename of the export; fsync and link of DONE. Where an older export is removed, that comes first."""
LAUNCH_CALLS = 6
"""fsync, link and fsync of the folder, for an intent and for its job; the same for an attempt."""
STAGING_S = 0.03
LAUNCHING_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Strike:
    """Something that happened."""

    phase: str
    """What the attempt was at: launching, starting, training, committing or exporting."""
    words: str


Fault = Callable[[Disturbed, Random], Strike | None]


def _moment(run: Disturbed, draw: Random) -> bool:
    """Wait for a random moment in the life of an attempt that nothing struck yet; False where the run is done first."""
    which = draw.random()
    if which < 0.4 and not run.started():
        if not run.until(lambda: run.fresh() and run.ranks(), "ranks"):
            return False
        run.pause(draw.random() * run.pace.start_s)
    elif which < 0.7:
        steps = draw.randint(1, run.pace.interval + 2)
        if not run.until(lambda: run.steps_done() >= steps, f"{steps} steps of an attempt"):
            return False
        run.pause(draw.random() * run.pace.step_s)
    else:
        skipped = draw.randint(0, 1) * run.pace.interval
        if not run.until(lambda: run.steps_done() >= skipped and run.staged(), "a checkpoint being written"):
            return False
        run.pause(draw.random() * STAGING_S)
    return not run.over()


def _signal_ranks(run: Disturbed, draw: Random, *, all_ranks: bool) -> Strike | None:
    while _moment(run, draw):
        ranks, phase = run.ranks(), run.phase()
        if not ranks:
            run.struck = run.newest()  # the attempt ended by itself in the last milliseconds
            continue
        if not all_ranks:
            ranks = [draw.choice(ranks)]
        run.struck = run.newest()
        for rank in ranks:
            rank.signal(signal.SIGKILL)
        return Strike(phase=phase, words=f"rank {', '.join(str(rank.rank) for rank in ranks)}")
    return None


def a_rank(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL a random rank."""
    return _signal_ranks(run, draw, all_ranks=False)


def all_ranks(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL all ranks at once."""
    return _signal_ranks(run, draw, all_ranks=True)


def launcher(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL the launcher, while it follows the run or while it starts; the attempt goes on."""
    if draw.random() < 0.5:
        if not _moment(run, draw):
            return None
        phase = run.phase()
    else:
        run.kill("launcher")
        run.launch()
        run.pause(draw.random() * LAUNCHING_S)
        phase = "launching"
    run.kill("launcher")
    return Strike(phase=phase, words="launcher")


def launcher_and_supervisor(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL the launcher and the supervisor; the ranks die with it."""
    if not _moment(run, draw):
        return None
    phase = run.phase()
    _kill_all(run)
    return Strike(phase=phase, words="launcher, supervisor")


def _kill_all(run: Disturbed) -> None:
    run.kill_all()
    run.struck = run.newest()


def writer(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL a rank before or after a call of fsync, rename or link on the run's checkpoints."""
    if not run.until(run.started, "an attempt that trains"):
        return None
    number = draw.randint(1, COMMIT_CALLS)
    trap = run.set_trap(
        role="rank", match=["/checkpoints"], n=number, when=draw.choice(["before", "after"]), signal=int(signal.SIGKILL)
    )
    return _snapped(run, trap, "committing")


def registry(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL launcher or supervisor before or after such a call on intents and attempts."""
    if not run.until(run.fresh, "an attempt"):
        return None
    _kill_all(run)
    number = draw.randint(1, LAUNCH_CALLS)
    trap = run.set_trap(
        role="any", match=["/intent", "/attempts"], n=number, when=draw.choice(["before", "after"]),
        signal=int(signal.SIGKILL),
    )  # fmt: skip
    return _snapped(run, trap, "launching")


def export(run: Disturbed, draw: Random) -> Strike | None:
    """SIGKILL a rank before or after such a call on the export or on DONE."""
    trap = run.set_trap(
        role="rank", match=["/export", "/DONE", "/.DONE"], n=draw.randint(1, EXPORT_CALLS),
        when=draw.choice(["before", "after"]), signal=int(signal.SIGKILL),
    )  # fmt: skip
    return _snapped(run, trap, "exporting")


def _snapped(run: Disturbed, trap: Path, phase: str) -> Strike | None:
    snapped = run.until(trap.exists, "a trap to snap") or trap.exists()
    run.clear_traps()
    if not snapped:
        return None
    if _report(trap)["role"] != "launcher":  # without it an attempt goes on
        run.struck = run.newest()
    return Strike(phase=phase, words=_told(trap))


def _report(trap: Path) -> dict[str, str]:
    """Return what the process said whose trap snapped; it may be about to write it."""
    deadline = time.monotonic() + 1
    while not (text := trap.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return json.loads(text)


def _told(trap: Path) -> str:
    told = _report(trap)
    return f"{told['role']} {told['when']} {told['call']} of {Path(told['paths'].split()[-1]).name}"


def truncated(run: Disturbed, draw: Random) -> Strike | None:
    """Kill everything, truncate a file of the newest commit."""
    return _damaged(run, draw, flip=False)


def flipped(run: Disturbed, draw: Random) -> Strike | None:
    """Kill everything, flip a bit of a file of the newest commit."""
    return _damaged(run, draw, flip=True)


def _damaged(run: Disturbed, draw: Random, *, flip: bool) -> Strike | None:
    commit = None
    while commit is None:
        if not run.until(lambda: run.fresh() and _to_damage(run), "two sound commits") or not _moment(run, draw):
            return None
        phase = run.phase()
        _kill_all(run)
        if run.over():
            return None
        commit = _to_damage(run)  # a last moment may have changed it
    assert run.ledger is not None
    path = draw.choice([path for path in sorted(commit.path.iterdir()) if path.stat().st_size])
    place = draw.randrange(path.stat().st_size)
    if flip:
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    else:
        os.truncate(path, place)
    run.ledger.damage(commit)
    return Strike(phase=phase, words=f"{'bit flipped in' if flip else 'truncated'} {commit.path.name}/{path.name}")


def _to_damage(run: Disturbed) -> Commit | None:
    """Return the newest commit where it and the one before are sound, so that there is one to go back to."""
    assert run.run is not None and run.ledger is not None
    newest = run.run.commits()[-2:]
    return newest[-1] if len(run.ledger.sound(set(newest))) == 2 else None


def disk_full(run: Disturbed, draw: Random) -> Strike | None:
    """Fill the disk for a while that holds a checkpoint or two, then free it."""
    if not _moment(run, draw):
        return None
    assert run.run is not None
    phase, before = run.phase(), run.newest()
    filler = Filler(run.home / "filler")
    run.on_look = filler.eat
    try:
        run.pause(2 * run.pace.interval * run.pace.step_s + draw.random() * 2, launching=False)
    finally:
        run.on_look = lambda: None
        filler.free()
    commits = run.run.commits()
    # Before that, a kill would cost what was done while nothing could be saved.
    run.until(lambda: run.newest() > before or (run.run and run.run.commits() != commits), "a commit after it")
    return Strike(phase=phase, words=f"attempt {'went on' if run.newest() == before else 'ended'}")


def zombie(run: Disturbed, draw: Random) -> Strike | None:
    """Stop an attempt with SIGSTOP, start another one, let the first go on beside it."""
    trap = None
    if draw.random() < 0.5:
        if not run.until(run.started, "an attempt that trains"):
            return None
        trap = run.set_trap(
            role="rank", match=["/checkpoints"], n=draw.randint(1, COMMIT_CALLS), when=draw.choice(["before", "after"]),
            signal=int(signal.SIGSTOP),
        )  # fmt: skip
        if not run.until(trap.exists, "a trap to snap"):
            run.clear_traps()
            return None
    elif not _moment(run, draw):
        return None
    phase = "committing" if trap else run.phase()
    words = _beside_a_zombie(run, trap, lambda: run.steps_done() > run.pace.interval)
    return Strike(phase=phase, words=words)


def export_zombie(run: Disturbed, draw: Random) -> Strike | None:
    """Stop an attempt within its export, let another finish the run, then let the first go on."""
    trap = run.set_trap(
        role="rank", match=["/export", "/DONE", "/.DONE"], n=draw.randint(1, EXPORT_CALLS),
        when=draw.choice(["before", "after"]), signal=int(signal.SIGSTOP),
    )  # fmt: skip
    if not run.until(trap.exists, "a trap to snap"):
        run.clear_traps()
        return None
    return Strike(phase="exporting", words=_beside_a_zombie(run, trap, lambda: False))


def _beside_a_zombie(run: Disturbed, trap: Path | None, far_enough: Callable[[], bool]) -> str:
    """Stop what works on the run, start another attempt, and let the first go on once that is far enough, or done."""
    assert run.run is not None and run.ledger is not None
    run.clear_traps()
    attempt = run.newest()
    run.kill("launcher")
    stopped = run.processes("supervisor", "rank")
    for process in stopped:
        process.signal(signal.SIGSTOP)
    if run.over():  # in the last milliseconds
        for process in stopped:
            process.signal(signal.SIGCONT)
        return "came too late to be one"
    run.ledger.fence(attempt)
    run.struck = attempt
    # As if it ran on another host, of which nobody here can tell whether its processes live.
    intent = run.run.intents()[-1]
    assert intent.job is not None
    run.run.resolve_intent(intent.number, intent.job | {"host": "another-host"})
    run.launch()
    run.until(lambda: run.fresh() and far_enough(), "an attempt beside a zombie")
    for process in stopped:
        process.signal(signal.SIGCONT)
    run.wait_gone([process.pid for process in stopped])
    run.run.resolve_intent(intent.number, intent.job)
    return f"attempt {attempt}, stopped {_told(trap) if trap else 'at a random moment'}"


MIDDLE: dict[str, tuple[Fault, int]] = {
    "a rank": (a_rank, 3),
    "all ranks": (all_ranks, 2),
    "launcher": (launcher, 2),
    "launcher and supervisor": (launcher_and_supervisor, 2),
    "writer of a commit": (writer, 4),
    "writer of the registry": (registry, 1),
    "checkpoint truncated": (truncated, 1),
    "checkpoint bit flipped": (flipped, 1),
    "disk full": (disk_full, 1),
    "zombie": (zombie, 1),
}
"""What happens while a run trains, and how often in 18."""
LAST: dict[str, Fault] = {"writer of the export": export, "zombie that exports": export_zombie}
"""What happens at the end of a run."""
