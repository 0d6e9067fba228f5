"""Fixtures of the whole suite: sample data, and one tiny trained chain a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launching import REPOSITORY, Chain
from report_registry import Made, make_registry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two processes share the suite, one runs all tests of a file, and one all on Slurm, which come first.

    So fixtures of files are made once, and no two clusters compete for the machine.
    """
    items.sort(key=lambda item: item.path.parent.name != "slurm")
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "slurm" else item.path.name))


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
