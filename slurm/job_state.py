"""What Slurm says. Is the job alive? squeue first, else sacct; what cannot be known is "unknown", never "gone"."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
SUBMISSION_S = 900.0
"""Age from which on a launcher on another host, which tries for five minutes, can no longer be about to submit."""
JOBS_A_QUESTION = 500
"""Job ids in one call of squeue or sacct: a command line has a limit."""
HELD_BY_SLURM = ("JobHoldMaxRequeue", "launch failed requeued held")
"""Reasons of a job that Slurm holds by itself, since nodes failed to start it."""
_QUERY_TIMEOUT_S = 30
_DEFAULT_MAX_ARRAY_SIZE = 1001
_NO_SUCH_JOB = "invalid job id"
Key = TypeVar("Key")


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


def comment(intent: int, first_group: int) -> str:
    """Comment of a job: with its name it tells which submission of which launch it is."""
    return f"dalle2-video:{intent}:{first_group}"


def submitted(name: str, comment_start: str) -> list[str] | None:
    """Return the ids of the jobs with this name and a comment that begins so; None where the controller is silent.

    Those that ended a short while ago too, and of any user: a colleague may have launched the run.
    """
    answer = ask(["squeue", "--noheader", "--states=all", "--format=%F|%k", f"--name={name}"])
    if answer is None:
        return None
    return parse_submitted(answer, comment_start)


def parse_submitted(answer: str, comment_start: str) -> list[str]:
    """Return the ids of jobs whose comment begins so, ascending; a line is `id|comment`."""
    pairs = [line.strip().partition("|") for line in answer.splitlines()]
    found = {job for job, _, words in pairs if job.isdecimal() and words.startswith(comment_start)}
    return sorted(found, key=int)


def of_intent(intent: Intent) -> Liveness:
    """Tell whether what an intent asked for is queued, running or about to be submitted."""
    return of_intents({0: intent})[0]


def of_intents(intents: Mapping[Key, Intent]) -> dict[Key, Liveness]:
    """Tell so of many intents: one question to squeue for all that have a job, where it is silent one to sacct."""
    slurm = {
        key: set(intent.job["ids"])
        for key, intent in intents.items()
        if intent.job is not None and intent.job["executor"] == "slurm"
    }
    clusters = {key: (intents[key].job or {}).get("cluster") for key in slurm}
    cluster = cluster_name() if any(clusters.values()) else None
    answers: dict[Key, Liveness] = {}
    for key, intent in intents.items():
        if intent.job is None:
            answers[key] = _of_submission(intent)
        elif intent.job["executor"] == "local":
            answers[key] = of_process(intent.job)
        else:
            answers[key] = "unknown"  # where it is another cluster's, of which this one knows nothing
    return answers | _of_slurm({key: ids for key, ids in slurm.items() if clusters[key] in (None, cluster)})


def may_answer(intent: Intent) -> bool:
    """Whether asking again may tell more: the job is this cluster's, whose controller did not answer."""
    if intent.request.get("executor") != "slurm" or no_slurm():
        return False
    return cluster_name() in (None, (intent.job or {}).get("cluster"))


def why_unknown(intent: Intent) -> str:
    """Return why nobody can tell here whether an intent's job is alive, and what to do about it."""
    job = intent.job or {}
    if job.get("executor") == "slurm" or (not job and intent.request.get("executor") == "slurm"):
        cluster, here = job.get("cluster"), cluster_name()
        if here is None:
            return "Slurm does not answer (is its controller up? ask it: squeue), so run the command again later"
        if cluster not in (None, here):
            return f"its job is on cluster {cluster} and this is {here}; run the command there"
    host = (job or intent.request["launcher"]).get("host", "another host")
    return f"it was started on {host}, whose processes cannot be seen from here; run the command there"


def _of_submission(intent: Intent) -> Liveness:
    """Tell of an intent without a job: its launcher is about to submit it, or died before or just after it did."""
    launcher = of_process(intent.request["launcher"])
    if launcher == "alive" or intent.request.get("executor") != "slurm":
        return launcher
    found = submitted(intent.request["job_name"], comment(intent.number, 0).rpartition(":")[0] + ":")
    if found is None:
        return "unknown"
    if found:
        return _of_slurm({0: set(found)})[0]
    old = time.time() - intent.request["time"] > SUBMISSION_S
    return "gone" if launcher == "gone" or old else "unknown"


