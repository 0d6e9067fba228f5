"""Submitting: the only module that imports submitit.

submitit writes the sbatch text and calls sbatch, and starts the supervisor of a run on this machine. Its requeueing is
not used (see `slurm/attempt.py`), nor its idea of a job's state (see `slurm/job_state.py`), nor on Slurm its pickles: a
job's command line says what it runs, `python -m slurm.job RUN INTENT`, from a copy of the code.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from slurm import job_state, local
from slurm.placement import Placement

LOCAL_TIME_LIMIT_MIN = 60 * 24 * 30
SUBMISSION_INTERVAL_S = 0.25
"""Least time between two calls of sbatch by one launcher: a chain or a sweep must not storm the controller."""
PATIENCE_S = 300.0
"""How long a launcher goes on trying where the controller does not answer."""
_PAUSES_S = (2, 5, 10, 20, 30)
_TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (?:refused|reset|timed out)|zero bytes were "
    r"transmitted|temporarily unable|try again|slurm backup controller|unexpected message|communication connection "
    r"failure|resource temporarily unavailable",
    re.IGNORECASE,
)
"""What sbatch says where the same call may succeed a little later."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be submitted: one intent of one run."""

    run_folder: Path
    name: str
    """Job name; with the comment it finds a submission whose answer was lost."""
    intent: int
    training: bool
    placement: Placement
    code: Path
    """Copy of the code that the job runs."""
    groups: int = 1
    """Array groups; 1 for a training."""
    parallel: int = 0
    """Groups that may run at once; 0 for no limit."""
    dependency: str = ""
    """Slurm dependency: `afterany:4711:4712`; "" for none."""
    module: str = "slurm.job"
    """What Python runs, with run folder, intent and first group as arguments."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a submission."""

    record: dict[str, Any]
    """The job record: of Slurm the ids of all arrays, of this machine the supervisor's process."""
    groups: int
    """Groups that were submitted, the first ones of the intent's."""
    refused: str = ""
    """Slurm's words where it took some arrays and refused the next."""


def submit(
    work: Work, *, on_job: Callable[[dict[str, Any]], None], say: Callable[[str], None] = lambda _: None
) -> Submission:
    """Submit what an intent asks for.

    on_job: takes the job record as soon as there is one and whenever it grows, so that what is submitted is never lost;
    say: told why it takes long. Raises ValueError with sbatch's words where Slurm refuses the job, or does not answer
    for five minutes, and nothing was submitted.
    """
    if work.placement.resolved_cluster() == "slurm":
        return _submit_arrays(work, on_job, say)
    executor = submitit.AutoExecutor(work.run_folder / "logs", cluster="local")
    executor.update_parameters(timeout_min=LOCAL_TIME_LIMIT_MIN, name=work.name, stderr_to_stdout=True)
    # The job outlives the terminal: a Ctrl-C or hang-up is for the launcher, which asks the run to stop.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    # The supervisor and its ranks import the copy of the code, not what stands in the working folder by then.
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(work.code), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        submitted = executor.submit(local.supervise, str(work.run_folder), work.intent, visible)
    finally:
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            os.environ.pop(name)
            if name in environment:
                os.environ[name] = environment[name]
        for number, handler in previous.items():
            signal.signal(number, handler)
    record = local.process_record(int(submitted.job_id))
    on_job(record)
    return Submission(record=record, groups=work.groups)


def _submit_arrays(work: Work, on_job: Callable[[dict[str, Any]], None], say: Callable[[str], None]) -> Submission:
    shares = split(work.groups, job_state.max_array_size() if work.groups > 1 else 1)
    cluster = job_state.cluster_name()
    ids: list[str] = []
    first = 0
    for number, size in enumerate(shares):
        try:
            ids.append(_sbatch(work, first, size, _throttle(work.parallel, number, shares), say))
        except (FailedJobError, FailedSubmissionError) as error:
            words = str(error).strip()
            if ids:
                return Submission(record=_slurm_record(ids, cluster), groups=first, refused=words)
            fewer = " (or ask for fewer jobs: --tasks)" if work.groups > 1 else ""
            raise ValueError(f"sbatch refused the job: {words}; mend it{fewer}, then run the same command") from error
        on_job(_slurm_record(ids, cluster))
        first += size
    return Submission(record=_slurm_record(ids, cluster), groups=work.groups)


_last_submission_s = 0.0


def _sbatch(work: Work, first: int, size: int, at_once: int, say: Callable[[str], None]) -> str:
    """Submit one array, or one job where `size` is 1 and it is the only one; return its id.

    Where the controller does not answer it is tried again for a while; whether an earlier try came through after all is
    looked up first. Raises FailedJobError with sbatch's words.
    """
    global _last_submission_s
    comment = job_state.comment(work.intent, first)
    deadline_s = time.monotonic() + PATIENCE_S
    tries = 0
    while True:
        time.sleep(max(0.0, _last_submission_s + SUBMISSION_INTERVAL_S - time.monotonic()))
        _last_submission_s = time.monotonic()
        try:
            executor = _executor(work, first, size, at_once)
            executor.folder.mkdir(exist_ok=True)
            return executor._submit_command(_command(work, first)).job_id
        except FailedJobError as error:
            words = str(error).strip()
            pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
            if not _TRANSIENT.search(words) or time.monotonic() + pause_s > deadline_s:
                raise
            last_line = words.splitlines()[-1]
            say(f"Slurm's controller does not take jobs ({last_line}); trying again in {pause_s} s. Ctrl-C gives up")
            tries += 1
            time.sleep(pause_s)
            if found := job_state.submitted(work.name, comment):
                return found[0]


