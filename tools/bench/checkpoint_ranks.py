"""The ranks of trainings whose state is saved and loaded; started by `checkpoint.py` with its plans as JSON.

    OMP_NUM_THREADS=1 python -m tools.bench.checkpoint_ranks PLANS.json

The trainer, its commits and its steps are the product's; the model is a text encoder on random tokens. Ours and
DeepSpeed's checkpoints are taken of the same engine. Rank 0 leaves what was measured in `answer.json` of a plan's
folder.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dalle2_video.config import OptimConfig, TextEncoderConfig
from dalle2_video.models.text_encoder import TextEncoder
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.training import checkpoint, distributed, notes
from dalle2_video.training.loop import Trainer
from dalle2_video.training.watchdog import Watchdog
from experiments import files
from tools.bench import forked_ranks
from tools.bench.timing import interleaved

CONTEXT, VOCAB = 64, 1000
OURS, DEEPSPEED, FSYNCED = "ours", "DeepSpeed", "DeepSpeed, fsynced"
BLOCKING, OVERLAPPED = "blocking", "overlapped"
OVERLAP_STEPS = 2
"""Steps that follow a save, behind which it may hide."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all ranks of one world size do."""

    world: int
    folder: Path
    """Checkpoints are left here: `ours/` and `DeepSpeed/`."""
    rounds: int
    dim: int
    depth: int
    captions: int
    """A rank computes at once; each of CONTEXT tokens."""
    other: Path | None
    """Folder of another world size's plan, whose checkpoints are loaded; nothing is saved then."""

    @classmethod
    def read(cls, content: dict[str, Any]) -> Plan:
        """Return a plan that `checkpoint.py` wrote."""
        other = content["other"] and Path(content["other"])
        return cls(**content | {"folder": Path(content["folder"]), "other": other})


class TextStage:
    """A stage without a store: random captions, a loss with a gradient for every weight."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        batch_size = plan.captions * distributed.world_size()
        self.optim = OptimConfig(steps=1_000_000, batch_size=batch_size, lr=1e-4, warmup_steps=1, precision="fp32")

    def build(self) -> nn.Module:
        """Make the encoder."""
        config = TextEncoderConfig(dim=self.plan.dim, depth=self.plan.depth, heads=self.plan.dim // 64)
        return TextEncoder(config, VOCAB, CONTEXT, self.plan.dim)

    def to(self, device: torch.device) -> None:
        """Nothing to move: the batches are made where they are used."""

    def dataset(self, split: str) -> None:
        """No clips."""
        return

    def batch(self, step: int) -> dict[str, Tensor]:
        """Random tokens, the same for a step at every run."""
        generator = torch.Generator().manual_seed(step)
        return {
            "sample": torch.arange(self.plan.captions),
            "tokens": torch.randint(VOCAB, (self.plan.captions, CONTEXT), generator=generator),
            "length": torch.full((self.plan.captions,), CONTEXT),
        }

    def loss(self, model: Callable[..., Any], batch: dict[str, Tensor], draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean square of all outputs."""
        encodings, embedding = model(batch["tokens"], batch["length"])
        loss = encodings.square().mean() + embedding.square().mean()
        return loss, {"encodings": encodings.mean(), "embedding": embedding.mean()}


class Control:
    """A run folder of which the newest checkpoint is kept, published as the registry does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and folders, oldest first."""
        return [(int(path.name.removeprefix("step-")), path) for path in sorted(self.folder.glob("step-*"))]

    def stage_commit(self) -> Path:
        """Return an empty hidden folder."""
        return files.staging_folder(self.folder)

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        """Publish durably, as the registry does."""
        files.publish(staged, self.folder / f"step-{step:08d}")

    def stop_requested(self) -> bool:
        """Nobody asks."""
        return False

    def save_requested(self) -> bool:
        """Nobody asks."""
        return False

    def append(self, kind: str, record: dict[str, Any]) -> None:
        """Fail: nothing here may skip a step or find a checkpoint damaged."""
        raise AssertionError(record)


def resident_mib() -> float:
    """Resident memory of this process."""
    return _status_mib("VmRSS")


@contextlib.contextmanager
def peak_mib() -> Iterator[Callable[[], float]]:
    """Give a function that returns the highest resident memory since the context was entered."""
    Path("/proc/self/clear_refs").write_text("5")
    yield lambda: _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


