"""A real Slurm cluster of several nodes on this machine, as the tests use it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import REPOSITORY

SANDBOX = REPOSITORY / "tools/slurm_sandbox"
RANK = r"^\S*python\S* -u -m slurm[.]job"
"""Command line of a rank or an array group; srun's has the same words in it, further on."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running sandbox."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        conf = {"DALLE2_SANDBOX_DIR": str(self.folder), "SLURM_CONF": str(self.folder / "etc/slurm.conf")}
        return os.environ | conf

    def sandbox(self, *arguments: str) -> str:
        """Give tools/slurm_sandbox a command."""
        return self._ask([str(SANDBOX), *arguments])

    def slurm(self, *command: str) -> str:
        """Return what one of Slurm's commands prints."""
        return self._ask(list(command))

    def try_slurm(self, *command: str) -> str | None:
        """Return the same, None where the controller does not answer."""
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        return answer.stdout if answer.returncode == 0 else None

    def signal_ranks(self, node: int, signal: str) -> int:
        """Send a signal to all ranks and array groups on a node; return how many there are."""
        found = self.try_slurm(str(SANDBOX), "in", str(node), "pgrep", "-f", RANK)
        if not found:
            return 0
        self.try_slurm(str(SANDBOX), "in", str(node), "pkill", f"-{signal}", "-f", RANK)
        return len(found.split())

    def idle(self) -> list[str]:
        """Names of the nodes that nothing runs on."""
        options = ["--noheader", "--Node", "--partition=low", "--states=idle", "--format=%N"]
        return sorted(set(self.slurm("sinfo", *options).split()))

    def preempt(self, nodes: int = 3) -> None:
        """Submit a job that takes so many whole nodes away for a moment."""
        self.slurm(
            "sbatch", "--partition=high", f"--nodes={nodes}", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.5"
        )

    def _ask(self, command: list[str]) -> str:
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, f"{' '.join(command)}:\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout


def until(condition: Callable[[], object], what: str, folder: Path) -> None:
    """Wait for a condition; fails with the logs below a folder after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in folder.rglob("logs/*.out"))
            pytest.fail(f"waited in vain until {what}\n{logs}")
        time.sleep(0.02)


def started(*options: str) -> Iterator[Cluster]:
    """Start a sandbox in a folder with a short path, as Unix sockets need, and stop it; skips where it cannot be."""
    lacking = [p for p in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd") if not _there(p)]
    if os.getuid() != 0:
        pytest.skip("a Slurm sandbox needs root")
    if lacking:
        pytest.skip(f"a Slurm sandbox needs {', '.join(lacking)}: tools/slurm_sandbox install")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)  # its configuration is for every user
        cluster = Cluster(folder=Path(folder) / "s")
        cluster.sandbox("start", *options)
        try:
            yield cluster
        finally:
            cluster.sandbox("stop")


def _there(program: str) -> bool:
    return any(Path(place, program).exists() for place in ("/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin"))