def _slurm_record(ids: list[str], cluster: str | None) -> dict[str, Any]:
    return {"executor": "slurm", "ids": list(ids), "cluster": cluster}


def split(groups: int, max_array_size: int) -> list[int]:
    """Return the sizes of as few arrays as hold `groups`, none above `max_array_size`, equal but for one."""
    arrays = -(-groups // max_array_size)
    return [groups // arrays + (number < groups % arrays) for number in range(arrays)]


def _throttle(parallel: int, number: int, shares: list[int]) -> int:
    """Jobs of array `number` that may run at once: its share of `parallel`, and at least one."""
    if not parallel:
        return shares[number]
    return max(1, parallel // len(shares) + (number < parallel % len(shares)))


def sbatch_text(work: Work) -> str:
    """Return the (first) sbatch file that `submit` would hand to Slurm, for `--dry-run`."""
    shares = split(work.groups, job_state.max_array_size() if work.groups > 1 else 1)
    executor = _executor(work, 0, shares[0], _throttle(work.parallel, 0, shares))
    return executor._make_submission_file_text(_command(work, 0), "dry-run")


def _command(work: Work, first: int) -> str:
    python = work.placement.python or shlex.quote(sys.executable)
    arguments = shlex.join([str(work.run_folder), str(work.intent), str(first)])
    # A signal that arrives before Python can take note of it must not kill: the job would count as failed.
    return f"env --ignore-signal=USR2,TERM {python} -u -m {work.module} {arguments}"


def _executor(work: Work, first: int, size: int, at_once: int) -> submitit.SlurmExecutor:
    """Return submitit's executor with the parameters of one array."""
    placement, training = work.placement, work.training
    executor = submitit.SlurmExecutor(work.run_folder / "logs")
    more: dict[str, Any] = {"requeue": True}
    ranks = placement.ranks if training else 1
    per_node: dict[str, Any] = {"ntasks_per_node": ranks, "cpus_per_task": placement.cpus_per_rank}
    if training and placement.min_nodes is not None and placement.min_nodes < placement.nodes:
        more["nodes"] = f"{placement.min_nodes}-{placement.nodes}"
        # Told of tasks, Slurm gives the fewest nodes that hold them; told of one large one a node, as many as it has.
        per_node = {"cpus_per_task": ranks * placement.cpus_per_rank}
    if training and not work.dependency:
        # Should one intent ever become two jobs, the second waits for the first and finds nothing left to do.
        more["dependency"] = "singleton"
    elif work.dependency:
        more["dependency"] = work.dependency
    for option in placement.sbatch:
        key, equals, value = option.partition("=")
        more[key] = value if equals else True
    given = {
        "partition": placement.partition,
        "account": placement.account,
        "qos": placement.qos,
        "constraint": placement.constraint,
        "exclude": placement.exclude,
        "gpus_per_node": placement.gpus_per_node or None,
        "mem": f"{placement.mem_gb}GB" if placement.mem_gb else None,
    }
    executor.update_parameters(
        job_name=work.name,
        comment=job_state.comment(work.intent, first),
        time=placement.time_min,
        nodes=placement.nodes if training else 1,
        stderr_to_stdout=True,
        signal_delay_s=placement.signal_lead_s,
        setup=_setup(work),
        srun_args=[
            # Without it rank 0 runs on, and hangs, when another rank dies.
            "--kill-on-bad-exit=1",
            # Since Slurm 22.05 srun does not take a job's CPUs for its own: a rank would be bound to one.
            f"--cpus-per-task={placement.cpus_per_rank}",
            f"--ntasks-per-node={ranks}",
        ],
        array_parallelism=at_once,
        additional_parameters=more,
        **per_node,
        **{name: value for name, value in given.items() if value is not None},
    )
    if work.groups > 1:
        executor.parameters["map_count"] = size
    return executor


def _setup(work: Work) -> list[str]:
    """Lines of shell before the ranks start."""
    placement = work.placement
    lines = [
        f"export PYTHONPATH={shlex.quote(str(work.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # The working folder is where the launcher stood: the repository, which may have changed since.
        "export PYTHONSAFEPATH=1",
        *placement.setup,
    ]
    if placement.scratch:
        # Not quoted: it may name variables of the job. Each node makes it for itself.
        lines += [f'export TMPDIR="{placement.scratch}"']
    if placement.interface:
        lines += [f"export {name}_SOCKET_IFNAME={shlex.quote(placement.interface)}" for name in ("NCCL", "GLOO")]
    for variable in placement.env:
        name, _, value = variable.partition("=")
        lines.append(f"export {name}={shlex.quote(value)}")
    return lines
