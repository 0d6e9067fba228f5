"""The conda environment and the package say the same: one list of pins, one range of Python versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ENVIRONMENT = [line for line in (REPOSITORY / "environment.yml").read_text().splitlines() if not line.startswith("#")]


def test_environment_yml_pins_just_what_pyproject_pins() -> None:
    pins = [line.removeprefix("      - ") for line in ENVIRONMENT if line.startswith("      - ")]
    assert pins == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


def test_environment_yml_is_for_a_python_that_pyproject_allows() -> None:
    python = next(line.strip() for line in ENVIRONMENT if "python=" in line)
    assert python == "- python=3.12"
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert ENVIRONMENT[0] == f"name: {PROJECT['name']}"


@pytest.mark.parametrize("group", ["dependencies", "test", "cpu"])
def test_every_dependency_is_pinned_but_torch_which_is_the_users_choice(group: str) -> None:
    pins = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    loose = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9.-]+==[0-9][0-9.]*", pin)]
    assert loose == (["torch>=2.11"] if group == "dependencies" else [])
