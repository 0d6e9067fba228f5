"""Fixtures of the whole suite: sample data, and one tiny trained chain a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import REPOSITORY, Chain
from report_registry import Made, make_registry
from xdist.scheduler import LoadScopeScheduling

SLURM = "tests/slurm/"


class ByFile(LoadScopeScheduling):
    """Where two processes share the suite, one runs all tests of a file, and one all on Slurm.

    So fixtures of files are made once, and no two clusters compete for the machine.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SLURM if file.startswith(SLURM) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Share out by file, whatever --dist says."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those on Slurm, which take the longest and mostly wait."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four captioned clips made by the tool that the demo uses."""
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, "tools/make_sample_data.py", "--out", str(folder), "--clips", "24", "--workers", "2"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def chain(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A home in which every stage but sampling is trained."""
    made = Chain(home=tmp_path_factory.mktemp("home"), data=sample_data)
    for stage in ("preprocess", "clip", "embed", "prior", "decoder", "temporal_sr"):
        made.run(stage)
    return made


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A registry with all that the report shows: read only, copy it to change it."""
    return make_registry(tmp_path_factory.mktemp("reported") / "home")
