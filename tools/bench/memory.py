"""Peak memory of the U-Nets that never fitted: measured on 2 CPU ranks, and as `--dry-run` predicts it.

    python tools/bench/memory.py [--quick] [--json FILE]

Recipe seed_decoder at ZeRO stage 3, a sample a rank at once, two of them accumulated, one optimiser step: unet1 is its
decoder, unet2 its spatial super-resolution. Measured is the highest resident memory of a rank over the whole training,
imports and CLIP included; in bf16 too, which takes as much on CPUs, however slow it is there. The table beside it is
predicted. Keys of the JSON:

    unet1_90_peak_gib         unet1 at 90 frames, fp32, activation checkpointing `full`
    unet2_90_peak_gib         unet2 likewise
    unet1_150_peak_gib        unet1 at 150 frames
    unet1_90_bf16_peak_gib    unet1 at 90 frames in bf16
    prediction_error          largest difference of prediction and measurement over all cases measured, as a share

About 40 minutes on 2 cores; `--quick` measures the same U-Nets at a few frames, for the prediction's error alone.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

REPOSITORY = str(Path(__file__).resolve().parents[2])
if __name__ == "__main__":
    sys.path[0] = REPOSITORY

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from dalle2_video.config import Precision
from dalle2_video.runtime import Checkpointing
from tools.bench.memory_ranks import Plan, Unet
from tools.bench.timing import BenchArguments, Goal, Results, publish

UNETS: dict[str, Unet] = {"unet1": "decoder", "unet2": "spatial_sr"}
FRAMES = (16, 90, 150)
MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
KEYS = {
    "unet1_90_peak_gib": Plan(stage="decoder", frames=90, checkpointing="full"),
    "unet2_90_peak_gib": Plan(stage="spatial_sr", frames=90, checkpointing="full"),
    "unet1_150_peak_gib": Plan(stage="decoder", frames=150, checkpointing="full"),
    "unet1_90_bf16_peak_gib": Plan(stage="decoder", frames=90, checkpointing="full", precision="bf16"),
}
MORE = [
    Plan(stage="decoder", frames=90, checkpointing="selective"),
    Plan(stage="spatial_sr", frames=90, checkpointing="selective"),
    Plan(stage="spatial_sr", frames=90, checkpointing="none"),
    Plan(stage="decoder", frames=16, checkpointing="none"),
    Plan(stage="decoder", frames=90, checkpointing="selective", precision="bf16"),
    Plan(stage="decoder", frames=16, checkpointing="none", precision="bf16"),
]
QUICK = [
    Plan(stage="decoder", frames=2, checkpointing="full"),
    Plan(stage="spatial_sr", frames=4, checkpointing="selective"),
]
GOALS = {
    "unet1_90_peak_gib": Goal(high=5.0),
    "unet2_90_peak_gib": Goal(high=5.0),
    "unet1_150_peak_gib": Goal(high=8.0),
    "unet1_90_bf16_peak_gib": Goal(high=3.0),
    "prediction_error": Goal(high=0.20),
}
GIB = 2**30


def measured(plans: list[Plan]) -> list[float]:
    """Return the highest resident memory of a rank for each plan, in GiB. Raises RuntimeError where a rank failed."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "plans.json"
        file.write_text(json.dumps([asdict(plan) for plan in plans]))
        # The ranks' chatter goes to stdout, their progress and errors to stderr.
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tools.bench.memory_ranks", file],
            env=os.environ | {"PYTHONPATH": REPOSITORY, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError("a rank failed, see above")
        return [json.loads((Path(scratch) / f"{n}.json").read_text())["peak_mib"] / 1024 for n in range(len(plans))]


def predicted(plan: Plan, *, cuda: bool = False) -> float:
    """Return what `--dry-run` tells of a plan, in GiB."""
    from dalle2_video.training.memory_estimate import estimate

    told = estimate(
        plan.made(),
        plan.stage,
        micro_batch=1,
        world_size=plan.world,
        zero_stage=3,
        checkpointing=plan.checkpointing,
        cuda=cuda,
    )
    return told.peak / GIB


def show_predictions() -> None:
    """Print peak memory against frames, checkpointing and precision."""
    console = Console()
    table = Table("predicted, GiB a rank", *(f"{precision}, {mode}" for precision, mode in _columns()))
    for name, stage in UNETS.items():
        for frames in FRAMES:
            # On CPUs fp32 with the process itself; in bf16 what is allocated on a GPU.
            row = [
                predicted(
                    Plan(stage=stage, frames=frames, checkpointing=mode, precision=precision), cuda=precision == "bf16"
                )
                for precision, mode in _columns()
            ]
            table.add_row(f"{name}, {frames} frames", *(f"{value:.2f}" for value in row))
    console.print(table)
    console.print("fp32: resident memory on CPUs, the process included; bf16: allocated on a GPU")


def _columns() -> list[tuple[Precision, Checkpointing]]:
    return list(itertools.product(PRECISIONS, MODES))


def main(arguments: BenchArguments) -> None:
    """Measure, predict and publish."""
    plans = QUICK if arguments.quick else [*KEYS.values(), *MORE]
    results = Results(unit="GiB")
    errors = []
    for plan, peak in zip(plans, measured(plans), strict=True):
        told = predicted(plan)
        name = f"{plan.stage}, {plan.frames} frames, {plan.checkpointing}, {plan.precision}"
        results.rounds |= {name: [peak], f"{name}, predicted": [told]}
        errors.append(abs(told / peak - 1))
        if plan in KEYS.values():
            results.figures[next(key for key, value in KEYS.items() if value == plan)] = peak
    if arguments.quick:
        results.absent |= dict.fromkeys(KEYS, "takes minutes; leave --quick out")
    else:
        show_predictions()
    results.figures["prediction_error"] = max(errors)
    publish(results, GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(BenchArguments, description=__doc__))
