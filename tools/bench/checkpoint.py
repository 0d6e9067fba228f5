"""Saving and loading the training state against DeepSpeed's own checkpoints, and what a step's hooks cost.

    python tools/bench/checkpoint.py [--quick] [--json FILE] [--scratch FOLDER]

Trains a text encoder at ZeRO stage 3 in fp32, on 2 and on 4 ranks of one thread each. All contestants take turns on
the same engine, and each begins with nothing left to be written to the disk. Ours is whole: written, hashed, made
durable, committed, with an EMA that DeepSpeed's lacks; its load verifies every hash. DeepSpeed's is its call alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from slurm.local import free_port
from tools.bench.timing import ROUNDS, BenchArguments, Goal, Results, publish

WORLDS = (2, 4)
GOALS = {
    "save_over_deepspeed": Goal(high=1.0),
    "elastic_load_over_universal": Goal(high=0.5),
    "load_peak_over_steady": Goal(high=1.10),
    "hooks_share_of_step": Goal(high=0.02),
}


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Measure saving and loading of the training state against DeepSpeed's own checkpoints."""

    scratch: Path = Path(tempfile.gettempdir())
    """Folder on the file system that is measured; about 16 GB are written and removed, 4 GB with --quick."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Size of the model and of the work."""

    dim: int = 768
    depth: int = 9
    captions: int = 8
    rounds: int = ROUNDS


QUICK = Amounts(dim=256, depth=6, captions=8)


def run_ranks(folder: Path, world: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Run one world size to its end; return rank 0's answer. Raises RuntimeError with what a rank said."""
    folder.mkdir(exist_ok=True)
    answer, file = folder / "answer.json", folder / "plan.json"
    file.write_text(json.dumps(plan | {"folder": str(folder), "answer": str(answer)}))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "PYTHONPATH": sys.path[0]}
    command = [sys.executable, "-W", "ignore", "-m", "tools.bench.checkpoint_ranks", str(file)]
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as stderr:
                started = subprocess.Popen(
                    command, env=os.environ | shared | own, stdout=subprocess.DEVNULL, stderr=stderr
                )
            processes.append(started)
        for rank, process in enumerate(processes):
            if process.wait() != 0:
                raise RuntimeError(f"rank {rank} of {world} ended with {process.returncode}:\n{logs[rank].read_text()}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return json.loads(answer.read_text())


def measure(scratch: Path, amounts: Amounts) -> Results:
    """Run both world sizes, then each on the other's checkpoints."""
    results = Results(unit="s")
    plan = dataclasses.asdict(amounts)
    peaks, hooks = [], []

    def ratio(key: str, above: str, below: str) -> float:
        results.ratio(key, above, below)
        return results.figures[key]

    for world in WORLDS:
        got = run_ranks(scratch / str(world), world, plan | {"other": None})
        results.figures["parameters"] = got["parameters"]
        for group in ("save", "load", "overlap", "stall"):
            results.rounds |= {f"{group} on {world}, {name}": seconds for name, seconds in got[f"{group}_s"].items()}
        peaks.append(max(got["load_peak"]["ours"]))
        hooks.append(statistics.median(got["hooks"]))
    elastic = {}
    for world, other in (WORLDS, WORLDS[::-1]):
        plan_of_other = plan | {"other": str(scratch / str(other))}
        got = run_ranks(scratch / f"{other} to {world}", world, plan_of_other)
        name = f"load {other} on {world}"
        results.rounds |= {f"{name}, {contestant}": seconds for contestant, seconds in got["load_s"].items()}
        peaks.append(max(got["load_peak"]["ours"]))
        elastic[name] = 0.0

    def worst(key: str, pairs: dict[str, tuple[str, str]]) -> None:
        """The largest ratio of several places, each a figure of its own."""
        values = [ratio(f"{key}: {place}", *pair) for place, pair in pairs.items()]
        results.figures[key] = max(values)

    def on_both(group: str, above: str, below: str) -> dict[str, tuple[str, str]]:
        return {f"{world} ranks": (f"{group} on {world}, {above}", f"{group} on {world}, {below}") for world in WORLDS}

    worst("save_over_deepspeed", on_both("save", "ours", "DeepSpeed"))
    worst("save_over_deepspeed_fsynced", on_both("save", "ours", "DeepSpeed, fsynced"))
    worst("load_over_deepspeed", on_both("load", "ours", "DeepSpeed"))
    worst("elastic_load_over_universal", {name: (f"{name}, ours", f"{name}, DeepSpeed") for name in elastic})
    worst("overlapped_over_blocking", on_both("overlap", "overlapped", "blocking"))
    worst("stall_overlapped_over_blocking", on_both("stall", "overlapped", "blocking"))
    results.figures["load_peak_over_steady"] = max(peaks)
    results.figures["hooks_share_of_step"] = max(hooks)
    return results


def main(arguments: Arguments) -> None:
    """Measure and publish."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        publish(measure(Path(scratch), QUICK if arguments.quick else Amounts()), GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
