"""One machine without Slurm: a supervisor process plays Slurm's part.

It starts the ranks of a training (or the groups of an array, as many at once as there are cores), ends the others when
one dies, records a death that the dead could not record, and starts the next attempt unless the run is done, stopped or
poisoned. Ranks die with it (PR_SET_PDEATHSIG), so that nothing trains unsupervised.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import files
from experiments.reconcile import FAILURES_TO_POISON, fruitless_failures
from experiments.run import Attempt, Run
from slurm import logs, notify
from slurm.attempt import ATTEMPT_VARIABLE, SUPERVISOR_VARIABLE

log = logging.getLogger(__name__)

POLL_S = 0.1
GRACE_S = 5.0
RENDEZVOUS_PORTS = range(20000, 30000)
GIVEN_UP_TO_END = 3


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; with the pid it names a process once and for all."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_record(pid: int) -> dict[str, Any]:
    """Record from which any later process on this host can tell whether this one lives."""
    return {"executor": "local", "host": socket.gethostname(), "pid": pid, "start_ticks": start_ticks(pid)}


def supervise(run_folder: str, intent: int, visible_gpus: str | None) -> None:
    """Run an intent to its end on this machine.

    visible_gpus: CUDA_VISIBLE_DEVICES of the launcher, None where it is not set.
    """
    # submitit hides all GPUs that it does not hand out itself.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible_gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    run = Run(Path(run_folder))
    run.resolve_intent(intent, process_record(os.getpid()))
    request = run.intent(intent).request
    groups = len(request["groups"])
    at_once = min(groups, request.get("parallel", 0) or len(os.sched_getaffinity(0)))
    units = [
        _Unit(run, intent, request, group, ranks=request["world_size"], at_once=at_once) for group in range(groups)
    ]
    _work_off(run, units, at_once)


def _work_off(run: Run, units: Sequence[_Unit], at_once: int) -> None:
    """Bring units to their end, `at_once` at a time.

    No further ones are started once the run was asked to stop or enough were given up to show that it is not them.
    """
    waiting, working = deque(units), list[_Unit]()
    while waiting or working:
        while waiting and len(working) < at_once:
            users_to_mend = any(unit.users_to_mend for unit in units)
            if run.stop_requested() or users_to_mend or sum(unit.given_up for unit in units) >= GIVEN_UP_TO_END:
                waiting.clear()
            else:
                working.append(waiting.popleft())
        working = [unit for unit in working if unit.poll()]
        time.sleep(POLL_S)


def free_port() -> int:
    """Return a port that nobody listens on, for ranks to meet at some seconds later.

    Below the range from which the kernel serves connections, gloo's own included: those may be taken until then.
    """
    while True:
        port = random.choice(RENDEZVOUS_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class _Unit:
    """The ranks of one training, or the one process of an array group."""

    def __init__(self, run: Run, intent: int, request: dict[str, Any], group: int, *, ranks: int, at_once: int) -> None:
        self.run, self.intent, self.request, self.group = run, intent, request, group
        self.ranks, self.at_once = ranks, at_once
        self.processes: list[subprocess.Popen[bytes]] = []
        self.attempt: Attempt | None = None
        self.over = False
        self.given_up = False
        """Over because it failed again and again."""
        self.users_to_mend = False
        """Over because its user has to mend something."""

    def poll(self) -> bool:
        """Start, watch, restart; return whether the unit is still at work."""
        if self.over:
            return False
        if self.attempt is None:
            self._start()
            return True
        codes = [process.poll() for process in self.processes]
        if all(code == 0 for code in codes):
            self._ended()
        elif any(code not in (None, 0) for code in codes):
            rank, code = next((rank, code) for rank, code in enumerate(codes) if code not in (None, 0))
            if code < 0:
                # Before its peers complain of a lost connection.
                self._record(rank, f"was killed by signal {-code} ({signal.Signals(-code).name})")
            self._end_all()
            self._record(rank, f"ended with exit code {code}")
            self._ended()
        return not self.over

    def _log(self, rank: int) -> Path:
        assert self.attempt is not None
        return logs.supervised(self.run.folder, self.attempt.number, rank)

    def _start(self) -> None:
        self.attempt = self.run.claim_attempt(
            {"supervised": True, "intent": self.intent, "group": self.group, "world_size": self.ranks}
        )
        # What is compiled there is loaded as code.
        caches = files.private_folder(Path(tempfile.gettempdir()) / f"dalle2_video-{os.getuid()}")
        cores = len(os.sched_getaffinity(0))
        shared = {
            ATTEMPT_VARIABLE: str(self.attempt.number),
            SUPERVISOR_VARIABLE: str(os.getpid()),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": str(max(1, cores // (self.ranks * self.at_once))),
            # A stale lock of a compile cache in a shared home hangs every later run.
            "TORCH_EXTENSIONS_DIR": str(caches / "torch_extensions"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }
        command = [sys.executable, "-u", "-m", "slurm.job", str(self.run.folder), str(self.intent), str(self.group)]
        self._log(0).parent.mkdir(exist_ok=True)
        for rank in range(self.ranks):
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._log(rank).open("ab") as file:
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
                )

    def _record(self, rank: int, how: str) -> None:
        """Record the death of a rank with its last words, unless somebody recorded the end before."""
        assert self.attempt is not None
        path = self._log(rank)
        details = {"message": f"rank {rank} {how}; see {path}", "rank": rank, "traceback": logs.last_words(path)}
        try:
            self.attempt.end("error", **details)
        except OSError as error:  # a full disk: what follows does not depend on the record
            log.error("the end of attempt %d could not be recorded: %s", self.attempt.number, error)

    def _end_all(self) -> None:
        """Give the other ranks time to see the death and say so in their logs, then kill them."""
        deadline = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for process in self.processes:
            process.kill()
            process.wait()

    def _ended(self) -> None:
        """Decide what follows the end of the attempt."""
        assert self.attempt is not None
        number, self.attempt, self.processes = self.attempt.number, None, []
        end = self.run.attempt(number).end
        superseded = self.run.newest_attempt() > number and len(self.request["groups"]) == 1
        finished = end is not None and end["kind"] in ("done", "stopped")
        self.users_to_mend = end is not None and end.get("exit_code") == 2
        failures = fruitless_failures(
            self.run.attempts(), self.run.commits(), group=self.group, after=self.request.get("forgiven", 0)
        )
        self.given_up = len(failures) >= FAILURES_TO_POISON
        if self.given_up:
            notify.try_tell_poisoned(self.run)
        self.over = finished or superseded or self.users_to_mend or self.given_up
