"""What `--dry-run` tells of memory: states by arithmetic, activations counted for every kind of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dalle2_video.config import Recipe
from dalle2_video.runtime import Checkpointing
from dalle2_video.training import memory_estimate
from dalle2_video.training.live_memory import LiveMemory, fake_tensors
from dalle2_video.training.memory_estimate import MemoryEstimate, states
from experiments.recipes import seed_decoder
from experiments.registry import HOME_VARIABLE
from launch import submit
from launch.arguments import load_recipe

MIB = 2**20
TINY = load_recipe("tiny")


def told(recipe: Recipe, stage: str, mode: Checkpointing = "none", *, cuda: bool = False, micro: int = 1):
    return memory_estimate.estimate(
        recipe, stage, micro_batch=micro, world_size=2, zero_stage=3, checkpointing=mode, cuda=cuda
    )


@pytest.mark.parametrize(
    ("zero_stage", "bf16", "bytes_each"),
    [
        (0, False, 4 + 4 + 8 + 2),
        (1, False, 4 + 4 + 8),
        (2, False, 4 + 10),
        (3, False, 12),
        (3, True, 11),
        (0, True, 14),
    ],
)
def test_states_are_shared_out_as_the_zero_stage_says(zero_stage: int, bf16: bool, bytes_each: int) -> None:
    assert states(1000, world_size=2, zero_stage=zero_stage, bf16=bf16) == 1000 * bytes_each


@pytest.mark.parametrize("waste", [1.0, 2.0])
def test_only_what_is_alive_counts_and_a_heap_is_never_given_back(waste: float) -> None:
    with fake_tensors(), LiveMemory(heap_below=3 * MIB, heap_waste=waste) as memory:
        small = torch.empty(2 * MIB, dtype=torch.uint8)
        view = small[5:]
        del small
        assert memory.live == 2 * MIB
        del view
        large = torch.empty(8 * MIB, dtype=torch.uint8)
        assert (memory.live, memory.peak) == (8 * MIB, (8 + 2 * waste) * MIB)
        del large
    assert memory.live == 0


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "temporal_sr"])
def test_each_training_of_a_recipe_can_be_told(stage: str) -> None:
    config = getattr(TINY, stage)
    bf16 = dataclasses.replace(config, optim=dataclasses.replace(config.optim, precision="bf16"))
    one, more = told(TINY, stage, micro=2), told(TINY, stage, micro=6)
    half = told(dataclasses.replace(TINY, **{stage: bf16}), stage, micro=2)
    assert one.activations < half.activations * 2 < 2 * more.activations
    assert one.states > half.states and (one.frozen > 0) == (stage != "clip")
    assert told(TINY, stage, cuda=True).process == 0


def test_checkpointing_is_in_it() -> None:
    modes: tuple[Checkpointing, ...] = ("none", "selective", "full")
    none, selective, full = (told(TINY, "decoder", mode, cuda=True, micro=8).activations for mode in modes)
    assert full < selective < 0.6 * none


def test_states_and_activations_are_those_of_the_measured_training() -> None:
    """Measured by tools/bench/memory.py: resident memory of a rank at its peak, MiB."""
    measured = {
        ("decoder", 90, "full", "fp32"): 3697,
        ("decoder", 90, "full", "bf16"): 2578,
        ("spatial_sr", 90, "selective", "fp32"): 2336,
    }
    for (stage, frames, mode, precision), peak_mib in measured.items():
        recipe = seed_decoder.recipe(frames)
        config = getattr(recipe, stage)
        optim = dataclasses.replace(config.optim, precision=precision)
        recipe = dataclasses.replace(recipe, **{stage: dataclasses.replace(config, optim=optim)})
        estimate: MemoryEstimate = told(recipe, stage, mode)  # type: ignore[arg-type]
        assert abs(estimate.peak / MIB / peak_mib - 1) < 0.1, (stage, frames, mode, precision, estimate)


def test_a_dry_run_tells_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    flags = ["--cluster", "local", "--ranks-per-node", "2", "--activation-checkpointing", "full", "--dry-run"]
    assert submit.main("decoder", flags) == 0
    said = capsys.readouterr().out
    assert "peak memory a rank about" in said and "on CPUs, activation checkpointing full" in said
