"""What happens on a cluster, done to a sandbox: one function a kind, which returns whether it could happen now.

None of them knows how the product is built. What breaks is mended some seconds later by `mend_what_is_due`.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

SANDBOX = Path(__file__).resolve().parents[1] / "slurm_sandbox"
NODES = 3
BROKEN_S = (1.0, 30.0)
"""How long a node is off or cut off; Slurm misses it after about ten."""
DOWN_S = (1.0, 20.0)
"""How long the controller is down."""
LOOK_AFTER_S = 10.0
"""Between two looks for nodes that Slurm gave up."""
COMMAND_S = 180
RANK = r"^\S*python\S* -u -m slurm[.]job"
"""Command line of a rank; srun's has the same words in it, further on."""


class Cluster:
    """A sandbox of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        conf = {"DALLE2_SANDBOX_DIR": str(folder), "SLURM_CONF": str(folder / "etc/slurm.conf")}
        self.environment = os.environ | conf
        self._due: list[tuple[float, tuple[str, ...]]] = []
        """Commands of the sandbox that mend what is broken, and when."""
        self._look_after_s = 0.0

    def start(self) -> None:
        """Start it."""
        self.sandbox("start", "--nodes", str(NODES))

    def stop(self) -> None:
        """End it and all that runs on it."""
        self.sandbox("stop")

    def sandbox(self, *arguments: str) -> None:
        """Give tools/slurm_sandbox a command. Raises CalledProcessError."""
        command = [str(SANDBOX), *arguments]
        subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_S, check=True)

    def ask(self, *command: str) -> str | None:
        """Return what one of Slurm's commands prints, None where it fails."""
        answer = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        return answer.stdout if answer.returncode == 0 else None

    def broken(self, what: str) -> bool:
        """Whether something of this name waits for being mended."""
        return any(command[-1] == what for _, command in self._due)

    def later(self, seconds: float, *command: str) -> None:
        """Mend something after so many seconds."""
        self._due.append((time.monotonic() + seconds, command))

    def mend_what_is_due(self) -> None:
        """Mend what was broken for as long as it was to be."""
        now_s = time.monotonic()
        due = [command for moment, command in self._due if moment <= now_s]
        self._due = [(moment, command) for moment, command in self._due if moment > now_s]
        for command in due:
            self.sandbox(*command)
        if now_s >= self._look_after_s:
            self._look_after_s = now_s + LOOK_AFTER_S
            self._resume_drained()

    def _resume_drained(self) -> None:
        """Do what an administrator does about nodes that Slurm gave up: a requeued job met its own orphan there."""
        drained = self.ask("sinfo", "--noheader", "--Node", "--partition=low", "--states=drain", "--format=%N") or ""
        for node in set(drained.split()):
            if not self.broken(node.removeprefix("n")):
                self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def mend_all(self) -> None:
        """Mend everything now."""
        self._due = [(0.0, command) for _, command in self._due]
        self.mend_what_is_due()


def preempt(cluster: Cluster, job: str, draw: Random) -> bool:
    """Take some whole nodes away for a moment."""
    seconds = draw.uniform(0.5, 5)
    command = ["sbatch", "--partition=high", f"--nodes={draw.randint(1, NODES)}", "--exclusive", "--output=/dev/null"]
    return cluster.ask(*command, f"--wrap=sleep {seconds:.1f}") is not None


def requeue(cluster: Cluster, job: str, draw: Random) -> bool:
    """Requeue a job as an administrator does."""
    return cluster.ask("scontrol", "requeue", job) is not None


def cancel(cluster: Cluster, job: str, draw: Random) -> bool:
    """Cancel a job; the next launch goes on."""
    return cluster.ask("scancel", job) is not None


def end_time(cluster: Cluster, job: str, draw: Random) -> bool:
    """Let a job's time run out."""
    return cluster.ask("scontrol", "update", f"JobId={job}", "EndTime=now+50") is not None


def kill(cluster: Cluster, job: str, draw: Random) -> bool:
    """Kill the processes of trainings on a node without a word; nobody but the next launch starts them again."""
    node = str(draw.randint(1, NODES))
    if cluster.broken(node):
        return False
    return cluster.ask(str(SANDBOX), "in", node, "pkill", "-KILL", "-f", RANK) is not None


def power(cluster: Cluster, job: str, draw: Random) -> bool:
    """Let a node lose its power for a while."""
    return _node(cluster, draw, "node-down", "node-up")


def network(cluster: Cluster, job: str, draw: Random) -> bool:
    """Cut a node's network for a while; its processes live on."""
    return _node(cluster, draw, "node-cut", "node-mend")


def _node(cluster: Cluster, draw: Random, breaks: str, mends: str) -> bool:
    node = str(draw.randint(1, NODES))
    # Two of three nodes are left, which is what a training needs.
    if any(cluster.broken(str(number)) for number in range(1, NODES + 1)):
        return False
    cluster.sandbox(breaks, node)
    cluster.later(draw.uniform(*BROKEN_S), mends, node)
    return True


def controller(cluster: Cluster, job: str, draw: Random) -> bool:
    """Kill the controller and start it again a while later."""
    if cluster.broken("ctld-up"):
        return False
    cluster.sandbox("ctld-down")
    cluster.later(draw.uniform(*DOWN_S), "ctld-up")
    return True


def daemon(cluster: Cluster, job: str, draw: Random) -> bool:
    """Kill and restart a node's daemon."""
    node = str(draw.randint(1, NODES))
    if cluster.broken(node):
        return False
    cluster.sandbox("slurmd-restart", node)
    return True


Mishap = Callable[[Cluster, str, Random], bool]
MISHAPS: dict[str, tuple[int, Mishap]] = {
    "preemption": (5, preempt),
    "scontrol requeue": (3, requeue),
    "scancel": (3, cancel),
    "time limit": (2, end_time),
    "processes killed": (2, kill),
    "power failure": (3, power),
    "network partition": (3, network),
    "slurmctld down": (2, controller),
    "slurmd restarted": (2, daemon),
}
"""How often each kind is drawn, relative to the others."""
