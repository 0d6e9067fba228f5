"""Where a job runs: what is refused before submission, profiles of clusters, and what sbatch is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slurm import clusters, executor, job_state
from slurm.placement import Placement


def placed(**fields: Any) -> Placement:
    return Placement(cluster="slurm", **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sbatch": ("array=1-4",)}, "--sbatch array=1-4: array is set by the suite; use --tasks and --parallel"),
        ({"sbatch": ("nodes=3",)}, "use --nodes, --min-nodes"),
        ({"sbatch": ("--exclusive",)}, "without dashes in front"),
        ({"env": ("NCCL_DEBUG",)}, "--env 'NCCL_DEBUG': write NAME=VALUE"),
        ({"env": ("WANDB_API_KEY=abc",)}, "--env WANDB_API_KEY=...: this would stand in the job script"),
        ({"nodes": 2, "min_nodes": 3}, "--min-nodes 3 must be at most --nodes 2"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        placed(**fields)
    assert words in str(caught.value)
    assert "abc" not in str(caught.value)  # no secret in a message


def test_a_node_has_a_rank_for_each_of_its_gpus_unless_told_otherwise() -> None:
    assert placed().ranks == 1
    assert placed(nodes=2, gpus_per_node=4).world_size == 8
    assert placed(nodes=2, gpus_per_node=4, ranks_per_node=2).world_size == 4


@pytest.mark.parametrize("name", clusters.names())
def test_every_profile_makes_a_placement_on_slurm(name: str) -> None:
    found = clusters.defaults(name)
    assert found.cluster == name and found.resolved_cluster() == "slurm"


def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"--cluster moon: no such profile.*auto, slurm, local, example, sandbox"):
        clusters.defaults("moon")


def test_a_profile_is_chosen_by_the_name_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = clusters._module("sandbox")
    monkeypatch.setattr(sandbox, "HOSTS", ("login*.box",))
    assert clusters.of_host("login3.box") == "sandbox"
    assert clusters.of_host("desktop") == ""
    monkeypatch.setattr(job_state, "no_slurm", lambda: "")
    monkeypatch.setattr("socket.gethostname", lambda: "login1.box")
    assert clusters.defaults("auto").cluster == "sandbox"
    monkeypatch.setattr(clusters._module("example"), "HOSTS", ("login1.*",))
    with pytest.raises(ValueError, match=r"profiles example, sandbox all name the host login1\.box; choose one"):
        clusters.of_host("login1.box")


def text(placement: Placement, tmp_path: Path, **fields: Any) -> str:
    work = {"training": True, "run_folder": tmp_path / "run", "name": "prior-abc.1234", "intent": 3}
    return executor.sbatch_text(executor.Work(**{**work, "placement": placement, "code": tmp_path / "code", **fields}))


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An srun on the path, which submitit wants to see."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("srun")
def test_sbatch_is_told_all_of_a_placement(tmp_path: Path) -> None:
    placement = placed(
        nodes=4, gpus_per_node=8, cpus_per_rank=12, mem_gb=960, partition="p", account="a", qos="q",
        constraint="a100&ib", exclude="n[3,7]", scratch="/scratch/$SLURM_JOB_ID", interface="ib0",
        setup=("module load cuda",), env=("NCCL_DEBUG=WARN it",), python="apptainer exec t2v.sif python",
        sbatch=("exclusive", "reservation=r"),
    )  # fmt: skip
    found = text(placement, tmp_path).splitlines()
    options = {line.removeprefix("#SBATCH ") for line in found if line.startswith("#SBATCH")}
    assert options >= {
        "--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12", "--mem=960GB", "--partition=p",
        "--account=a", "--qos=q", "--constraint='a100&ib'", "--exclude='n[3,7]'", "--exclusive", "--reservation=r",
        "--signal=USR2@120", "--requeue", "--dependency=singleton", "--comment=dalle2-video:3:0",
    }  # fmt: skip
    setup = found[found.index("# setup") : found.index("# command")]
    assert "module load cuda" in setup and 'export TMPDIR="/scratch/$SLURM_JOB_ID"' in setup
    assert "export NCCL_SOCKET_IFNAME=ib0" in setup and "export NCCL_DEBUG='WARN it'" in setup
    srun = next(line for line in found if line.startswith("srun"))
    assert "--kill-on-bad-exit=1 --cpus-per-task=12 --ntasks-per-node=8" in srun
    assert srun.endswith(
        f"env --ignore-signal=USR2,TERM apptainer exec t2v.sif python -u -m slurm.job {tmp_path / 'run'} 3 0"
    )


@pytest.mark.usefixtures("srun")
def test_an_elastic_training_asks_for_a_range_of_nodes_and_shares_each_out_itself(tmp_path: Path) -> None:
    found = text(placed(nodes=4, min_nodes=2, ranks_per_node=2, cpus_per_rank=3), tmp_path)
    assert "#SBATCH --nodes=2-4\n" in found and "#SBATCH --cpus-per-task=6\n" in found
    assert "SBATCH --ntasks-per-node" not in found and "--cpus-per-task=3 --ntasks-per-node=2" in found


@pytest.mark.usefixtures("srun")
def test_what_waits_for_a_parent_waits_for_nothing_else(tmp_path: Path) -> None:
    found = text(placed(), tmp_path, dependency="afterany:4711", module="slurm.planned_job")
    assert "#SBATCH --dependency=afterany:4711\n" in found and "-m slurm.planned_job" in found
