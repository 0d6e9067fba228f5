"""Saving and loading the training state against DeepSpeed's own checkpoints, and what a step's hooks cost.

    python tools/bench/checkpoint.py [--quick] [--json FILE] [--scratch FOLDER]

Trains a text encoder at ZeRO stage 3 in fp32, on 2 and on 4 ranks of one thread each. All contestants take turns on
the same engine, and each begins with nothing left to be written to the disk. Ours is whole: written, hashed, made
durable, committed, with an EMA that DeepSpeed's lacks; its load verifies every checksum. DeepSpeed's is its call alone,
and "DeepSpeed, fsynced" the same made durable. Keys of the JSON, the worse of both world sizes:

    save_over_deepspeed            a save; save_over_deepspeed_fsynced: against one that is durable too
    load_over_deepspeed            a load at the same world size
    elastic_load_over_universal    a load at the other world size, against DeepSpeed's conversion and universal load
    load_peak_over_steady          highest resident memory in a load over that before
    hooks_share_of_step            part of a step that EMA, stop flag and metrics take
    overlapped_over_blocking       a save and the steps after it, written by a thread meanwhile or not
    stall_overlapped_over_blocking the time for which training stands still
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

REPOSITORY = str(Path(__file__).resolve().parents[2])
if __name__ == "__main__":
    sys.path[0] = REPOSITORY

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


QUICK = Amounts(dim=256, depth=3)


def run_ranks(scratch: Path, plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Carry out plans one after the other; return rank 0's answers. Raises RuntimeError where a rank failed."""
    for plan in plans:
        Path(plan["folder"]).mkdir()
    file = scratch / "plans.json"
    file.write_text(json.dumps(plans))
    # The ranks' chatter goes to stdout, their progress and errors to stderr.
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tools.bench.checkpoint_ranks", file],
        env=os.environ | {"PYTHONPATH": REPOSITORY, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError("a rank failed, see above")
    return [json.loads((Path(plan["folder"]) / "answer.json").read_text()) for plan in plans]


def measure(scratch: Path, amounts: Amounts) -> Results:
    """Run both world sizes, then each on the other's checkpoints."""
    results = Results(unit="s")
    work = dataclasses.asdict(amounts)
    own = {world: work | {"world": world, "folder": str(scratch / str(world)), "other": None} for world in WORLDS}
    others = {
        f"load {other} on {world}": work
        | {"world": world, "folder": str(scratch / f"{other} on {world}"), "other": own[other]["folder"]}
        for world, other in (WORLDS, WORLDS[::-1])
    }
    answers = run_ranks(scratch, [*own.values(), *others.values()])
    results.figures["parameters"] = answers[0]["parameters"]
    for world, answer in zip(WORLDS, answers, strict=False):
        for group in ("save", "load", "overlap", "stall"):
            results.rounds |= {f"{group} on {world}, {name}": seconds for name, seconds in answer[f"{group}_s"].items()}
    for name, answer in zip(others, answers[len(WORLDS) :], strict=True):
        results.rounds |= {f"{name}, {contestant}": seconds for contestant, seconds in answer["load_s"].items()}

    def worst(key: str, pairs: dict[str, tuple[str, str]]) -> None:
        """The largest ratio of several places, each a figure of its own."""
        for place, (above, below) in pairs.items():
            results.ratio(f"{key}: {place}", above, below)
        results.figures[key] = max(results.figures[f"{key}: {place}"] for place in pairs)

    def on_both(group: str, above: str, below: str) -> dict[str, tuple[str, str]]:
        return {f"{world} ranks": (f"{group} on {world}, {above}", f"{group} on {world}, {below}") for world in WORLDS}

    worst("save_over_deepspeed", on_both("save", "ours", "DeepSpeed"))
    worst("save_over_deepspeed_fsynced", on_both("save", "ours", "DeepSpeed, fsynced"))
    worst("load_over_deepspeed", on_both("load", "ours", "DeepSpeed"))
    worst("elastic_load_over_universal", {name: (f"{name}, ours", f"{name}, DeepSpeed") for name in others})
    worst("overlapped_over_blocking", on_both("overlap", "overlapped", "blocking"))
    worst("stall_overlapped_over_blocking", on_both("stall", "overlapped", "blocking"))
    results.figures["load_peak_over_steady"] = max(max(answer["load_peak"]["ours"]) for answer in answers)
    results.figures["hooks_share_of_step"] = max(
        statistics.median(answer["hooks"]) for answer in answers[: len(WORLDS)]
    )
    return results


def main(arguments: Arguments) -> None:
    """Measure and publish."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        publish(measure(Path(scratch), QUICK if arguments.quick else Amounts()), GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
