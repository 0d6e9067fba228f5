"""Leaving a Slurm job whose work is not finished: what becomes of the job, and how its nodes are free at once.

Rank 0 asks the controller what it has in mind. A job that Slurm is ending already (scancel, somebody's requeue, the end
of a preemption's grace) just goes: whoever ended it decided what follows, and asking for a requeue would make the job
immune to scancel. One that is preempted or out of time is requeued, one that the STOP switch stopped is cancelled. So
is requeued one that got a TERM for which there is no reason: Slurm sends again, after a minute, what a failed node did
not take, and so kills the next start of the job on it. An unfinished job never exits 0, which would read COMPLETED. The
controller may be down: it is asked until it answers.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from experiments.run import EndKind, Run

log = logging.getLogger(__name__)

Fate = Literal["requeue", "cancel", "leave", "wait"]
WAIT_TO_BE_KILLED_S = 3600.0
"""How long a job at most stays around once its work is saved: until the controller answers, and kills it."""
SURE_S = 2.0
"""How long a TERM may wait for its reason to show."""
REFUSALS = 3
"""Times that the controller may refuse what is asked of it before nothing more is asked."""
COMMAND_TIMEOUT_S = 30.0
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
_AT_WORK = frozenset(("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"))
_NO_SUCH_JOB = "Invalid job id"


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the controller says of a job."""

    state: str
    """RUNNING, COMPLETING and so on; "" where the job is not known any more."""
    reason: str = "None"
    preempted: bool = False
    """Whether a preemption has begun of which the grace time may still run."""

    @property
    def ending(self) -> bool:
        """Whether Slurm is ending the job already."""
        return self.state not in _AT_WORK

    @property
    def timed_out(self) -> bool:
        """Whether its time is over; Slurm requeues no job for that."""
        return self.ending and self.reason == "TimeLimit"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one of Slurm's commands said."""

    done: bool
    words: str


Ask = Callable[[list[str]], Answer]


def ask_slurm(command: list[str]) -> Answer:
    """Run one of Slurm's commands."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(done=False, words=str(error))
    done = answer.returncode == 0
    return Answer(done=done, words=answer.stdout if done else answer.stderr.strip())


def decide(job: JobFacts, *, told: bool, stop_requested: bool) -> Fate:
    """Decide what becomes of a job whose work is saved.

    told: by USR2, of a preemption or the end of its time; stop_requested: the STOP switch is there.
    """
    if job.ending:
        return "requeue" if job.timed_out and not stop_requested else "leave"
    if stop_requested:
        return "cancel"
    return "requeue" if told or job.preempted else "wait"


def end_kind(outcome: EndKind, job: JobFacts | None) -> EndKind:
    """Return how an attempt ended: what the signal meant, as far as the controller could be asked.

    USR2 comes before a preemption and before the time limit, TERM from scancel and in a preemption without notice.
    """
    if job is None or outcome not in ("preempted", "stopped"):
        return outcome
    if job.timed_out:
        return "timeout"
    if job.preempted and not job.ending:
        return "preempted"
    return "timeout" if outcome == "preempted" and not job.ending else outcome


def job_name() -> str | None:
    """Return what the controller calls this process's job; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # The number of an array is one of its tasks' job id too; alone it would mean all of them.
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def job_facts(ask: Ask = ask_slurm) -> JobFacts | None:
    """Return what the controller says of this job; None outside Slurm and where it does not answer."""
    name = job_name()
    return None if name is None else parse_facts(ask(["scontrol", "--oneliner", "show", "job", name]))


def parse_facts(answer: Answer) -> JobFacts | None:
    """Return what `scontrol show job` says; None where the controller did not answer."""
    if not answer.done:
        return JobFacts(state="") if _NO_SUCH_JOB in answer.words else None

    def value(name: str) -> str:
        match = re.search(rf"\b{name}=(\S+)", answer.words)
        return match[1] if match else "None"

    preempted = value("PreemptTime") not in ("None", "N/A", "Unknown", "(null)")
    return JobFacts(state=value("JobState"), reason=value("Reason"), preempted=preempted)


def leave(run: Run, job: JobFacts | None, *, told: bool) -> int:
    """Settle what becomes of this process's Slurm job; return the exit code: 0 outside Slurm, else 1.

    job: what rank 0 heard of it, on all ranks the same; told: whether all was saved because of a USR2. May take as long
    as the controller is down; the ranks but 0 wait to be ended with it.
    """
    name = job_name()
    if name is None:
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if job is not None and job.ending and not job.timed_out:
        return 1  # all ranks at once: those that wait would keep the nodes until they are killed
    if os.environ.get("SLURM_PROCID", "0") != "0":
        time.sleep(WAIT_TO_BE_KILLED_S)
        return 1
    settle(name, run.stop_requested, told=told)
    return 1


def settle(
    name: str,
    stop_requested: Callable[[], bool],
    *,
    told: bool,
    ask: Ask = ask_slurm,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask for what is due; return when nothing more is to be done or waited for.

    A requeue or cancellation that was accepted ends this process while it sleeps.
    """
    slept_s, refusals = 0.0, 0
    for pause_s in _pauses():
        job = parse_facts(ask(["scontrol", "--oneliner", "show", "job", name]))
        if job is None:
            log.warning("Slurm's controller does not answer; the work is saved; asking again in %g s", pause_s)
        else:
            fate = decide(job, told=told, stop_requested=stop_requested())
            if fate == "leave":
                return
            if fate == "wait" and slept_s >= SURE_S:
                log.warning("a TERM came for which Slurm knows no reason")
                fate = "requeue"
            if fate in ("requeue", "cancel"):
                answer = ask(["scontrol", "requeue", name] if fate == "requeue" else ["scancel", name])
                refusals += not answer.done
                if answer.done:
                    log.info("asked Slurm to %s job %s", fate, name)
                    pause_s = max(pause_s, _PAUSES_S[-1])
                elif refusals == REFUSALS:
                    log.error(
                        "Slurm refuses to %s job %s (%s); the work is saved, the same launch command goes on",
                        fate, name, answer.words,
                    )  # fmt: skip
                    return
                else:
                    log.warning("scontrol %s %s: %s; trying again in %g s", fate, name, answer.words, pause_s)
        if slept_s >= WAIT_TO_BE_KILLED_S:
            log.error("job %s could not be settled with Slurm; the same launch command goes on", name)
            return
        sleep(pause_s)
        slept_s += pause_s


def _pauses() -> Iterator[float]:
    return itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1]))
