"""Submitting: the only module that imports submitit.

submitit writes the sbatch text, arrays, logs and local processes. Its requeueing is not used (see `slurm/job.py`), nor
is its idea of a job's state (see `slurm/job_state.py`). What a job runs is always `slurm.job.main` by name.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError

from slurm import job, job_state, local

REPOSITORY = Path(__file__).resolve().parents[1]
LOCAL_TIME_LIMIT_MIN = 60 * 24 * 30


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job runs. Never part of a run's identity."""

    cluster: Literal["auto", "slurm", "local"] = "auto"
    """Executor; auto takes Slurm where `sbatch` is found and a cluster is configured, and this machine otherwise."""
    nodes: int = 1
    """Nodes of a training job; 1 or more."""
    ranks_per_node: int = 1
    """Training processes a node (one a GPU); 1 or more."""
    gpus_per_node: int = 0
    """GPUs asked of Slurm for each node; 0 or more."""
    cpus_per_rank: int = 2
    """CPUs asked of Slurm for each rank; 1 or more."""
    mem_gb: int = 0
    """Memory asked of Slurm for each node in GB; 0 leaves it to the cluster."""
    time_min: int = 24 * 60
    """Time limit of a Slurm job in minutes; the run goes on in the next job."""
    signal_lead_s: int = 120
    """Seconds between Slurm's warning and the end of a job; at least twice the time of a checkpoint."""
    partition: str | None = None
    """Slurm partition."""
    account: str | None = None
    """Slurm account."""

    def __post_init__(self) -> None:
        least = {"nodes": 1, "ranks_per_node": 1, "cpus_per_rank": 1, "time_min": 1}
        least |= {"gpus_per_node": 0, "mem_gb": 0, "signal_lead_s": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be {value} or more")
        if self.resolved_cluster() == "local" and self.nodes > 1:
            lacking = "this is --cluster local" if self.cluster == "local" else job_state.no_slurm()
            raise ValueError(f"--nodes {self.nodes} needs Slurm, and {lacking}; use --nodes 1")

    @property
    def world_size(self) -> int:
        """Ranks of a training job."""
        return self.nodes * self.ranks_per_node

    def resolved_cluster(self) -> Literal["slurm", "local"]:
        """Executor that `auto` stands for on this machine."""
        if self.cluster != "auto":
            return self.cluster
        return "local" if job_state.no_slurm() else "slurm"


def _slurm_executor(folder: Path, name: str, placement: Placement, *, training: bool) -> submitit.AutoExecutor:
    # A USR2 that arrives while imports run must not kill Python: it starts with the signal ignored.
    python = f"env --ignore-signal=USR2 {shlex.quote(sys.executable)}"
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_python=python)
    more: dict[str, Any] = {"requeue": True}
    executor.update_parameters(
        name=name,
        timeout_min=placement.time_min,
        nodes=placement.nodes if training else 1,
        tasks_per_node=placement.ranks_per_node if training else 1,
        cpus_per_task=placement.cpus_per_rank,
        stderr_to_stdout=True,
        slurm_signal_delay_s=placement.signal_lead_s,
        slurm_setup=[f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}"],
        # Without it rank 0 runs on, and hangs, when another rank dies.
        slurm_srun_args=["--kill-on-bad-exit=1"],
        slurm_additional_parameters=more,
        **({"gpus_per_node": placement.gpus_per_node} if placement.gpus_per_node else {}),
        **({"mem_gb": placement.mem_gb} if placement.mem_gb else {}),
        **({"slurm_partition": placement.partition} if placement.partition else {}),
        **({"slurm_account": placement.account} if placement.account else {}),
    )
    return executor


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
    run_folder: Path,
    name: str,
    intent: int,
    groups: int,
    placement: Placement,
    *,
    training: bool,
    parallel: int = 0,
    on_job: Callable[[dict[str, Any]], None],
) -> Submission:
    """Submit what an intent asks for.

    groups: array groups (1 for training); parallel: groups that may run at once, 0 for no limit; on_job: takes the job
    record as soon as there is one and whenever it grows, so that what is submitted is never lost. Raises ValueError
    with sbatch's words where Slurm refuses the job and nothing was submitted.
    """
    logs = run_folder / "logs"
    if placement.resolved_cluster() == "slurm":
        return _submit_arrays(run_folder, name, intent, groups, placement, training, parallel, on_job)
    executor = submitit.AutoExecutor(logs, cluster="local")
    executor.update_parameters(timeout_min=LOCAL_TIME_LIMIT_MIN, name=name, stderr_to_stdout=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    # The job outlives the terminal: a Ctrl-C or hang-up is for the launcher, which asks the run to stop.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        submitted = executor.submit(local.supervise, str(run_folder), intent, os.environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    record = local.process_record(int(submitted.job_id))
    on_job(record)
    return Submission(record=record, groups=groups)


def _submit_arrays(
    run_folder: Path,
    name: str,
    intent: int,
    groups: int,
    placement: Placement,
    training: bool,
    parallel: int,
    on_job: Callable[[dict[str, Any]], None],
) -> Submission:
    shares = split(groups, job_state.max_array_size() if groups > 1 else 1)
    ids: list[str] = []
    first = 0
    for number, size in enumerate(shares):
        executor = _slurm_executor(run_folder / "logs", name, placement, training=training)
        executor.update_parameters(slurm_array_parallelism=_throttle(parallel, number, shares))
        mine = range(first, first + size)
        try:
            jobs = executor.map_array(job.main, [str(run_folder)] * size, [intent] * size, mine)
        except FailedJobError as error:
            words = str(error).strip()
            if ids:
                return Submission(record=_slurm_record(ids), groups=first, refused=words)
            fewer = " (or ask for fewer jobs: --tasks)" if groups > 1 else ""
            raise ValueError(f"sbatch refused the job: {words}; mend it{fewer}, then run the same command") from error
        ids.append(jobs[0].job_id.split("_")[0])
        on_job(_slurm_record(ids))
        first += size
    return Submission(record=_slurm_record(ids), groups=groups)


def _slurm_record(ids: list[str]) -> dict[str, Any]:
    return {"executor": "slurm", "ids": list(ids)}


def split(groups: int, max_array_size: int) -> list[int]:
    """Return the sizes of as few arrays as hold `groups`, none above `max_array_size`, equal but for one."""
    arrays = -(-groups // max_array_size)
    return [groups // arrays + (number < groups % arrays) for number in range(arrays)]


def _throttle(parallel: int, number: int, shares: list[int]) -> int:
    """Jobs of array `number` that may run at once: its share of `parallel`, and at least one."""
    if not parallel:
        return shares[number]
    return max(1, parallel // len(shares) + (number < parallel % len(shares)))


def sbatch_text(
    run_folder: Path, name: str, placement: Placement, *, training: bool, groups: int = 1, parallel: int = 0
) -> str:
    """Return the (first) sbatch file that `submit` would hand to Slurm, for `--dry-run`."""
    executor = _slurm_executor(run_folder / "logs", name, placement, training=training)._executor
    if groups > 1:
        shares = split(groups, job_state.max_array_size())
        executor.update_parameters(array_parallelism=_throttle(parallel, 0, shares))
        executor.parameters["map_count"] = shares[0]
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
