"""Real DeepSpeed ranks for tests: `python zero_ranks.py COMMAND FOLDER WORLD ...`.

One process forks every rank of every world size asked for, and a command does all that a test module asks of a world
size, at all ZeRO stages. Rank 0 of each world size leaves its answer in FOLDER.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench import forked_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH, STEPS, SAVED_AT = 24, 5, 3
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
WORLDS = (1, 2, 3, 4)
PEAK_STAGES = (1, 3)
"""One that cuts a group and one that cuts each parameter."""


def run_ranks(command: str, folder: Path, *worlds: int) -> dict[int, dict]:
    """Run a command on so many ranks for each of some world sizes, all at once; return the answers by world size."""
    started = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, command, folder, *map(str, worlds)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert started.returncode == 0, started.stderr[-5000:]
    return {world: json.loads((folder / f"answer-{world}.json").read_text()) for world in worlds}


def optim(precision: str = "fp32") -> Any:
    from dalle2_video.config import OptimConfig

    return OptimConfig(
        steps=10,
        batch_size=BATCH,
        lr=1e-2,
        warmup_steps=2,
        weight_decay=0.1,
        ema_decay=0.9,
        max_grad_norm=0.3,
        precision=precision,
    )


def small_model() -> Any:
    """A model with all that a checkpoint must keep; no parameter divides evenly among the ranks."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.body = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.GELU(), nn.Linear(13, 5))
            self.frozen = nn.Linear(5, 3).requires_grad_(False)
            self.register_buffer("mean", torch.arange(3.0))
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("cache", torch.zeros(2), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.frozen(self.body(x) * self.scale)

    torch.manual_seed(0)
    return Model()


def data() -> Any:
    import torch

    return torch.randn(10, BATCH, 7, generator=torch.Generator().manual_seed(1))


class Training:
    """One engine that trains on the test's data."""

    def __init__(self, stage: int, precision: str, module: Any = None) -> None:
        import torch

        from dalle2_video.training import distributed
        from dalle2_video.training.engine import Engine

        self.rank, self.world, self.precision = distributed.rank(), distributed.world_size(), precision
        self.optim, self.data = optim(precision), data()
        self.engine = Engine(
            module or small_model(),
            self.optim,
            micro_batch=BATCH // self.world // 2,
            accumulation=2,
            device=torch.device("cpu"),
            zero_stage=stage,
        )
        self.state, self.module = self.engine.state, self.engine.model.module

    def step(self, step: int, factor: float = 1.0, norm_limit: float = math.inf) -> tuple[bool, float]:
        """Do one step; return whether it was applied and the mean loss. factor: of the first micro-batch's loss."""
        import torch

        from dalle2_video.training import distributed, ema

        losses = []
        mine = self.data[step].chunk(self.world)[self.rank].chunk(2)

        def loss(part: Any, factor: float) -> Any:
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            value = self.engine.model(part.to(dtype)).float().square().mean()
            losses.append(value.detach().clone())
            return value * factor

        micro_losses = [lambda: loss(mine[0], factor), lambda: loss(mine[1], 1.0)]
        applied = self.engine.step(step, micro_losses, norm_limit=norm_limit)
        if applied:
            ema.update(self.state, step + 1, self.optim.ema_decay)
        return applied, distributed.total(torch.stack(losses).mean()).item() / self.world

    def train(self, first: int, last: int) -> list[tuple[float, float]]:
        """Do steps [first, last); return loss and gradient norm of each."""
        found = []
        for step in range(first, last):
            applied, loss = self.step(step)
            assert applied
            found.append((loss, self.engine.grad_norm()))
        return found

    def digest(self) -> str:
        """Of everything that a checkpoint must keep, whole, the same on all ranks."""
        from dalle2_video.training import distributed
        from dalle2_video.training.zero_state import KINDS, untrained

        content = hashlib.sha256(str(self.state.updates).encode())
        for kind in KINDS:
            for name, full in self.state.gather(kind):
                if full is not None:
                    content.update(f"{kind}/{name}{tuple(full.shape)}".encode() + full.numpy().tobytes())
        for name, tensor in untrained(self.module):
            content.update(name.encode() + repr(tensor.tolist()).encode())
        return distributed.from_rank_zero(content.hexdigest)

    def forget(self) -> None:
        """Spoil what is not trained, so that loading has to bring it back."""
        from dalle2_video.training.zero_state import set_untrained, untrained

        set_untrained(self.module, {name: tensor * 0 for name, tensor in untrained(self.module)})

    def save(self, folder: Path, step: int) -> None:
        from dalle2_video.training import checkpoint, distributed

        distributed.from_rank_zero(lambda: folder.mkdir(exist_ok=True))
        checkpoint.save(folder, self.state, self.module, step)

    def load(self, folder: Path) -> int:
        from dalle2_video.training import checkpoint

        return checkpoint.load(folder, self.state, self.module)


def loads() -> list[tuple[str, int, int, int, int]]:
    """Which checkpoint is loaded where, as (precision, world size and stage that wrote it, that load it).

    Each pair of world sizes, each pair of stages, and each world size with each pair of stages in one of the roles.
    """
    found = []
    for source, target, stage in itertools.product(WORLDS, WORLDS, STAGES):
        others = STAGES if source == target else (stage, (stage + 1 + (source + target) % 3) % 4)
        found += [("fp32", source, stage, target, other) for other in others]
    for target, stage in itertools.product(WORLDS, STAGES):
        others = STAGES if target == 2 else (stage,)
        found += [("bf16", 2, stage, target, other) for other in others]
    return found


def checkpoint_name(world: int, stage: int, precision: str) -> str:
    return f"world{world}-stage{stage}-{precision}"


def matrix(folder: Path) -> dict:
    """Train and save at every stage; then load what every world size saved at every stage."""
    from dalle2_video.training import distributed

    world = distributed.world_size()
    used = {(stage, precision) for precision, source, stage, target, other in loads() if source == world} | {
        (other, precision) for precision, source, stage, target, other in loads() if target == world
    }
    trainings = {(stage, precision): Training(stage, precision) for stage, precision in sorted(used)}
    written, loaded = {}, {}
    for (stage, precision), training in trainings.items():
        name = checkpoint_name(world, stage, precision)
        before = training.train(0, SAVED_AT)
        training.save(folder / name, SAVED_AT)
        written[name] = {
            "digest": training.digest(),
            "before": before,
            "rest": training.train(SAVED_AT, STEPS),
            "end": training.digest(),
        }

    def wait_for_all_worlds() -> None:
        (folder / f"written-{world}").touch()
        deadline = time.monotonic() + 180
        while not all((folder / f"written-{other}").exists() for other in WORLDS):
            assert time.monotonic() < deadline, "another world size did not write"
            time.sleep(0.05)

    distributed.from_rank_zero(wait_for_all_worlds)
    for precision, source, stage_from, target, stage_to in loads():
        if target != world:
            continue
        name, training = checkpoint_name(source, stage_from, precision), trainings[stage_to, precision]
        training.forget()
        answer: dict[str, Any] = {"step": training.load(folder / name), "digest": training.digest()}
        if stage_from == stage_to or source == target:
            answer |= {"rest": training.train(SAVED_AT, STEPS), "end": training.digest()}
        loaded[f"{name} to stage{stage_to}"] = answer
    return {"written": written, "loaded": loaded}


def engines(folder: Path) -> dict:
    """On two ranks, at every stage: initial masters, losses, skipped steps, snapshots, exports."""
    import torch
    from safetensors.torch import save_file

    from dalle2_video.training import checkpoint, distributed
    from dalle2_video.training.export import export
    from dalle2_video.training.zero_state import EMA, MASTER, untrained

    initial = small_model().state_dict()

    def made(name: str) -> Path:
        distributed.from_rank_zero(lambda: (folder / name).mkdir())
        return folder / name

    def at_start(training: Training) -> dict:
        return {
            kind: all(full is None or torch.equal(full, initial[name]) for name, full in training.state.gather(kind))
            for kind in (MASTER, EMA)
        }

    def skipped(training: Training, here: Path) -> dict:
        """Steps whose gradient is not finite on the last rank alone."""
        found: dict[str, Any] = {"before": training.digest(), "applied_or_finite": [], "after": []}
        for factor in (float("nan"), float("inf")):
            applied, _ = training.step(SAVED_AT, factor if training.rank == training.world - 1 else 1.0)
            norm = training.engine.grad_norm()
            everywhere = distributed.gather_at_zero((applied, math.isfinite(norm)))
            found["applied_or_finite"] += [flag for both in everywhere or [] for flag in both]
            found["after"].append(training.digest())
        training.save(here, SAVED_AT + 1)
        found |= {"updates": training.state.updates, "rest": training.train(4, 6), "end": training.digest()}
        training.load(here)
        return found | {"resumed_rest": training.train(4, 6), "resumed_end": training.digest()}

    def limited(training: Training) -> dict:
        """A step whose gradient norm is beyond a limit, and the same step within one that is just as large."""
        before = training.digest()
        applied, _ = training.step(SAVED_AT, norm_limit=0.0)
        norm, after = training.engine.grad_norm(), training.digest()
        applied_below, _ = training.step(SAVED_AT, norm_limit=norm * 0.999)
        applied_within, _ = training.step(SAVED_AT, norm_limit=norm)
        return {
            "applied": [applied, applied_below, applied_within],
            "norms": [norm, training.engine.grad_norm()],
            "unchanged": after == before,
            "moved": training.digest() != before,
        }

    def snapshot(training: Training, here: Path) -> dict:
        """A checkpoint that is written after training went on."""
        taken, at = checkpoint.snapshot(training.state, training.module, 6), training.digest()
        training.train(6, 7)
        checkpoint.finish(here, taken, checkpoint.try_write(here, taken))
        distributed.from_rank_zero(lambda: checkpoint.verify(here))
        moved = training.digest() != at
        training.load(here)
        return {"moved": moved, "same": training.digest() == at}

    def exported(training: Training, here: Path, expected: Path) -> dict:
        record = export(here, training.state, {"config.json": "{}"})
        full = {name: tensor for name, tensor in training.state.gather(EMA) if tensor is not None}
        extras = dict(untrained(training.module))
        if training.rank == 0:
            save_file(full | extras, expected)
        return {"export": record, "untrained": sorted(extras)}

    found = {}
    for precision in PRECISIONS:
        for stage in STAGES:
            key = f"stage{stage}-{precision}"
            training = Training(stage, precision)
            found[key] = {"initial": at_start(training), "names": list(training.state.slots)}
            found[key]["losses"] = training.train(0, SAVED_AT)
            found[key]["skipped"] = skipped(training, folder / f"skipped-{key}")
            found[key]["limited"] = limited(training)
            found[key]["snapshot"] = snapshot(training, made(f"snapshot-{key}"))
            expected = folder / f"expected-{key}.safetensors"
            found[key] |= exported(training, made(f"export-{key}"), expected)
    return found


def failure(action: Callable[[], object]) -> list[str]:
    """Return what an action raised, by rank, on rank 0; empty texts where it did not."""
    from dalle2_video.training import distributed

    try:
        action()
        text = ""
    except (OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
    return distributed.gather_at_zero(text) or []


def full_disks(folder: Path, training: Training) -> dict:
    """Saves and an export into folders where one file is a device that is always full."""
    from dalle2_video.training import checkpoint, distributed
    from dalle2_video.training.export import export

    before = training.digest()

    def with_full(name: str) -> Path:
        def make() -> Path:
            broken = folder / f"full-{name}"
            broken.mkdir()
            (broken / name).symlink_to("/dev/full")
            return broken

        return distributed.from_rank_zero(make)

    shard, state, weights = map(with_full, (checkpoint.shard_name(1, 2), checkpoint.STATE, "model.safetensors"))
    found: dict[str, Any] = {
        "shard": failure(lambda: training.save(shard, 3)),
        "state": failure(lambda: training.save(state, 3)),
        "export": failure(lambda: export(weights, training.state, {})),
    }
    found["untouched"] = training.digest() == before
    training.train(2, 3)
    training.save(folder / "after", 3)
    distributed.from_rank_zero(lambda: checkpoint.verify(folder / "after"))
    return found


def refusals(written: Path, training: Training) -> dict:
    """What loading says of a checkpoint whose state was changed."""
    from dalle2_video.training import checkpoint, distributed

    path = written / checkpoint.STATE
    original = distributed.from_rank_zero(path.read_text)

    def refusal(change: Callable[[dict], object]) -> list[str]:
        content = json.loads(original)
        change(content)
        distributed.from_rank_zero(lambda: path.write_text(json.dumps(content)))
        return failure(lambda: training.load(written))

    return {
        "groups": refusal(lambda content: content["groups"][0].update(weight_decay=0.5)),
        "shapes": refusal(lambda content: content["parameters"]["body.0.weight"].update(shape=[7, 13])),
        "buffers": refusal(lambda content: content["untrained"].pop("count")),
        "format": refusal(lambda content: content.pop("format")),
        "nothing": refusal(lambda content: None),
    }


def troubles(folder: Path) -> dict:
    """Full disks, refusals and peaks of memory on two ranks."""
    found = {"peaks": peaks(folder)}
    training = Training(3, "fp32")
    training.train(0, 2)
    return found | {"full": full_disks(folder, training), "refused": refusals(folder / "after", training)}


def memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(field)


def extra_bytes(action: Callable[[], object]) -> int:
    """Return by how much an action's peak of resident memory is above what was resident before."""
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    action()
    return (memory_kib("VmHWM") - before) * 1024


def peaks_of(training: Training, folder: Path) -> dict:
    from dalle2_video.training import checkpoint, distributed
    from dalle2_video.training.export import export

    training.train(0, 1)
    found = {"step": extra_bytes(lambda: training.train(1, 2))}
    found["save"] = extra_bytes(lambda: training.save(folder, 2))
    found["load"] = extra_bytes(lambda: training.load(folder))
    found["steady"] = memory_kib("VmRSS") * 1024
    distributed.from_rank_zero((folder / "export").mkdir)
    found["export"] = extra_bytes(lambda: export(folder / "export", training.state, {}))
    taken = []
    found["snapshot"] = extra_bytes(
        lambda: taken.append(checkpoint.snapshot(training.state, training.module, 2)),
    )
    found["state"] = sum(tensor.nbytes for tensor in taken[0].tensors.values())
    return found


def peaks(folder: Path) -> dict:
    """Memory that saving, loading and exporting a model with one large parameter take, by stage and rank."""
    import torch
    from torch import nn

    from dalle2_video.training import distributed

    found = {}
    for stage in PEAK_STAGES:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(7, 64), nn.Linear(64, 1 << 18), nn.Linear(1 << 18, 1, bias=False))
        largest = max(parameter.nbytes for parameter in module.parameters())
        answer = peaks_of(Training(stage, "fp32", module), folder / f"stage{stage}") | {"largest": largest}
        found[f"stage{stage}"] = distributed.gather_at_zero(answer)
    return found


COMMANDS = {"matrix": matrix, "engines": engines, "troubles": troubles}


def main(command: str, folder: Path, worlds: list[int]) -> bool:
    forked_ranks.preload()

    def work(rank: int, world: int) -> None:
        from dalle2_video.training import distributed

        distributed.start(threads=1)
        answer = COMMANDS[command](folder)
        if rank == 0:
            (folder / f"answer-{world}.json").write_text(json.dumps(answer))
        distributed.end()

    return forked_ranks.run(worlds, work)


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1], Path(sys.argv[2]), list(map(int, sys.argv[3:]))))
