"""The launcher bench launches for real, and gives the documented keys."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tools.bench import launcher


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")  # where there can be one
def test_launcher_bench_gives_the_documented_keys(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("b")
    results = launcher.measure(scratch, tmp_path, launcher.Amounts(tasks=3, runs=20, rounds=1, starts=1))
    assert {"submit_extra_s", "array_1000_extra_s", "list_10000_s", "first_step_s"} <= results.figures.keys()
    assert all(math.isfinite(value) for value in results.figures.values()) and results.absent == {}
    parts = [value for key, value in results.figures.items() if key.startswith("startup_")]
    assert sum(parts) == pytest.approx(results.figures["first_step_s"]) and len(parts) == 8
