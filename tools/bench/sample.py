"""Sampling: against a peer's sampler, stage by stage, and how memory grows over a thousand prompts.

    python tools/bench/sample.py [--quick] [--json FILE] [--device cpu|cuda]

peer_time_over_ours     video-diffusion-pytorch's GaussianDiffusion.sample over ours: as many parameters (within 3 %),
                        videos, frames, pixels and steps (ancestral, unguided), each in a process of its own, in turns
rss_growth              resident memory after 1,000 prompts of an array (250 with --quick) over that after the first 100
STAGE_per_minute        videos a minute of each step of the chain, fresh weights of the recipe `tiny`, its own steps
array_per_minute        videos a minute of that array: the smallest nets, so mostly files; a batch is 25 videos

On CPUs one thread, and CPU time where contenders are compared.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import tyro

from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.generation import Request, SampleConfig, VideoPipeline
from dalle2_video.generation.pipeline import State
from dalle2_video.generation.sample import SampleArray
from experiments.recipes import tiny
from tools.bench import peers, random_chain
from tools.bench.timing import ROUNDS, BenchArguments, Goal, Results, interleaved, publish
from tools.bench.train_step_contenders import OURS, Size

GOALS = {"peer_time_over_ours": Goal(low=1.0), "rss_growth": Goal(high=1.02)}
PEER = "video-diffusion-pytorch"
FULL = Size(batch=2, frames=16, side=32, dim=48, blocks=2, prior_dim=64, prior_depth=1, prior_batch=1)
QUICK = Size(batch=1, frames=8, side=16, dim=32, blocks=2, prior_dim=64, prior_depth=1, prior_batch=1)
PROMPTS, QUICK_PROMPTS, WARM = 1000, 250, 100
AT_ONCE = 25


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Measure sampling."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are."""


def against_the_peer(results: Results, arguments: Arguments) -> None:
    """Add the peer's time over ours."""
    size, steps = (QUICK, 5) if arguments.quick else (FULL, 10)
    try:
        theirs = str(peers.peers_python("train_step_requirements.txt", beside_product=True))
    except peers.PeersMissing as error:
        results.absent["peer_time_over_ours"] = str(error)
        return

    def command(name: str, python: str, target: int) -> list[str]:
        work = [python, "-W", "ignore", str(Path(__file__).with_name("sample_work.py")), name]
        return [*work, json.dumps(asdict(size)), str(target), str(steps), arguments.device]

    with peers.running(command(OURS, sys.executable, 0)) as ours:
        parameters = ours.call("describe")["parameters"]
        with peers.running(command(PEER, theirs, parameters)) as peer:
            results.figures["peer_parameters_over_ours"] = peer.call("describe")["parameters"] / parameters
            children = {OURS: ours, PEER: peer}
            measured = interleaved({name: partial(_seconds, child, size) for name, child in children.items()})
    results.rounds |= measured
    results.ratio("peer_time_over_ours", PEER, OURS)


def _seconds(child: peers.Peers, size: Size) -> float:
    return child.call("sample")["seconds"] / size.batch


def by_stage(results: Results, scratch: Path, arguments: Arguments) -> None:
    """Add the videos a minute of each step of the chain, the loading of its weights not counted."""
    pipeline = VideoPipeline(random_chain.make(scratch / "chain", tiny.recipe()), arguments.device, keep_loaded=True)
    options = SampleConfig(videos_at_once=1 if arguments.quick else 8)
    batch = [Request(prompt=f"a red circle {number}") for number in range(options.videos_at_once)]
    states: dict[str, State] = {}
    given: State = {}
    for step in pipeline.steps(options):  # each loads its stage and makes what the next one takes
        states[step] = given
        given = pipeline.run(step, batch, given, options)

    def seconds(step: str) -> float:
        started_s = time.perf_counter()
        pipeline.run(step, batch, states[step], options)
        return (time.perf_counter() - started_s) / len(batch)

    rounds = 1 if arguments.quick else ROUNDS
    for step, values in interleaved({step: partial(seconds, step) for step in states}, rounds).items():
        results.rounds[f"stage {step}"] = values
        results.figures[f"{step}_per_minute"] = 60 / statistics.median(values)


def memory(results: Results, scratch: Path, arguments: Arguments) -> None:
    """Add how resident memory grows from prompt 100 of an array to the last one."""
    one, prompts = SamplerConfig(steps=1), QUICK_PROMPTS if arguments.quick else PROMPTS
    config = SampleConfig(
        prompts=tuple(f"a red circle {number}" for number in range(prompts)),
        videos_at_once=AT_ONCE,
        prior=SamplerConfig(method="ddpm", steps=1),
        decoder=one,
        temporal_sr=one,
        spatial_sr=one,
    )
    root = scratch / "samples"

    def publish_file(staged: Path, name: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staged, root / name)

    exports = random_chain.make(scratch / "smallest", random_chain.smallest())
    array = SampleArray(
        root=root,
        exports=lambda: exports,
        config=config,
        seed=0,
        device=torch.device(arguments.device),
        publish=publish_file,
    )
    staging = scratch / "staging"
    staging.mkdir()
    resident: list[float] = []
    started_s = time.perf_counter()
    for task in range(array.num_tasks):
        array.run_task(task, staging, lambda share: None)
        resident.append(_resident_mib())
    results.figures["array_per_minute"] = 60 * prompts / (time.perf_counter() - started_s)
    results.rounds["resident MiB"] = resident[WARM // AT_ONCE - 1 :]
    results.figures["rss_growth"] = resident[-1] / resident[WARM // AT_ONCE - 1]


def _resident_mib() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(arguments: Arguments) -> None:
    """Measure and publish."""
    torch.set_num_threads(1)
    results = Results(unit="s a video, or MiB")
    with tempfile.TemporaryDirectory() as scratch:
        memory(results, Path(scratch), arguments)
        by_stage(results, Path(scratch), arguments)
    against_the_peer(results, arguments)
    publish(results, GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
