"""Where a job runs: nodes, ranks, limits, and what a cluster wants of every job. Never part of a run's identity.

Its defaults come from a cluster's profile (`slurm/clusters`); the command line changes any of them for one launch.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from experiments import secret_words
from slurm import job_state

OURS = {
    "array": "--tasks and --parallel", "chdir": "nothing", "comment": "nothing: a lost submission is found by it",
    "dependency": "--after", "error": "nothing: logs lie in the run folder", "export": "--env",
    "input": "nothing", "job-name": "nothing: a lost submission is found by it", "nodes": "--nodes, --min-nodes",
    "ntasks": "--ranks-per-node", "ntasks-per-node": "--ranks-per-node", "no-requeue": "nothing",
    "open-mode": "nothing", "output": "nothing: logs lie in the run folder", "requeue": "nothing",
    "signal": "--signal-lead-s",
    "test-only": "--dry-run", "wrap": "nothing",
}  # fmt: skip
"""Options of sbatch that the suite sets itself, and what to use instead."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")


def _in_job_script(what: str) -> ValueError:
    return ValueError(
        f"{what}: this would stand in the job script; export it in the shell that launches, Slurm hands its "
        "environment on, or have a line of --setup read it: export NAME=$(cat FILE)"
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a job runs. Never part of a run's identity."""

    cluster: str = "auto"
    """slurm, local (this machine), or a profile of slurm/clusters. auto takes Slurm where `sbatch` is found and a
    cluster is configured, with the profile that names this host if there is one, and this machine otherwise."""
    nodes: int = 1
    """Nodes of a training job; 1 or more."""
    min_nodes: int | None = None
    """Fewest nodes a training starts on, at most --nodes; None: just --nodes. It goes on with as many ranks of what
    Slurm gives as share the batch."""
    ranks_per_node: int | None = None
    """Training processes a node; 1 or more. None: one for each of --gpus-per-node, one where there is none."""
    gpus_per_node: int = 0
    """GPUs asked of Slurm for each node; 0 or more."""
    cpus_per_rank: int = 2
    """CPUs asked of Slurm for each rank, its loader processes included; 1 or more."""
    mem_gb: int = 0
    """Memory asked of Slurm for each node in GB; 0 leaves it to the cluster."""
    time_min: int = 24 * 60
    """Time limit of a Slurm job in minutes; the run goes on in the next job."""
    signal_lead_s: int = 120
    """Seconds between Slurm's warning and the end of a job; at least twice the time of a checkpoint."""
    partition: str | None = None
    """Slurm partition, or several with commas."""
    account: str | None = None
    """Slurm account."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Features that nodes must have, as sbatch takes them: `a100&ib`."""
    exclude: str | None = None
    """Nodes to stay away from: `node[3,7]`. `tools/runs.py why` names those that fail again and again."""
    scratch: str | None = None
    """Folder on each node's own disk for compile caches and temporary files, shell variables allowed:
    `/scratch/$SLURM_JOB_ID`. None: the node's TMPDIR, or /tmp."""
    interface: str | None = None
    """Network interface over which ranks meet and NCCL or gloo talk (`ib0`, `eth0`); None lets them choose. NCCL still
    takes InfiniBand where it finds it; `--env NCCL_IB_DISABLE=1` forbids it."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on the first node before the ranks start: `module load cuda/12.4`, `source ...`."""
    env: tuple[str, ...] = ()
    """Variables of the job, NAME=VALUE. Not for secrets: they would stand in the job script; what the launcher has in
    its own environment reaches the job anyway."""
    python: str | None = None
    """Command that starts Python on a node, a container's included: `apptainer exec --nv /images/t2v.sif python`. None:
    the Python that launches."""
    sbatch: tuple[str, ...] = ()
    """Any further options of sbatch, KEY=VALUE or KEY: `--sbatch gres=gpu:a100:4 exclusive`."""
    notify: tuple[str, ...] = ()
    """Whom to tell when the run is done, is poisoned or hangs: mail addresses, and `webhook` for the URL in
    DALLE2_VIDEO_WEBHOOK or ~/.config/dalle2_video/webhook."""

    def __post_init__(self) -> None:
        least = {"nodes": 1, "min_nodes": 1, "ranks_per_node": 1, "cpus_per_rank": 1, "time_min": 1}
        least |= {"gpus_per_node": 0, "mem_gb": 0, "signal_lead_s": 0}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ValueError(f"--{name.replace('_', '-')} {given} must be {value} or more")
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"--min-nodes {self.min_nodes} must be at most --nodes {self.nodes}")
        if self.resolved_cluster() == "local" and self.nodes > 1:
            lacking = "this is --cluster local" if self.cluster == "local" else job_state.no_slurm()
            raise ValueError(f"--nodes {self.nodes} needs Slurm, and {lacking}; use --nodes 1")
        for option in self.sbatch:
            key = option.partition("=")[0]
            if not _OPTION.fullmatch(key):
                raise ValueError(f"--sbatch {option!r}: write KEY=VALUE or KEY, without dashes in front: exclusive")
            if key in OURS:
                raise ValueError(f"--sbatch {option}: {key} is set by the suite; use {OURS[key]}")
        for variable in self.env:
            name, equals, _ = variable.partition("=")
            if not equals or not _NAME.fullmatch(name):
                raise ValueError(f"--env {variable!r}: write NAME=VALUE")
            if secret_words.NAMES.search(name):
                raise _in_job_script(f"--env {name}=...")
        self._check_texts()

    def _check_texts(self) -> None:
        """Raise ValueError for what would break out of its line of the job script, or should not stand there."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = f"--{field.name.replace('_', '-')}"
            for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                if field.name != "setup" and not text.isprintable():
                    raise ValueError(f"{option} {text!a}: a control character, or no UTF-8; write one line of text")
                if secret_words.holds_secret(text):
                    raise _in_job_script(f"{option} ...")
        if self.scratch and re.search(r"[\"`;|&<>]|\$\(", self.scratch):
            raise ValueError(f"--scratch {self.scratch!r}: a path with shell variables, without commands or quotes")

    @property
    def ranks(self) -> int:
        """Ranks of a training on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Ranks of a training job on all its nodes."""
        return self.nodes * self.ranks

    def resolved_cluster(self) -> Literal["slurm", "local"]:
        """Executor that `cluster` stands for on this machine."""
        if self.cluster == "local":
            return "local"
        if self.cluster == "auto":
            return "local" if job_state.no_slurm() else "slurm"
        return "slurm"
