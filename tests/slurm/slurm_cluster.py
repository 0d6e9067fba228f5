"""A real Slurm cluster of several nodes on this machine, as the tests use it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import REPOSITORY

SANDBOX = REPOSITORY / "tools/slurm_sandbox"


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

    def _ask(self, command: list[str]) -> str:
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, f"{' '.join(command)}:\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout


def started(*options: str) -> Iterator[Cluster]:
    """Start a sandbox in a folder with a short path, as Unix sockets need, and stop it; skips where it cannot be made."""
    lacking = [p for p in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd") if not _there(p)]
    if lacking or os.getuid() != 0:
        pytest.skip(f"a Slurm sandbox needs root and {', '.join(lacking) or 'nothing else'}; see tools/slurm_sandbox")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        cluster = Cluster(folder=Path(folder) / "s")
        cluster.sandbox("start", *options)
        try:
            yield cluster
        finally:
            cluster.sandbox("stop")


def _there(program: str) -> bool:
    return any(Path(place, program).exists() for place in ("/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin"))
