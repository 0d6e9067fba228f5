"""The bench of a training step: as many parameters, peers found by stand-ins, a flat object of figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tools.bench import train_step, train_step_contenders
from tools.bench.train_step_contenders import CONTENDERS, OUR_PRIOR, OURS, Size, inputs, matched, nearest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = Size(batch=2, frames=2, side=8, dim=8, blocks=1, prior_dim=64, prior_depth=1, prior_batch=3, tokens=3)


def measured(peak: float, count: int) -> dict[str, object]:
    return {"parameters": count, "peak_mib": [peak] * 5}


ABOUT = {
    OURS: measured(100, 1000),
    f"{OURS}, selective": measured(50, 1000),
    "video-diffusion-pytorch": measured(250, 1010),
    "imagen-pytorch": measured(200, 990),
    OUR_PRIOR: measured(10, 500),
    "dalle2-pytorch": measured(30, 505),
}
SECONDS = {
    OURS: [1.0, 2.0, 1.0],
    f"{OURS}, selective": [1.5, 3.0, 1.5],
    "video-diffusion-pytorch": [2.0, 4.0, 9.0],
    "imagen-pytorch": [3.0, 6.0, 3.0],
    OUR_PRIOR: [1.0, 1.0, 1.0],
    "dalle2-pytorch": [0.5, 0.5, 0.5],
}


def test_the_best_peer_is_the_fastest_in_time_and_the_thriftiest_in_memory() -> None:
    results = train_step.figures(SECONDS, ABOUT)
    assert results.figures["best_peer_time_over_ours"] == 2.0
    assert results.figures["ours_memory_over_best_peer"] == 0.5
    assert results.figures["dalle2_pytorch_time"] == 0.5
    assert results.figures["imagen_pytorch_parameters"] == 0.99
    assert results.figures["selective_time"] == 1.5 and results.figures["selective_memory"] == 0.5
    assert results.absent["diffusers_time"] == "diffusers was not measured"
    assert all(math.isfinite(value) for value in results.figures.values())
    assert all(key == key.lower() and " " not in key for key in results.figures)
    assert {"best_peer_time_over_ours", "ours_memory_over_best_peer"} <= json.loads(json.dumps(results.figures)).keys()


def test_without_peers_their_figures_are_absent() -> None:
    results = train_step.figures({OURS: [1.0]}, {OURS: ABOUT[OURS]})
    assert "best_peer_time_over_ours" not in results.figures
    assert results.absent["best_peer_time_over_ours"] == "no peer was measured"


def test_a_peer_has_as_many_parameters_or_the_bench_says_no() -> None:
    assert nearest([50, 98, 101, 200], 100) == 2
    with pytest.raises(ValueError, match=r"nearest of \[50, 90\] parameters is 90, more than 3% off 100"):
        nearest([90, 50], 100)


@pytest.mark.parametrize("name", [OURS, f"{OURS}, selective", OUR_PRIOR])
def test_our_networks_take_the_inputs_and_give_what_the_loss_compares(name: str) -> None:
    contender = CONTENDERS[name]
    batch = inputs(contender, SMALL, torch.device("cpu"))
    assert contender.predict(matched(name, SMALL, None)(), batch).shape == batch["target"].shape


def test_a_network_is_imported_without_what_its_package_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "peer_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('all that the package needs')")
    (package / "network.py").write_text(
        "import absent_package.transforms as T\n"
        "from absent_package import Base, helper\n"
        "class Special(Base): pass\n"
        "def network(transform=T.ToTensor(), width=helper('name')): return 'network'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    module = train_step_contenders._network("peer_of_test", "network", "absent_package")
    assert module.network() == "network"
    for name in [name for name in sys.modules if name.split(".")[0] in ("peer_of_test", "absent_package")]:
        del sys.modules[name]


def test_a_contender_answers_with_its_parameters_peaks_and_seconds() -> None:
    ran = subprocess.run(
        train_step.command(OUR_PRIOR, sys.executable, SMALL, 0, train_step.Arguments()),
        input='{"task": "describe"}\n{"task": "step"}\n{"task": "step"}\n',
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    about, *steps = map(json.loads, ran.stdout.splitlines())
    assert about["parameters"] == sum(p.numel() for p in matched(OUR_PRIOR, SMALL, None)().parameters())
    weights_gradients_moments_mib = 16 * about["parameters"] / 2**20
    assert len(about["peak_mib"]) == 5 and min(about["peak_mib"]) > weights_gradients_moments_mib
    assert len(steps) == 2 and all(step["seconds"] > 0 for step in steps)


def test_sizes_travel_as_json() -> None:
    for size in (train_step.FULL, train_step.QUICK, train_step.QUICK_RANKS):
        assert Size(**json.loads(json.dumps(asdict(size)))) == size
