"""Nothing that a user of a cluster does needs root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import NEEDED, REPOSITORY, TINY
from slurm_cluster import Cluster

from experiments.registry import Registry

USER = "nobody"
SAME_VERSION = f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}; import launch.submit"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that belongs to the user; pytest's own is root's alone."""
    with tempfile.TemporaryDirectory(prefix="user") as made:
        owner = pwd.getpwnam(USER)
        os.chown(made, owner.pw_uid, owner.pw_gid)
        yield Path(made)


def test_an_ordinary_user_preprocesses_and_trains(cluster: Cluster, folder: Path, sample_data: Path) -> None:
    owner = pwd.getpwnam(USER)
    home = folder / "home"
    # Not root's search path, which leads through folders of its own.
    theirs = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "USER": USER}
    environment = cluster.environment | theirs | {"DALLE2_VIDEO_HOME": str(home)}
    python = sys.executable

    def types(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["env", python, *command],
            cwd=REPOSITORY, env=environment, user=owner.pw_uid, group=owner.pw_gid, extra_groups=[],
            capture_output=True, text=True,
        )  # fmt: skip

    if types("-c", "import launch.submit").returncode:
        # A Python in root's home: the system's of the same version does with the same libraries.
        python, environment["PYTHONPATH"] = "/usr/bin/python3", sysconfig.get_path("purelib")
        if (refused := types("-c", SAME_VERSION)).returncode:
            pytest.skip(f"{USER} has no Python that can read the repository and its libraries: {refused.stderr}")
    data = shutil.copytree(sample_data, folder / "data")
    data.chmod(0o755)  # the mode came along, and pytest's folders are root's alone
    flags = {stage: [flag for part in NEEDED[stage] for flag in TINY[part]] for stage in ("preprocess", "clip")}
    for stage, more in (("preprocess", ["--data-root", str(data)]), ("clip", ["--nodes", "2", "--torch-threads", "1"])):
        answer = types(f"launch/{stage}.py", "--cluster", "sandbox", *flags[stage], *more)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        run = next(Registry(home).runs(stage))
        deadline = time.monotonic() + 90
        while not run.is_done():
            logs = "\n".join(path.read_text()[-2000:] for path in (run.folder / "logs").glob("*.out"))
            assert time.monotonic() < deadline, f"not done: {run.attempts()}\n{logs}"
            time.sleep(0.3)
    assert {path.owner() for path in home.rglob("*")} == {USER}
    assert "done" in types("tools/runs.py", "list").stdout
    assert types("tools/runs.py", "why", run.id).returncode == 0
