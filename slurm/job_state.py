"""Is the job alive? squeue first, sacct second; what cannot be known is "unknown", never "gone"."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

from experiments.reconcile import Liveness
from experiments.registry import Intent
from slurm.local import start_ticks

_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
_QUERY_TIMEOUT_S = 30


def of_intent(intent: Intent) -> Liveness:
    """Tell whether what an intent asked for is queued, running or about to be submitted."""
    if intent.job is None:
        # Not submitted yet, or its launcher died before it could: the launcher's own process tells.
        return of_process(intent.request["launcher"])
    if intent.job["executor"] == "local":
        return of_process(intent.job)
    return of_slurm_job(intent.job["id"])


def of_process(record: dict[str, Any]) -> Liveness:
    """Tell whether the process of a `local.process_record` lives."""
    if record["host"] != socket.gethostname():
        return "unknown"
    return "alive" if start_ticks(record["pid"]) == record["start_ticks"] is not None else "gone"


def of_slurm_job(job_id: str) -> Liveness:
    """Tell whether a Slurm job, or any task of an array, is in the queue."""
    queued = _ask(["squeue", "--noheader", "--format=%T", "--jobs", job_id])
    if queued is not None and queued.strip():
        states = queued.split()
        return "gone" if all(state in _ENDED for state in states) else "alive"
    recorded = _ask(["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", job_id])
    states = [line.split()[0] for line in (recorded or "").splitlines() if line.strip()]
    if states:
        return "gone" if all(state in _ENDED for state in states) else "alive"
    return "unknown"


def _ask(command: list[str]) -> str | None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
