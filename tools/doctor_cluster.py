"""Checks of what a cluster offers: network interfaces, GPUs against what the profile asks for, cron for heal."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from slurm import clusters, job_state
from slurm.placement import Placement
from tools.doctor_finding import Finding, ok, problem, warning

NETWORK, INFINIBAND = Path("/sys/class/net"), Path("/sys/class/infiniband")
TIMEOUT_S = 30
HEAL_LOOP = "in tmux: while sleep 600; do python tools/runs.py heal; done"


def network() -> Finding:
    """List the interfaces over which ranks may meet, and see whether the profile's is among them."""
    found = {path.name: _speed(path) for path in sorted(NETWORK.iterdir()) if path.name != "lo" and _up(path)}
    listed = ", ".join(f"{name}{f' ({speed})' if speed else ''}" for name, speed in found.items()) or "none is up"
    fabric = sorted(path.name for path in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []
    says = listed + (f"; InfiniBand or RoCE: {', '.join(fabric)}" if fabric else "; no InfiniBand")
    wanted = clusters.defaults("auto").interface
    if wanted and wanted not in found:
        return warning(
            "network",
            f"{says}; the cluster's profile takes {wanted}, which is not up here",
            "look on a compute node too; if it is not there either, change `interface` in slurm/clusters",
        )
    return ok("network", f"{says}; ranks take {wanted or 'what NCCL and gloo choose (--interface NAME to choose)'}")


def _up(interface: Path) -> bool:
    try:
        return (interface / "operstate").read_text().strip() in ("up", "unknown")
    except OSError:
        return False


def _speed(interface: Path) -> str:
    try:
        speed = int((interface / "speed").read_text())
    except (OSError, ValueError):  # of a virtual interface nobody knows it
        return ""
    return f"{speed / 1000:g} Gb/s" if speed > 0 else ""


def profile() -> Finding:
    """Compare the GPUs that the cluster's profile asks for on a node with those of its partition's nodes."""
    if job_state.no_slurm():
        return ok("cluster profile", "none is needed: runs are started on this machine")
    asked = clusters.defaults("auto")
    if asked.cluster == "auto":
        return ok(
            "cluster profile",
            "none names this host: options come from the command line (a file in slurm/clusters saves typing them)",
        )
    partitions = ["--partition", asked.partition] if asked.partition else []
    answer = job_state.ask(["sinfo", "--noheader", "--format=%G", *partitions])
    if not answer:  # of a partition that is not there it says nothing, and succeeds
        return problem(
            "cluster profile",
            f"{asked.cluster}: sinfo knows no partition {asked.partition}, or does not answer",
            "see sinfo, and change `partition` in slurm/clusters",
        )
    return _gpus(asked, [gpus_in(line) for line in answer.splitlines()])


def _gpus(asked: Placement, there: list[int]) -> Finding:
    most, says = max(there, default=0), f"{asked.cluster}: {asked.gpus_per_node} GPUs a node"
    if asked.gpus_per_node > most:
        return problem(
            "cluster profile",
            f"{says}, and no node of partition {asked.partition or 'by default'} has more than {most}",
            "change `gpus_per_node` or `partition` in slurm/clusters",
        )
    if most > asked.gpus_per_node:
        return warning(
            "cluster profile",
            f"{says}, and nodes of partition {asked.partition or 'by default'} have up to {most}",
            "a training on whole nodes uses them all: change `gpus_per_node` in slurm/clusters, or --gpus-per-node",
        )
    return ok("cluster profile", f"{says}, as there are")


def gpus_in(gres: str) -> int:
    """Return the GPUs in sinfo's list of a node's resources: `gpu:a100:4(S:0-1),gpu:t4:2,nvme:1` → 6."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def heal_by_cron() -> Finding:
    """See what may call `tools/runs.py heal` every few minutes."""
    lacking = "neither scrontab nor crontab is here"
    for program in filter(shutil.which, ("scrontab", "crontab")):
        refused = _refused([program, "-l"])
        if refused is None:
            return ok("heal", f"{program} may call tools/runs.py heal (see its --help)")
        lacking = f"{program}: {refused}"
    return warning("heal", f"no cron to call tools/runs.py heal: {lacking}", HEAL_LOOP)


def _refused(command: list[str]) -> str | None:
    """Return why a user may not use it; None where they may, also with an empty table."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = answer.stderr.strip()
    return None if answer.returncode == 0 or "no crontab for" in said else said or "it is refused"


CHECKS: tuple[Callable[[], Finding], ...] = (network, profile, heal_by_cron)
