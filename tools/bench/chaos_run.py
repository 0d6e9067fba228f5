"""A run under disturbance: the same command again and again, its processes, its traps, and where it stands.

Works from outside only: it starts the launcher as a user does, finds the processes of the run by a mark in their
environment, reads the registry's files. Invariant: no process is signalled that does not carry this run's mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.registry import Registry
from experiments.run import Run
from slurm import run_state
from slurm.attempt import ATTEMPT_VARIABLE
from tools.bench import chaos_traps
from tools.bench.chaos_home import REPOSITORY
from tools.bench.chaos_ledger import Account, Ledger

MARK = "CHAOS_MARK"
POLL_S = 0.01
STUCK_S = 300.0
VAIN_LAUNCHES = 8


class Stuck(RuntimeError):  # noqa: N818 - a state, and a finding about the product
    """The run did not do what it has to within five minutes, or refuses to be launched."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A living process of the run."""

    pid: int
    role: str
    """launcher, supervisor or rank; as `chaos_traps.role_of` tells."""
    attempt: int
    """Attempt that a rank works on; 0 for others."""
    rank: int

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has gone meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How quick the undisturbed run was; the moments of kills follow it."""

    steps: int
    interval: int
    """Steps between checkpoints."""
    start_s: float
    """From the claim of an attempt to its first step."""
    step_s: float


class Disturbed:
    """One run that is disturbed until it is done."""

    def __init__(self, home: Path, command: Sequence[str], scratch: Path, account: Account, pace: Pace) -> None:
        """home: has finished parents and no prior; scratch: a folder on another disk, for traps and logs."""
        self.home, self.command, self.pace = home, list(command), pace
        self.on_look: Callable[[], None] = lambda: None
        """Called whenever the run is looked at."""
        self.account = account
        self.mark = uuid.uuid4().hex
        self.scratch = scratch / self.mark
        (self.scratch / "path").mkdir(parents=True)
        shutil.copy(chaos_traps.__file__, self.scratch / "path" / "sitecustomize.py")
        self.launcher: subprocess.Popen[bytes] | None = None
        self.run: Run | None = None
        self.ledger: Ledger | None = None
        self.launches = self.retries = 0
        self._vain, self._newest_at_launch = 0, -1
        self.struck = 0
        """Newest attempt when something struck that ends attempts: the next kill waits for a newer one."""

    def launch(self) -> None:
        """Give the same command again; with `--retry` where the registry asks for it."""
        retry = []
        if self.run is not None:
            action = run_state.decision(self.run, self.run.intents(), retry=False).action
            if action in ("poisoned", "unknown"):
                retry = ["--retry"]
                self.retries += action == "poisoned"
            newest = self.run.newest_attempt()
            self._vain = self._vain + 1 if newest == self._newest_at_launch else 0
            self._newest_at_launch = newest
            if self._vain > VAIN_LAUNCHES:
                raise Stuck(f"{VAIN_LAUNCHES} launches without an attempt; the last said:\n{self.words()}")
        self.launches += 1
        path = os.pathsep.join(filter(None, [str(self.scratch / "path"), os.environ.get("PYTHONPATH")]))
        own = {"DALLE2_VIDEO_HOME": str(self.home), "PYTHONPATH": path}
        own |= {MARK: self.mark, "CHAOS_TRAPS": str(self._traps)}
        with (self.scratch / "launcher.log").open("wb") as log:
            command = [*self.command, *retry]
            self.launcher = subprocess.Popen(
                command, cwd=REPOSITORY, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
            )

    def words(self) -> str:
        """Return what the newest launcher and the newest attempt said last."""
        texts = [(self.scratch / "launcher.log").read_text()[-2000:]]
        if self.run is not None:
            logs = sorted((self.run.folder / "logs").glob("*"), key=lambda path: path.stat().st_mtime)
            texts += [f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in logs[-2:]]
        return "\n".join(texts)

    def over(self) -> bool:
        """Return whether the run is done."""
        return self.run is not None and self.run.is_done()

    def look(self) -> None:
        """Keep the books; called all the time."""
        if self.run is None:
            self.run = next(Registry(self.home).runs("prior"), None)
            if self.run is not None:
                self.ledger = Ledger(self.run, self.account)
        if self.ledger is not None:
            self.ledger.look()
        self.on_look()

    def until(self, condition: Callable[[], object], what: str, *, launching: bool = True) -> bool:
        """Wait for a condition, launching again whenever no launcher is there; False where the run is done before.

        Raises Stuck after five minutes.
        """
        deadline = time.monotonic() + STUCK_S
        while True:
            self.look()
            if condition():
                return True
            if self.over():
                return False
            if launching and (self.launcher is None or self.launcher.poll() is not None):
                self.launch()
            if time.monotonic() > deadline:
                raise Stuck(f"waited {STUCK_S:.0f} s for this: {what}\n{self.words()}")
            time.sleep(POLL_S)

    def pause(self, seconds: float, *, launching: bool = True) -> None:
        """Let some time go by."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "some time", launching=launching)

    def wait_gone(self, pids: Sequence[int]) -> None:
        """Wait until these processes are gone, also where the run is done."""
        deadline = time.monotonic() + STUCK_S
        while left := [process for process in self.processes() if process.pid in pids]:
            if time.monotonic() > deadline:
                raise Stuck(f"still there after {STUCK_S:.0f} s: {left}\n{self.words()}")
            self.look()
            if not self.over() and self.launcher is not None and self.launcher.poll() is not None:
                self.launch()
            time.sleep(5 * POLL_S)

    def processes(self, *roles: str) -> list[Process]:
        """Return the living processes of the run that play one of these roles; of all roles without any."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = dict(
                    line.split(b"=", 1) for line in (entry / "environ").read_bytes().split(b"\0") if b"=" in line
                )
                role = chaos_traps.role_of((entry / "cmdline").read_bytes())
            except OSError:
                continue
            if environment.get(MARK.encode()) == self.mark.encode() and (not roles or role in roles):
                attempt = int(environment.get(ATTEMPT_VARIABLE.encode(), b"0"))
                rank = int(environment.get(b"RANK", b"0"))
                found.append(Process(pid=int(entry.name), role=role, attempt=attempt, rank=rank))
        return found

    def ranks(self) -> list[Process]:
        """Return the living ranks of the newest attempt."""
        newest = self.newest()
        return [process for process in self.processes("rank") if process.attempt == newest]

    def newest(self) -> int:
        """Return the newest attempt."""
        return self.run.newest_attempt() if self.run is not None else 0

    def fresh(self) -> bool:
        """Return whether an attempt is at work that nothing struck yet."""
        return self.newest() > self.struck

    def started(self) -> bool:
        """Return whether such an attempt trains."""
        return self.fresh() and self.ledger is not None and self.ledger.resumed(self.newest()) is not None

    def steps_done(self) -> int:
        """Return the steps that the newest attempt has done itself."""
        if not self.started():
            return 0
        assert self.ledger is not None
        newest = self.newest()
        return self.ledger.reached(newest) - (self.ledger.resumed(newest) or 0)

    def staged(self) -> bool:
        """Return whether a checkpoint or the export is being written by an attempt that nothing struck yet."""
        if not self.started():
            return False
        assert self.run is not None
        return any((self.run.folder / "checkpoints").glob(f".staging-*-{self.newest():04d}-*"))

    def phase(self) -> str:
        """Name what the newest attempt is at."""
        assert self.run is not None
        if not self.started():
            return "starting"
        commits = self.run.commits()
        if commits and commits[-1].step == self.pace.steps:
            return "exporting"
        return "committing" if self.staged() else "training"

    def kill(self, *roles: str) -> None:
        """Kill all processes of these roles."""
        for process in self.processes(*roles):
            process.signal(signal.SIGKILL)
        if self.launcher is not None and (not roles or "launcher" in roles):
            self.launcher.wait()

    def kill_all(self) -> None:
        """Kill everything and wait until it is gone."""
        # The launcher first, which would tell of the others' end, then the supervisor, with which its ranks die.
        for role in ("launcher", "supervisor", "rank"):
            self.kill(role)
        deadline = time.monotonic() + STUCK_S
        while left := self.processes():  # also what those had just started
            if time.monotonic() > deadline:
                raise Stuck(f"killed, and still there after {STUCK_S:.0f} s: {left}")
            self.look()
            for process in left:
                process.signal(signal.SIGKILL)
            time.sleep(POLL_S)
        self.look()  # what they did last, before anything is done to it

    @property
    def _traps(self) -> Path:
        return self.scratch / "traps.json"

    def set_trap(self, **trap: Any) -> Path:
        """Set one trap, see `chaos_traps`; return the file that tells that it has snapped."""
        name = uuid.uuid4().hex
        hidden = self.scratch / ".traps.json"
        hidden.write_text(json.dumps([{"id": name, **trap}]))
        hidden.replace(self._traps)
        return Path(f"{self._traps}.{name}")

    def clear_traps(self) -> None:
        """Take all traps away."""
        self._traps.unlink(missing_ok=True)

    def finish(self) -> None:
        """Let the run come to its end, then give the same command once more, which must say that it is done."""
        self.clear_traps()
        self.until(self.over, "the end of the run")
        if self.launcher is not None:
            self.launcher.wait(STUCK_S)
        self.launch()
        assert self.launcher is not None and self.ledger is not None
        if self.launcher.wait(STUCK_S) != 0:
            raise Stuck(f"the run is done, and the same command says:\n{self.words()}")
        self.ledger.close()

    def close(self) -> None:
        """Leave no process behind."""
        self.kill_all()
        if self.launcher is not None:
            self.launcher.wait()