class Bench:
    """Trainer, its engine, and the contestants."""

    def __init__(self, plan: Plan, device: torch.device, watchdog: Watchdog) -> None:
        self.plan, self.rank, self.number = plan, distributed.rank(), 0
        source = plan.other or plan.folder
        self.ours, self.theirs = source / OURS, source / DEEPSPEED
        self.stage = TextStage(plan)
        self.trainer = Trainer(
            self.stage,  # type: ignore[arg-type]
            name="text",
            seed=0,
            runtime=RuntimeConfig(torch_threads=1),
            control=Control(self.ours),  # type: ignore[arg-type]
            watchdog=watchdog,
            device=device,
        )
        self.engine = self.trainer.engine.model
        self.weight_decays = [group["weight_decay"] for group in self.engine.optimizer.param_groups]

    def step(self) -> None:
        """Do one optimiser step of the product's loop."""
        self.trainer.step(self.number, [self.stage.batch(self.number)])
        self.number += 1

    def timed(self, work: Callable[[], object], *, clear: Path | None = None) -> float:
        """Return the seconds until `work` is done on all ranks.

        clear: folder that is emptied before. What others left unwritten is written before the clock starts.
        """
        if self.rank == 0:
            if clear is not None:
                shutil.rmtree(clear, ignore_errors=True)
                clear.mkdir(parents=True)
            os.sync()
        dist.barrier()
        started_s = time.perf_counter()
        work()
        dist.barrier()
        return time.perf_counter() - started_s

    # Saving.

    def save_ours(self) -> None:
        """Commit a checkpoint: written, hashed, durable, visible."""
        self.trainer.commits.save(self.number, {})

    def save_theirs(self, *, fsynced: bool = False) -> None:
        """DeepSpeed's own; nothing makes it durable unless `fsynced`."""
        self.engine.save_checkpoint(str(self.theirs), tag="step")
        if fsynced and self.rank == 0:
            files.fsync_tree(self.theirs)

    def saving(self) -> dict[str, list[float]]:
        """Return seconds of each save by contestant."""
        return interleaved(
            {
                OURS: lambda: self.timed(self.save_ours, clear=self.ours),
                DEEPSPEED: lambda: self.timed(self.save_theirs, clear=self.theirs),
                FSYNCED: lambda: self.timed(lambda: self.save_theirs(fsynced=True), clear=self.theirs),
            },
            self.plan.rounds,
            show=self.rank == 0,
        )

    def blocking(self, stalls: list[float]) -> None:
        """Save, then train."""
        started_s = time.perf_counter()
        self.save_ours()
        stalls.append(time.perf_counter() - started_s)
        for _ in range(OVERLAP_STEPS):
            self.step()

    def overlapped(self, stalls: list[float]) -> None:
        """Copy the state, and train while a thread writes it."""
        started_s = time.perf_counter()
        staged = distributed.from_rank_zero(self.trainer.control.stage_commit)
        taken = checkpoint.snapshot(self.trainer.engine.state, self.engine.module, self.number)
        written: list[Any] = []
        writer = threading.Thread(target=lambda: written.append(checkpoint.try_write(staged, taken)))
        writer.start()
        stall_s = time.perf_counter() - started_s
        saved_at = self.number
        for _ in range(OVERLAP_STEPS):
            self.step()
        started_s = time.perf_counter()
        writer.join()
        checkpoint.finish(staged, taken, written[0])

        def commit() -> None:
            notes.write(staged, {})
            self.trainer.control.commit_checkpoint(saved_at, staged)

        distributed.from_rank_zero(commit)
        stalls.append(stall_s + time.perf_counter() - started_s)

    def overlap(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Return the seconds of a save and OVERLAP_STEPS steps, and the part in which training stood still."""
        stalls: dict[str, list[float]] = {BLOCKING: [], OVERLAPPED: []}
        works = {BLOCKING: self.blocking, OVERLAPPED: self.overlapped}
        contestants = {
            name: functools.partial(self.timed, functools.partial(work, stalls[name]), clear=self.ours)
            for name, work in works.items()
        }
        return interleaved(contestants, self.plan.rounds, show=self.rank == 0), stalls

    # Loading.

    def load_ours(self) -> None:
        """Verify every file and load, from any world size."""
        assert self.trainer.commits.load() is not None

    def load_theirs(self) -> None:
        """DeepSpeed's own, from the same world size."""
        loaded, _ = self.engine.load_checkpoint(str(self.theirs), tag="step")
        assert loaded is not None

    def load_universal(self) -> None:
        """Convert DeepSpeed's checkpoint on rank 0 with a process a core, then load it on all.

        The load gives all parameter groups the weight decay of the first; that is undone, not measured.
        """
        if self.rank == 0:
            convert(self.theirs / "step", self.theirs / "universal")
        dist.barrier()
        config = self.engine._config
        config.load_universal_checkpoint = True
        try:
            loaded, _ = self.engine.load_checkpoint(str(self.theirs), tag="universal")
        finally:
            config.load_universal_checkpoint = False
        assert loaded is not None
        for group, weight_decay in zip(self.engine.optimizer.param_groups, self.weight_decays, strict=True):
            group["weight_decay"] = weight_decay

    def loading(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Return seconds by contestant, and each load's peak of memory over what was resident before."""
        if self.plan.other is None:
            works = {OURS: self.load_ours, DEEPSPEED: self.load_theirs}
        else:
            works = {OURS: self.load_ours, DEEPSPEED: self.load_universal}
        peaks: dict[str, list[float]] = {name: [] for name in works}

        def contestant(name: str) -> float:
            if self.rank == 0:
                shutil.rmtree(self.theirs / "universal", ignore_errors=True)
            steady = resident_mib()
            with peak_mib() as peak:
                seconds = self.timed(works[name])
                peaks[name].append(peak() / steady)
            return seconds

        contestants = {name: functools.partial(contestant, name) for name in works}
        return interleaved(contestants, self.plan.rounds, show=self.rank == 0), peaks

    # Steps.

    def hooks(self, steps: int) -> list[float]:
        """Return for each step the part of it that EMA, stop flag and metrics take.

        All that the product's step does and the engine's does not; ranks wait for each other in between, so that one
        that computes longer is not counted against the hooks of the rest.
        """
        engine, engine_s = self.trainer.engine, [0.0]
        plain = engine.step

        def timed(*arguments: Any, **limits: Any) -> bool:
            started_s = time.perf_counter()
            applied = plain(*arguments, **limits)
            dist.barrier()
            engine_s[0] = time.perf_counter() - started_s
            return applied

        engine.step = timed  # type: ignore[method-assign]
        shares = []
        for _ in range(steps):
            dist.barrier()
            started_s = time.perf_counter()
            self.step()
            step_s = time.perf_counter() - started_s
            shares.append((step_s - engine_s[0]) / step_s)
        del engine.step
        return shares


def convert(source: Path, target: Path) -> None:
    """DeepSpeed's conversion to a checkpoint for any world size, in this process: without the seconds of an import."""
    from deepspeed.checkpoint import ds_to_universal

    options = {"num_extract_workers": 2, "num_merge_workers": 2, "keep_temp_folder": False, "strict": True}
    options |= {"inject_missing_state": False}
    ds_to_universal.main(argparse.Namespace(input_folder=str(source), output_folder=str(target), **options))


def largest(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the largest of all ranks, value by value; on rank 0 alone it is of use."""
    gathered = distributed.gather_at_zero(values) or [values]
    return {name: [max(of) for of in zip(*(one[name] for one in gathered), strict=True)] for name in values}


def carry_out(plan: Plan) -> None:
    """Measure and answer, on one rank."""
    device = distributed.start(threads=1)
    watchdog = Watchdog(minimum_s=3600, factor=1000, on_hang=lambda hang: print(hang.stack, file=sys.stderr))
    bench = Bench(plan, device, watchdog)
    bench.step()  # moments and gradients have their memory
    answer: dict[str, Any] = {"parameters": sum(slot.cuts[-1] for slot in bench.trainer.engine.state.slots.values())}
    if plan.other is None:
        answer["hooks"] = largest({"hooks": bench.hooks(plan.rounds)})["hooks"]
        answer["overlap_s"], stalls = bench.overlap()
        answer["stall_s"] = largest(stalls)
        answer["save_s"] = bench.saving()
    answer["load_s"], peaks = bench.loading()
    answer["load_peak"] = largest(peaks)
    if distributed.rank() == 0:
        (plan.folder / "answer.json").write_text(json.dumps(answer))
    distributed.end()
    watchdog.stop()


def main(plans: list[Plan]) -> bool:
    """Carry out one plan after the other; return whether all were."""
    logging.disable(logging.WARNING)
    forked_ranks.preload()
    return all(forked_ranks.run([plan.world], lambda *_, plan=plan: carry_out(plan)) for plan in plans)


if __name__ == "__main__":
    sys.exit(not main([Plan.read(content) for content in json.loads(Path(sys.argv[1]).read_text())]))
