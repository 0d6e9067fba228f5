"""Real DeepSpeed ranks that run the real Trainer on a real store: `python trainer_ranks.py FOLDER WORLD ...`.

One process forks every rank of every world size, and a rank runs many attempts, each with a Trainer and an engine of
its own. FOLDER holds what all attempts share (`prepare`),
the plan, the runs' checkpoints, and in the end rank 0's answer for each world size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from dalle2_video.config import (
    ClipConfig,
    DecoderConfig,
    DiffusionConfig,
    DistillationConfig,
    OptimConfig,
    PriorConfig,
    SpatialSrConfig,
    TemporalSrConfig,
    TextEncoderConfig,
    TransformerConfig,
    UnetConfig,
)
from dalle2_video.data_config import AugmentConfig, CaptionConfig, DataConfig, WindowConfig
from dalle2_video.runtime import RuntimeConfig
from tools.bench import forked_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, BATCH, SEED = 6, 12, 5
EMBEDDINGS = "clip"
# The sample clips have 19 to 36 frames at 8 fps, so that most windows stand still at their end.
LOW = WindowConfig(size=16, num_frames=3, stride=10)
HIGH = WindowConfig(size=16, num_frames=6, stride=5)
DATA = DataConfig(
    frame_sizes=(8, 16), fps=8.0, min_frames=30, short_clips="pad", clips_per_shard=12, vocab_size=300, text_context=48,
    val_fraction=0.3,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One stage and how it is trained."""

    stage: Literal["clip", "prior", "decoder", "spatial_sr", "temporal_sr"]
    optim: dict[str, Any] = dataclasses.field(default_factory=dict)
    runtime: dict[str, Any] = dataclasses.field(default_factory=dict)
    dropout: float = 0.0
    diffusion: dict[str, Any] = dataclasses.field(default_factory=dict)
    distillation: dict[str, Any] = dataclasses.field(default_factory=dict)
    teacher: str | None = None
    """Run whose export the student learns from."""
    joint_images: int = 0
    """Images beside each video, of a decoder."""
    strides: tuple[int, ...] = ()
    """Strides to draw from, of a decoder or a super-resolution stage."""
    joined: bool = False
    mirror: bool = False

    def config(self) -> Any:
        """Return the stage's part of a recipe."""
        settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "lr": 1e-3, "warmup_steps": 4}
        optim = OptimConfig(**settings | {"ema_decay": 0.9, "lr_decay": "cosine"} | self.optim)
        transformer = TransformerConfig(dim=16, depth=2, heads=2, dropout=self.dropout)
        if self.stage == "clip":
            text = TextEncoderConfig(**dataclasses.asdict(transformer))
            return ClipConfig(
                window=LOW, patch_size=8, embed_dim=16, text=text, spatial=transformer, temporal=transformer,
                optim=optim,
            )  # fmt: skip
        diffusion = DiffusionConfig(**{"condition_dropout": 0.3} | self.diffusion)
        if self.stage == "prior":
            return PriorConfig(transformer=transformer, diffusion=diffusion, optim=optim)
        unet = UnetConfig(
            dim=16,
            dim_mults=(1, 2),
            blocks=1,
            spatial_attention=(False, True),
            cross_attention=(False, True),
            temporal_attention=(True, True),
            temporal_convolution=(True, False),
            head_dim=16,
            dropout=self.dropout,
        )
        distillation = DistillationConfig(**self.distillation)
        shared: dict[str, Any] = {"unet": unet, "diffusion": diffusion, "distillation": distillation, "optim": optim}
        shared["strides"] = tuple(self.strides)
        if self.stage == "decoder":
            return DecoderConfig(window=LOW, joint_images=self.joint_images, **shared)
        if self.stage == "temporal_sr":
            return TemporalSrConfig(window=HIGH, **shared)
        return SpatialSrConfig(window=HIGH, low_size=8, crop_size=8, **shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One Trainer from start to end."""

    run: str
    """Folder of the run; a later attempt of the same run resumes."""
    case: Case
    stop_at: int | None = None
    """The step after which the attempt is to end, by a signal to its last rank."""
    after: str | None = None
    """Run that is waited for and whose checkpoints this one starts from."""


# In the test's process.


def prepare(raw: Path, folder: Path) -> None:
    """Make what all attempts share: a store of padded clips, a CLIP with fresh weights, its embeddings."""
    import torch
    from safetensors.torch import save_file

    from dalle2_video.data import celebv_text, join, preprocess
    from dalle2_video.data.decode_process import DecodeProcess
    from dalle2_video.data.store import Store
    from dalle2_video.generation.embed import EmbedArray
    from dalle2_video.models.factory import WEIGHTS, ModelDims, build, export_files

    store, staging = folder / "store", folder / "staging"

    def publish(items: Any) -> None:
        for staged, relative in items:
            (store / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(staged, store / relative)

    clips, records = celebv_text.scan(raw, DATA), []
    publish(preprocess.create_store(staging / "create", clips, DATA))
    with DecodeProcess(DATA) as decoder:
        for task in range(preprocess.num_tasks(len(clips), DATA)):
            result = preprocess.run_task(task, clips, raw, DATA, staging / f"task{task}", decoder)
            publish(result.published)
            records.append(result.record)
    publish(join.finish(records, clips, DATA, store, staging / "finish"))

    export, config, tokenizer = folder / "clip", Case(stage="clip").config(), Store(store).tokenizer()
    dims = ModelDims(
        vocab_size=tokenizer.vocab_size, text_context=DATA.text_context, embed_dim=config.embed_dim, text_dim=16
    )
    torch.manual_seed(0)
    export.mkdir()
    save_file(build(config, dims).state_dict(), export / WEIGHTS)
    for name, text in export_files("clip", config, dims, fps=DATA.fps, tokenizer_json=tokenizer.to_json()).items():
        (export / name).write_text(text)

    array = EmbedArray(store=store, clip_export=export, name=EMBEDDINGS, hop=4, device=torch.device("cpu"))
    publish(array.prepare(staging / "embeddings"))
    for task in range(array.num_tasks):
        publish(array.run_task(task, staging / f"embed{task}", lambda share: None)[0])


def run_ranks(folder: Path, plan: dict[int, list[Attempt]]) -> dict[int, list[dict]]:
    """Run the attempts of each world size one after the other, all world sizes at once; return their answers.

    An answer: "outcome", "metrics" (records without times), "seen" ([sample, digest of what the loss got for it] of
    training, in no order).
    """
    content = {world: [dataclasses.asdict(attempt) for attempt in attempts] for world, attempts in plan.items()}
    (folder / "plan.json").write_text(json.dumps(content))
    started = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder, *map(str, plan)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert started.returncode == 0, started.stderr[-5000:]
    return {world: json.loads((folder / f"answer-{world}.json").read_text()) for world in plan}


def commits(folder: Path, run: str) -> list[tuple[int, Path]]:
    """Return the committed checkpoints of a run as (step, folder), oldest first."""
    found = (folder / "runs" / run / "checkpoints").glob("step-*")
    return sorted((int(path.name.removeprefix("step-")), path) for path in found)


# In the ranks.


class Control:
    """A run folder as the Trainer sees it: every commit is kept."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run, self.run_folder = folder, run, folder / "runs" / run
        self.metrics: list[dict[str, Any]] = []

    def checkpoints(self) -> Sequence[tuple[int, Path]]:
        return commits(self.folder, self.run)

    def stage_commit(self) -> Path:
        staged = self.run_folder / "staged"
        staged.mkdir(parents=True)
        return staged

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        (self.run_folder / "checkpoints").mkdir(exist_ok=True)
        staged.rename(self.run_folder / "checkpoints" / f"step-{step:08d}")

    def skipped(self, folder: Path) -> None:
        raise AssertionError(f"{folder} is damaged")

    def publish_export(self, staged: Path, record: dict[str, Any]) -> None:
        staged.rename(self.run_folder / "export")

    def append(self, kind: str, record: dict[str, Any]) -> None:
        from dalle2_video.training.window import MACHINE_METRICS

        if kind == "metrics":
            self.metrics.append({name: value for name, value in record.items() if name not in MACHINE_METRICS})

    def beat(self, status: dict[str, Any]) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def save_requested(self) -> bool:
        return False


class RecordedDraws:
    """Draws that add what they give to a digest for each sample."""

    def __init__(self, draws: Any, digests: list[Any]) -> None:
        self.draws, self.digests = draws, digests

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        def draw(purpose: str, *arguments: Any) -> Any:
            values = getattr(self.draws, kind)(purpose, *arguments)
            for digest, row in zip(self.digests, values.numpy(), strict=True):
                digest.update(f"{kind}|{purpose}|".encode() + row.tobytes())
            return values

        return draw

    def of_images(self, images: int) -> RecordedDraws:
        return RecordedDraws(self.draws.of_images(images), [one for one in self.digests for _ in range(images)])


class WatchedStage:
    """A stage whose training loss notes what it gets, and that sends its own process the stop signal when told to."""

    def __init__(self, stage: Any, stop_at: int | None) -> None:
        self.stage, self.stop_at = stage, stop_at
        self.seen: list[tuple[int, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def loss(self, model: Any, batch: dict[str, Any], draws: Any) -> Any:
        import torch

        if not torch.is_grad_enabled():  # validation
            return self.stage.loss(model, batch, draws)
        samples = batch["sample"].tolist()
        digests = [hashlib.sha256() for _ in samples]
        for name in sorted(batch):
            for digest, row in zip(digests, batch[name].numpy(), strict=True):
                digest.update(f"{name}|".encode() + row.tobytes())
        result = self.stage.loss(model, batch, RecordedDraws(draws, digests))
        self.seen += [(sample, digest.hexdigest()) for sample, digest in zip(samples, digests, strict=True)]
        if self.stop_at is not None and samples[0] // BATCH == self.stop_at - 1:
            signal.raise_signal(signal.SIGTERM)
        return result


def run_attempt(folder: Path, attempt: Attempt, device: Any, watchdog: Any) -> dict[str, Any]:
    from dalle2_video.stages import STAGES, StageInputs
    from dalle2_video.training import distributed
    from dalle2_video.training.loop import Trainer

    case, runs = attempt.case, folder / "runs"

    def take_over() -> None:
        assert attempt.after is not None
        deadline = time.monotonic() + 180
        while not (runs / attempt.after / "ENDED").exists():
            assert time.monotonic() < deadline, f"{attempt.after} did not end"
            time.sleep(0.05)
        shutil.copytree(runs / attempt.after / "checkpoints", runs / attempt.run / "checkpoints")

    if attempt.after is not None:
        distributed.from_rank_zero(take_over)
    settings: dict[str, Any] = {"log_every": 1, "validate_every": 3, "checkpoint_every": 100, "torch_threads": 1}
    runtime = RuntimeConfig(**settings | case.runtime)
    inputs = StageInputs(
        config=case.config(),
        seed=SEED,
        store=folder / "store",
        captions=CaptionConfig(choose="joined" if case.joined else "one"),
        augment=AugmentConfig(mirror=case.mirror),
        exports={"clip": folder / "clip"},
        teacher=runs / case.teacher / "export" if case.teacher is not None else None,
        embeddings=EMBEDDINGS,
        activation_checkpointing=runtime.activation_checkpointing,
    )
    stops = attempt.stop_at if distributed.rank() == distributed.world_size() - 1 else None
    stage, control = WatchedStage(STAGES[case.stage](inputs), stops), Control(folder, attempt.run)
    trainer = Trainer(
        stage,  # type: ignore[arg-type]
        name=case.stage,
        seed=SEED,
        runtime=runtime,
        control=control,
        watchdog=watchdog,
        device=device,
    )
    outcome = trainer.run()
    distributed.from_rank_zero((runs / attempt.run / "ENDED").touch)
    seen = [pair for of_rank in distributed.gather_at_zero(stage.seen) or [] for pair in of_rank]
    return {"outcome": outcome, "metrics": control.metrics, "seen": seen}


def main(folder: Path, worlds: list[int]) -> bool:
    forked_ranks.preload()

    def work(rank: int, world: int) -> None:
        from dalle2_video.training import distributed
        from dalle2_video.training.watchdog import Watchdog

        device = distributed.start(threads=1)
        watchdog = Watchdog(minimum_s=300, factor=1000, on_hang=lambda hang: print(hang.stack, file=sys.stderr))
        answers = []
        for content in json.loads((folder / "plan.json").read_text())[str(world)]:
            attempt = Attempt(**content | {"case": Case(**content["case"])})
            answers.append(run_attempt(folder, attempt, device, watchdog))
        if rank == 0:
            (folder / f"answer-{world}.json").write_text(json.dumps(answers))
        distributed.end()
        watchdog.stop()

    return forked_ranks.run(worlds, work)


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), list(map(int, sys.argv[2:]))))
