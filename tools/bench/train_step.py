"""A step of training, ours against the peers': forward, backward and update in time and memory.

    python tools/bench/train_step.py [--quick] [--json FILE] [--device cpu|cuda] [--precision fp32|bf16]

Our U-Net against those of video-diffusion-pytorch, imagen-pytorch and diffusers, our prior against dalle2-pytorch's: as
many parameters (within 3 %), the same video, caption and optimiser, each in a process of its own, all in turns. On CPUs
one thread each and CPU time; memory is what the highest step takes over a process that has imported everything. Peers
with text take all tokens, video-diffusion-pytorch their mean, as it has no tokens.

best_peer_time_over_ours       the fastest peer's step over ours
ours_memory_over_best_peer     our peak over that of the thriftiest peer
zero3_over_ddp                 our U-Net on two gloo ranks: the product's engine at ZeRO stage 3 over torch's DDP
zero3_over_ddp_cpu             the same without the time in which ranks wait for each other
PEER_time, PEER_memory         each peer over ours (prior included, which is in none of the figures above)
selective_time, full_time      activation checkpointing over none, our U-Net (not with --quick)
selective_memory, full_memory
mfu                            our share of what the device's tensor cores can do (CUDA, bf16)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

REPOSITORY = str(Path(__file__).resolve().parents[2])
if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = REPOSITORY

from tools.bench import peers
from tools.bench.timing import BenchArguments, Goal, Results, interleaved, publish
from tools.bench.train_step_contenders import CONTENDERS, OUR_PRIOR, OURS, Size

GOALS = {
    "best_peer_time_over_ours": Goal(low=1.5),
    "ours_memory_over_best_peer": Goal(high=0.6),
    "zero3_over_ddp": Goal(high=1.15),
}
UNETS = ("video-diffusion-pytorch", "imagen-pytorch", "diffusers")
PRIOR = "dalle2-pytorch"
CHECKPOINTED = ("selective", "full")
FULL = Size(batch=1, frames=16, side=32, dim=48, blocks=2, prior_dim=256, prior_depth=4, prior_batch=32)
QUICK = Size(batch=1, frames=8, side=24, dim=24, blocks=2, prior_dim=128, prior_depth=4, prior_batch=8)
QUICK_RANKS = replace(FULL, side=28)
"""Where a step is much shorter, DeepSpeed's Python is all that is measured."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Operations a second of dense products in bf16, by what the device's name holds (NVIDIA's data sheets)."""


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Measure a step of training against the peers' networks."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast, with fp32 weights, for all; on CPUs, which may only emulate it, at the size of --quick."""


def names(*, quick: bool) -> list[str]:
    """Return who takes part."""
    own = [] if quick else [f"{OURS}, {mode}" for mode in CHECKPOINTED]
    return [OURS, *own, *UNETS, OUR_PRIOR, PRIOR]


def key(name: str) -> str:
    """Return a contender's name as it begins a figure's."""
    return name.lower().replace(", ", "_").replace(" ", "_").replace("-", "_")


def figures(seconds: Mapping[str, Sequence[float]], about: Mapping[str, Mapping[str, Any]]) -> Results:
    """Return what the measurements say; peers that are not among them are passed over.

    seconds: of a step, by contender, in rounds; about: parameters and peaks by contender.
    """
    results = Results(unit="ms a step", rounds={name: [1e3 * s for s in values] for name, values in seconds.items()})
    for name, ours in [*((peer, OURS) for peer in UNETS), (PRIOR, OUR_PRIOR)]:
        results.ratio(f"{key(name)}_time", name, ours)
        if name in about:
            results.figures[f"{key(name)}_memory"] = peak(about[name]) / peak(about[ours])
            results.figures[f"{key(name)}_parameters"] = about[name]["parameters"] / about[ours]["parameters"]
    measured = [key(name) for name in UNETS if name in about]
    if measured:
        results.figures["best_peer_time_over_ours"] = min(results.figures[f"{name}_time"] for name in measured)
        results.figures["ours_memory_over_best_peer"] = max(1 / results.figures[f"{name}_memory"] for name in measured)
    else:
        reason = "no peer was measured"
        results.absent |= dict.fromkeys(("best_peer_time_over_ours", "ours_memory_over_best_peer"), reason)
    for mode in CHECKPOINTED:
        name = f"{OURS}, {mode}"
        if name in about:
            results.ratio(f"{mode}_time", name, OURS)
            results.figures[f"{mode}_memory"] = peak(about[name]) / peak(about[OURS])
    for name in about:
        results.figures[f"{key(name)}_peak_mib"] = peak(about[name])
    return results


def peak(about: Mapping[str, Any]) -> float:
    """Return the median of a contender's peaks in MiB."""
    return statistics.median(about["peak_mib"])


def mfu(seconds: float, about: Mapping[str, Any]) -> float | None:
    """Return the share of the device's peak that a step's products reach; None where the peak is unknown."""
    known = [flops for name, flops in PEAK_FLOPS.items() if name in about["device"]]
    return about["flops"] / seconds / known[0] if known else None


def command(name: str, python: str, size: Size, target: int, arguments: Arguments) -> list[str]:
    """Return what starts a contender."""
    work = [python, "-W", "ignore", str(Path(__file__).with_name("train_step_work.py")), name]
    return [*work, json.dumps(asdict(size)), str(target), arguments.device, arguments.precision]


def networks(size: Size, arguments: Arguments) -> Results:
    """Measure all contenders in turns."""
    python, missing = sys.executable, None
    try:
        theirs = str(peers.peers_python("train_step_requirements.txt", beside_product=True))
    except peers.PeersMissing as error:
        missing = str(error)
    taking_part = [name for name in names(quick=arguments.quick) if missing is None or name not in (*UNETS, PRIOR)]
    about: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        children = {}
        for name in taking_part:
            if name.startswith("our "):
                children[name] = stack.enter_context(peers.running(command(name, python, size, 0, arguments)))
        for name in (OURS, OUR_PRIOR):
            about[name] = children[name].call("describe")
        for name in taking_part:
            if name not in children:
                target = about[OUR_PRIOR if CONTENDERS[name].prior else OURS]["parameters"]
                children[name] = stack.enter_context(peers.running(command(name, theirs, size, target, arguments)))
        for name in taking_part:
            about[name] = children[name].call("describe")
        seconds = interleaved({name: partial(_seconds, child) for name, child in children.items()})
    results = figures(seconds, about)
    if missing is not None:
        results.absent |= dict.fromkeys((*UNETS, PRIOR), missing)
    if arguments.device == "cuda" and arguments.precision == "bf16":
        share = mfu(statistics.median(seconds[OURS]), about[OURS])
        if share is None:
            results.absent["mfu"] = f"the peak of {about[OURS]['device']} is not known here"
        else:
            results.figures["mfu"] = share
    return results


def _seconds(child: peers.Peers) -> float:
    return child.call("step")["seconds"]


def two_ranks(size: Size, results: Results) -> None:
    """Add ZeRO-3 over DDP."""
    from tools.bench.train_step_ranks import DDP, ZERO

    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        # The ranks' chatter goes to stdout, their errors to stderr.
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tools.bench.train_step_ranks", json.dumps(asdict(size)), answer],
            env=os.environ | {"PYTHONPATH": REPOSITORY, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = json.loads(answer.read_text())
    results.rounds |= {name: [1e3 * value for value in values] for name, values in seconds.items()}
    results.ratio("zero3_over_ddp", ZERO, DDP)
    results.ratio("zero3_over_ddp_cpu", f"{ZERO}, CPU", f"{DDP}, CPU")


def main(arguments: Arguments) -> None:
    """Measure and publish."""
    emulated = arguments.device == "cpu" and arguments.precision == "bf16"
    results = networks(QUICK if arguments.quick or emulated else FULL, arguments)
    if arguments.device == "cpu" and arguments.precision == "fp32":
        two_ranks(QUICK_RANKS if arguments.quick else FULL, results)
    else:
        results.absent["zero3_over_ddp"] = "it is measured on two CPU ranks in fp32"
    Console().print(f"device {arguments.device}, {arguments.precision}")
    publish(results, GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
