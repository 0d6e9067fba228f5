"""What trainings and arrays share on a node: claiming an attempt, finding the pinned parents, recording the end.

What becomes of a Slurm job whose attempt ended before its work did is decided in `slurm/leaving.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
import traceback
from typing import Any

from experiments import secret_words
from experiments.registry import Registry
from experiments.run import Attempt, EndKind, Run, Superseded
from slurm import notify

log = logging.getLogger(__name__)

ATTEMPT_VARIABLE = "DALLE2_VIDEO_ATTEMPT"
SUPERVISOR_VARIABLE = "DALLE2_VIDEO_SUPERVISOR"
SLURM_VARIABLES = (
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST",
    "SLURMD_NODENAME", "SLURM_JOB_PARTITION",
)  # fmt: skip
USER_ERROR = 2
PEER_FAILURE_DELAY_S = 2.0
END_TRIES = 5
TRACEBACK_TAIL = 4000
_PEER_DIED = ("Connection closed by peer", "Connection reset", "Broken pipe", "remote process exited")
_RAISED_ELSEWHERE = "raised on rank 0:"


def claim(run: Run, intent: int, request: dict[str, Any], group: int) -> int:
    """Return the number of this job's attempt: its supervisor's claim, or a new one."""
    supervised = os.environ.get(ATTEMPT_VARIABLE)
    if supervised is not None:
        return int(supervised)
    job = {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ}
    # Of a training as many as there are, which may be fewer than were asked for.
    world_size = int(os.environ.get("WORLD_SIZE", request["world_size"]))
    return run.claim_attempt({"intent": intent, "group": group, "world_size": world_size, "slurm": job}).number


def supervised_attempt(run: Run) -> Attempt | None:
    """Return the attempt that this process's supervisor claimed, or None."""
    number = os.environ.get(ATTEMPT_VARIABLE)
    return Attempt(run, int(number)) if number is not None else None


def record_failure(attempt: Attempt | None, error: BaseException, **facts: Any) -> int:
    """Record why the attempt ended; return the exit code: 2 where the user must mend something, else 1.

    The first to record wins, so a rank that merely noticed another's failure leaves that one time to speak.
    facts: more for the record, such as the number of tasks finished.
    """
    # Before it is cut: half a secret would not be known for one.
    trace = secret_words.redacted(traceback.format_exc())
    log.error("%s", trace)
    message = _in_short(error)
    code = USER_ERROR if isinstance(error, ValueError) else 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, code = f"disk full: {error}; free space, then run the same command again", USER_ERROR
    if any(words in trace for words in _PEER_DIED):
        time.sleep(PEER_FAILURE_DELAY_S)
        message = f"another rank died without a word, see the logs of all: {message}"
    elif any(note.startswith(_RAISED_ELSEWHERE) for note in getattr(error, "__notes__", ())):
        time.sleep(PEER_FAILURE_DELAY_S)
    if attempt is not None and not isinstance(error, Superseded):
        rank = int(os.environ.get("RANK", "0"))
        details = {"message": message, "traceback": trace[-TRACEBACK_TAIL:], "rank": rank, "exit_code": code}
        details["host"] = socket.gethostname()
        try_end(attempt, "error", **details, **facts)
        notify.try_tell_poisoned(attempt.run)
    return code


def _in_short(error: BaseException) -> str:
    """Return type and message; of an error in a loader worker those of its cause."""
    text = str(error)
    if "DataLoader worker process" in text:
        # PyTorch puts the worker's whole traceback into the message; the cause is its last line.
        return f"{text.rstrip().splitlines()[-1]} (in a loader worker)"
    return f"{type(error).__name__}: {text}"


def try_end(attempt: Attempt, kind: EndKind, **details: Any) -> None:
    """Record the end; on a full disk try for a while, since what others had staged is being removed."""
    for _ in range(END_TRIES):
        try:
            attempt.end(kind, **details)
            return
        except OSError as failure:
            log.error("the end of the attempt could not be recorded: %s", failure)
            time.sleep(1)


def parents_of(run: Run) -> dict[str, Run]:
    """Open the pinned parents, by role; ValueError where one is gone or holds something else than was pinned."""
    registry = Registry(run.folder.parents[2])
    found = {}
    for name, pinned in run.spec.parents.items():
        parent = registry.find(pinned.id, pinned.stage)
        record = parent.done()
        if pinned.step is None and (record is None or record["digest"] != pinned.digest):
            raise ValueError(
                f"{parent.name}, parent of {run.name}, is not what was pinned at creation ({pinned.digest})"
            )
        found[name] = parent
    return found
