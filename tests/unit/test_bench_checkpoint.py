"""The checkpoint bench trains, saves and loads for real, and gives the documented keys."""

from __future__ import annotations

import math
from pathlib import Path

from tools.bench import checkpoint


def test_checkpoint_bench_gives_the_documented_keys(tmp_path: Path) -> None:
    results = checkpoint.measure(tmp_path, checkpoint.Amounts(dim=64, depth=1, captions=2, rounds=1))
    documented = {
        "save_over_deepspeed", "elastic_load_over_universal", "load_peak_over_steady", "hooks_share_of_step",
    }  # fmt: skip
    assert documented <= results.figures.keys() and documented == checkpoint.GOALS.keys()
    assert all(math.isfinite(value) and value > 0 for value in results.figures.values())
    assert results.absent == {}
    # Each contestant's checkpoint is there and is its own: shards of a rank each, and DeepSpeed's pickles.
    for world in checkpoint.WORLDS:
        (commit,) = (tmp_path / str(world) / "ours").glob("step-*")
        assert len(list(commit.glob("shard-*.safetensors"))) == world
        assert len(list((tmp_path / str(world) / "DeepSpeed/step").glob("*_optim_states.pt"))) == world
