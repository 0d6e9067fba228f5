"""What Slurm says of jobs beyond alive or gone: why one waits, how one ended, on which nodes; in words for people.

One question to squeue and one to sacct for any number of jobs. Where a command is missing or fails the answer is None,
which is not the same as an answer that does not know a job. Text in, text out (`parse_*`) and two thin edges.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from experiments.run import Intent
from slurm import job_state

_WAITS = {
    "Priority": "others come first",
    "Resources": "it waits for nodes to become free",
    "Dependency": "it waits for another job to end",
    "DependencyNeverSatisfied": "the job it waits for can no longer end as it has to; cancel it and launch again",
    "JobHeldUser": "a user holds it; scontrol release {job} lets it go",
    "JobHeldAdmin": "an administrator holds it; ask them",
    "JobHoldMaxRequeue": "Slurm holds it, since it was requeued too often; a launch or runs.py heal submits it anew",
    "launch failed requeued held": "Slurm holds it, since a node could not start it; a launch or runs.py heal submits "
    "it anew",
    "BeginTime": "it may not start before a time that was set; after a requeue Slurm sets one a minute or two ahead",
    "JobArrayTaskLimit": "as many tasks of the array run as may at once (--parallel)",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "PartitionDown": "its partition is down",
    "PartitionTimeLimit": "it asks for more time than its partition gives: lower --time-min",
    "PartitionNodeLimit": "it asks for more nodes than its partition has: lower --nodes",
    "AssociationJobLimit": "its account runs as many jobs as it may",
    "QOSMaxJobsPerUserLimit": "you run as many jobs as this quality of service allows",
    "BadConstraints": "no node has what it asks for: see --constraint",
    "None": "Slurm has not looked at it yet",
}  # fmt: skip
_ENDS = {
    "CANCELLED": "it was cancelled",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it used more memory than it had: ask for more (--mem-gb) or take a smaller --micro-batch",
    "TIMEOUT": "its time limit was reached",
    "PREEMPTED": "it was preempted",
    "REQUEUED": "it was requeued",
    "FAILED": "it failed",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "its deadline had passed",
    "COMPLETED": "it ended by itself",
}


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job, or task of an array, in the queue."""

    job: str
    """Id without the array's index."""
    task: str
    """`4711` or `4711_3`; of waiting tasks in short form."""
    state: str
    reason: str
    restarts: int
    nodes: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One start of a job or of an array's task as accounting has it; a requeued job has one a start."""

    job: str
    task: str
    state: str
    """One word, such as CANCELLED."""
    cancelled_by: int | None
    """User id; None where it was not cancelled or nobody is named."""
    nodes: str
    exit_code: str

    @property
    def over(self) -> bool:
        """Whether this start is past, whatever became of the job."""
        return self.state in job_state.ENDED or self.state == "REQUEUED"


def queue(jobs: Collection[str]) -> list[Queued] | None:
    """Return what squeue lists of jobs; None where it does not answer, as also where it knows none of them."""
    fields = ("JobArrayID", "State", "Reason", "RestartCnt", "NodeList")
    answers = _ask(["squeue", "--noheader", f"--Format={','.join(f'{field}:|' for field in fields)}"], jobs)
    return None if answers is None else parse_queue(answers)


def history(jobs: Collection[str]) -> list[Ended] | None:
    """Return all starts of jobs in order as sacct has them; None where there is no accounting to ask."""
    # Without --duplicates only the last start of a requeued job is told.
    fields = "--format=JobID,State,NodeList,ExitCode"
    answers = _ask(["sacct", "--noheader", "--allocations", "--duplicates", "--parsable2", fields], jobs)
    return None if answers is None else parse_history(answers)


def _ask(command: list[str], jobs: Collection[str]) -> str | None:
    """Ask about many jobs in turns; None where no turn was answered."""
    ordered, most = sorted(jobs), job_state.JOBS_A_QUESTION
    turns = [ordered[first : first + most] for first in range(0, len(ordered), most)]
    answers = [job_state.ask([*command, f"--jobs={','.join(turn)}"]) for turn in turns]
    heard = [answer for answer in answers if answer is not None]
    return "\n".join(heard) if heard or not turns else None


def parse_queue(text: str) -> list[Queued]:
    """Read squeue's lines `4711_3|PENDING|Resources|0||`."""
    found = []
    for line in text.splitlines():
        cells = line.strip().split("|")
        if len(cells) >= 5:
            task, state, reason, restarts, nodes = cells[:5]
            found.append(
                Queued(
                    job=task.split("_")[0],
                    task=task,
                    state=state,
                    reason=reason.strip(),
                    restarts=int(restarts) if re.fullmatch(r"[0-9]{1,9}", restarts) else 0,
                    nodes=nodes,
                )
            )
    return found


def parse_history(text: str) -> list[Ended]:
    """Read sacct's lines `4711_3|CANCELLED by 1000|n1|0:15`."""
    found = []
    for line in text.splitlines():
        cells = line.strip().split("|")
        if len(cells) == 4 and cells[1].strip():
            task, state, nodes, code = cells
            by = re.search(r"\bby ([0-9]{1,10})\b", state)
            found.append(
                Ended(
                    job=task.split("_")[0],
                    task=task,
                    state=_whole(state.split()[0]),
                    cancelled_by=int(by[1]) if by else None,
                    nodes="" if nodes.startswith("None") else nodes,
                    exit_code=code,
                )
            )
    return found


def _whole(state: str) -> str:
    """Return a state's name where sacct has cut it: `OUT_OF_ME+`."""
    return next((name for name in _ENDS if state.endswith("+") and name.startswith(state[:-1])), state)


def wait_words(entry: Queued) -> str:
    """Return why a job waits."""
    # `ReqNodeNotAvail, UnavailableNodes:n7` and `(null)` are among what Slurm says.
    key = entry.reason.split(",")[0].split(":")[0]
    said = _WAITS.get(entry.reason) or _WAITS.get(key, "")
    return f"{entry.reason}{': ' + said.format(job=entry.task) if said else ''}"


def end_words(ended: Ended) -> str:
    """Return how a job ended."""
    said = _ENDS.get(ended.state, "it ended")
    if ended.cancelled_by is not None:
        said += f" by {user_name(ended.cancelled_by)}"
    where = f", on {ended.nodes}" if ended.nodes else ""
    code = f", exit code {ended.exit_code}" if ended.state == "FAILED" else ""
    return f"{said} ({ended.state}{code}{where})"


def user_name(uid: int) -> str:
    """Return a user's name, or number where there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"user {uid}"


def jobs_of(intent: Intent) -> list[str]:
    """Return the ids of the Slurm jobs of a launch; none where it has none."""
    return list(intent.job["ids"]) if intent.job is not None and intent.job["executor"] == "slurm" else []


def last_ends(starts: Sequence[Ended], job: str) -> list[Ended]:
    """Return how each task of a job (the job itself, where it is no array) ended at last; those that have not lack."""
    last = {one.task: one for one in starts if one.job == job}
    return [one for one in last.values() if one.over]


def of_start(starts: Sequence[Ended], task: str, restart: int) -> Ended | None:
    """Return one start of a job or array task, None where accounting does not hold it."""
    ours = [one for one in starts if one.task == task]
    return ours[restart] if restart < len(ours) else None