def of_process(record: dict[str, Any]) -> Liveness:
    """Tell whether the process of a `local.process_record` lives."""
    if record["host"] != socket.gethostname():
        return "unknown"
    return "alive" if start_ticks(record["pid"]) == record["start_ticks"] is not None else "gone"


def _of_slurm(jobs: Mapping[Key, set[str]]) -> dict[Key, Liveness]:
    """Tell of sets of Slurm jobs whether any of each, or any task of one that is an array, is to run or running.

    The controller is the truth: a job that it does not know is gone. Where it does not answer, the accounting may.
    """
    every: set[str] = set().union(*jobs.values())
    known = _queued(every)
    sure = known is not None
    if known is None:
        known = _recorded(every)
    answers: dict[Key, Liveness] = {}
    for key, ids in jobs.items():
        alive = any(not over for job in ids & known.keys() for over in known[job])
        answers[key] = "alive" if alive else "gone" if sure or ids <= known.keys() else "unknown"
    return answers


def _queued(jobs: Collection[str]) -> dict[str, list[bool]] | None:
    """Return, by job in the queue, whether each of its parts is over; None where the controller does not answer.

    A job that Slurm holds because it was requeued too often is over: nothing but a new submission makes it run.
    """
    found: dict[str, list[bool]] = {}
    for some in _in_portions(jobs):
        columns = "--Format=ArrayJobID:24,State:24,Reason:48"
        done, answer, words = _run(["squeue", "--noheader", columns, f"--jobs={','.join(some)}"])
        if not done and _NO_SUCH_JOB not in words.lower():
            return None
        for job, over in parse_queue(answer if done else ""):
            found.setdefault(job, []).append(over)
    return found


def parse_queue(answer: str) -> Iterator[tuple[str, bool]]:
    """Yield id and whether it is over of each job in squeue's answer, whose columns are 24, 24 and 48 wide."""
    for line in answer.splitlines():
        job, state, reason = line[:24].strip(), line[24:48].strip(), line[48:].strip()
        if job and state:
            held = state == "PENDING" and reason in HELD_BY_SLURM
            yield job, held or state in ENDED


def _recorded(jobs: Collection[str]) -> dict[str, list[bool]]:
    """Return the same of jobs in the accounting; empty where there is none."""
    found: dict[str, list[bool]] = {}
    for some in _in_portions(jobs):
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        for job, over in parse_accounting(ask([*command, f"--jobs={','.join(some)}"]) or ""):
            found.setdefault(job, []).append(over)
    return found


def parse_accounting(answer: str) -> Iterator[tuple[str, bool]]:
    """Yield the same of sacct's answer: `4711_3|CANCELLED by 1000` is task 3 of array 4711, and over."""
    for line in answer.splitlines():
        job, _, state = line.strip().partition("|")
        if state.strip():
            yield job.split("_")[0], state.split()[0] in ENDED


def _in_portions(jobs: Collection[str]) -> Iterable[list[str]]:
    ordered = sorted(jobs)
    return (ordered[first : first + JOBS_A_QUESTION] for first in range(0, len(ordered), JOBS_A_QUESTION))


def cluster_name() -> str | None:
    """Name of the cluster that this host's commands talk to; None where it does not answer."""
    return _setting("ClusterName")


def max_array_size() -> int:
    """Return how many jobs one Slurm array holds: indices count from 0 and stay below the cluster's MaxArraySize."""
    answer = _setting("MaxArraySize")
    # 0 means that the cluster takes no arrays.
    return max(1, int(answer)) if answer and answer.isdecimal() else _DEFAULT_MAX_ARRAY_SIZE


def _setting(name: str) -> str | None:
    answer = re.search(rf"^{name}\s*=\s*(\S+)", ask(["scontrol", "show", "config"]) or "", re.MULTILINE)
    return answer[1] if answer else None


def try_cancel_queued(intent: Intent) -> None:
    """Take those Slurm jobs of an intent out of the queue that are not running: they have nothing to save."""
    if intent.job is not None and intent.job["executor"] == "slurm":
        ask(["scancel", "--state=PENDING", *intent.job["ids"]])


def ask(command: list[str]) -> str | None:
    """Return what one of Slurm's commands prints, or None where it is missing, fails or does not answer in time."""
    done, answer, _ = _run(command)
    return answer if done else None


def _run(command: list[str]) -> tuple[bool, str, str]:
    """Return whether a command succeeded, what it printed, and what it said on standard error."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, "", str(error)
    return answer.returncode == 0, answer.stdout, answer.stderr
