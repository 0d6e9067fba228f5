"""Submitting: the only module that imports submitit.

submitit writes the sbatch text, arrays, logs and local processes. Its requeueing is not used (see `slurm/job.py`), nor
is its idea of a job's state (see `slurm/job_state.py`). What a job runs is always `slurm.job.main` by name.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError

from slurm import job, local

REPOSITORY = Path(__file__).resolve().parents[1]
LOCAL_TIME_LIMIT_MIN = 60 * 24 * 30


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job runs. Never part of a run's identity."""

    cluster: Literal["auto", "slurm", "local"] = "auto"
    """Executor; auto takes Slurm where `sbatch` is found and this machine otherwise."""
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
            raise ValueError(f"--nodes {self.nodes} needs Slurm, and `sbatch` is not found; use --nodes 1")

    @property
    def world_size(self) -> int:
        """Ranks of a training job."""
        return self.nodes * self.ranks_per_node

    def resolved_cluster(self) -> Literal["slurm", "local"]:
        """Executor that `auto` stands for on this machine."""
        if self.cluster != "auto":
            return self.cluster
        return "slurm" if shutil.which("sbatch") else "local"


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


def submit(run_folder: Path, name: str, intent: int, groups: int, placement: Placement, *, training: bool) -> dict:
    """Submit what an intent asks for; return the job record.

    groups: array tasks (1 for training). Raises ValueError with sbatch's words where Slurm refuses the job.
    """
    logs = run_folder / "logs"
    if placement.resolved_cluster() == "slurm":
        executor = _slurm_executor(logs, name, placement, training=training)
        try:
            jobs = executor.map_array(job.main, [str(run_folder)] * groups, [intent] * groups, range(groups))
        except FailedJobError as error:
            raise ValueError(
                f"sbatch refused the job: {str(error).strip()}; mend it, then run the same command"
            ) from error
        return {"executor": "slurm", "id": jobs[0].job_id.split("_")[0]}
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
    return local.process_record(int(submitted.job_id))


def sbatch_text(run_folder: Path, name: str, placement: Placement, *, training: bool) -> str:
    """Return the sbatch file that `submit` would hand to Slurm, for `--dry-run`."""
    executor = _slurm_executor(run_folder / "logs", name, placement, training=training)._executor
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
