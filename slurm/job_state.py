"""What Slurm says. Is the job alive? squeue first, sacct second; what cannot be known is "unknown", never "gone"."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reconcile import Liveness
from experiments.run import Intent
from slurm.local import start_ticks

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
"""States of a job that Slurm does nothing for any more."""
CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
"""Where Slurm's commands look for a cluster unless SLURM_CONF names a file; the second is that of a node that fetches
its configuration."""
_QUERY_TIMEOUT_S = 30
_DEFAULT_MAX_ARRAY_SIZE = 1001


def no_slurm() -> str:
    """Return why there is no Slurm to submit to; "" where there is. Its packages alone make no cluster."""
    if shutil.which("sbatch") is None:
        return "`sbatch` is not found"
    named = os.environ.get("SLURM_CONF")
    if any(Path(place).is_file() for place in ([named] if named else CONFIGURATIONS)):
        return ""
    if named:
        return f"SLURM_CONF={named} is not a file"
    # A cluster may also be found by a DNS record; asking takes milliseconds where there is none.
    return "" if ask(["scontrol", "ping"]) else "`sbatch` is there without a cluster's configuration"


def of_intent(intent: Intent) -> Liveness:
    """Tell whether what an intent asked for is queued, running or about to be submitted."""
    if intent.job is None:
        # Not submitted yet, or its launcher died before it could: the launcher's own process tells.
        return of_process(intent.request["launcher"])
    if intent.job["executor"] == "local":
        return of_process(intent.job)
    return of_slurm_jobs(intent.job["ids"])


def of_process(record: dict[str, Any]) -> Liveness:
    """Tell whether the process of a `local.process_record` lives."""
    if record["host"] != socket.gethostname():
        return "unknown"
    return "alive" if start_ticks(record["pid"]) == record["start_ticks"] is not None else "gone"


def of_slurm_jobs(job_ids: Sequence[str]) -> Liveness:
    """Tell whether any of several Slurm jobs, or any task of one that is an array, is in the queue."""
    jobs = ",".join(job_ids)
    queued = ask(["squeue", "--noheader", "--format=%T", "--jobs", jobs])
    if queued is not None and queued.strip():
        return "gone" if all(state in ENDED for state in queued.split()) else "alive"
    recorded = ask(["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", "--jobs", jobs])
    # `4711_3|CANCELLED by 1000`: task 3 of array 4711
    lines = [line.strip().split("|") for line in (recorded or "").splitlines() if line.strip()]
    if any(state.split()[0] not in ENDED for _, state in lines):
        return "alive"
    known = {job.split("_")[0] for job, _ in lines}
    return "gone" if known >= set(job_ids) else "unknown"


def max_array_size() -> int:
    """Return how many jobs one Slurm array holds: indices count from 0 and stay below the cluster's MaxArraySize."""
    answer = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]) or "", re.MULTILINE)
    # 0 means that the cluster takes no arrays.
    return max(1, int(answer[1])) if answer else _DEFAULT_MAX_ARRAY_SIZE


def try_cancel_queued(intent: Intent) -> None:
    """Take those Slurm jobs of an intent out of the queue that have not started: they have nothing to save."""
    if intent.job is not None and intent.job["executor"] == "slurm":
        ask(["scancel", "--state=PENDING", *intent.job["ids"]])


def ask(command: list[str]) -> str | None:
    """Return what one of Slurm's commands prints, or None where it is missing, fails or does not answer in time."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
