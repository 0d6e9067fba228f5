"""The one training loop of all stages.

Optimiser step s consumes the global samples [s*B, (s+1)*B). All state is the step, the weights, the moments and the
EMA; order, crops, captions, noise and dropout are functions of seed, purpose and sample (or step) number. So a resumed
run equals an undisturbed one to the bit at the same world size, and any other world size sees the same samples with
the same noise.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dalle2_video.data.batches import batch_samples
from dalle2_video.data.draws import Draws
from dalle2_video.data.keyed_random import key
from dalle2_video.data.loading import loader
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.stages.stage import Batch, Metrics, Stage
from dalle2_video.training import checkpoint, distributed, ema
from dalle2_video.training.engine import Engine, learning_rate
from dalle2_video.training.export import export
from dalle2_video.training.stop import PREEMPT, StopFlag

log = logging.getLogger(__name__)
VALIDATION_BATCHES = 2
Outcome = Literal["done", "stopped", "preempted"]


class RunControl(Protocol):
    """What the loop asks of the run it trains for; rank 0 alone calls it."""

    def checkpoints(self) -> Sequence[tuple[int, Path]]:
        """Committed checkpoints as (step, folder), oldest first."""

    def stage_commit(self) -> Path:
        """Return an empty folder, visible to all ranks, for the next checkpoint."""

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        """Publish a complete checkpoint and remove the ones no longer needed."""

    def publish_export(self, staged: Path, record: dict[str, Any]) -> None:
        """Publish the exported weights and record the run as done."""

    def append(self, kind: Literal["metrics", "events"], record: dict[str, Any]) -> None:
        """Append to the attempt's metrics or events."""

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers how far the attempt is."""

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""


class Trainer:
    """One attempt at training one stage; every rank makes one and calls `run`."""

    def __init__(
        self, stage: Stage, *, seed: int, runtime: RuntimeConfig, control: RunControl, device: torch.device
    ) -> None:
        """Build model, optimiser and loaders; nothing is read from a checkpoint yet."""
        self.stage, self.seed, self.runtime, self.control, self.device = stage, seed, runtime, control, device
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.micro_batch, self.accumulation = runtime.accumulation(stage.optim.batch_size, self.world_size)
        torch.manual_seed(key(seed, "weights"))
        stage.to(device)
        self.engine = Engine(
            stage.build().to(device),
            stage.optim,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            device=device,
            zero_stage=runtime.zero_stage,
        )
        # Opened now: a split without clips is refused before the first step, not at the first validation.
        self.train_set, self.val_set = stage.dataset("train"), stage.dataset("val")
        self.flag = StopFlag(control.stop_requested if self.rank == 0 else lambda: False)

    def run(self) -> Outcome:
        """Train from the newest sound checkpoint to the last step, then export; return how it ended."""
        first_step = self._resume()
        steps = self.stage.optim.steps
        micro_batches = loader(
            self.train_set,
            first_step=first_step,
            last_step=steps,
            batch_size=self.stage.optim.batch_size,
            rank=self.rank,
            world=self.world_size,
            micro=self.micro_batch,
            workers=self.runtime.workers,
            prefetch=self.runtime.prefetch,
            pin=self.device.type == "cuda",
        )
        if self.rank == 0:
            self.control.append("events", {"event": "start", "step": first_step, "world_size": self.world_size})
        with contextlib.closing(micro_batches):
            flag = self._train(first_step, steps, micro_batches)
        if flag:
            return "preempted" if flag == PREEMPT else "stopped"
        self._export()
        return "done"

    def _train(self, first_step: int, last_step: int, micro_batches: Iterator[Batch]) -> int:
        """Do steps [first_step, last_step); return the flag that ended them early, or 0. The last step is saved."""
        window = _Window()
        for step in range(first_step, last_step):
            batches = [self._to_device(next(micro_batches)) for _ in range(self.accumulation)]
            flag = self._step(step, batches, window)
            done, last = step + 1, step + 1 == last_step
            if self.rank == 0:
                self.control.beat({"step": done, "steps": last_step})
            if last or done % self.runtime.log_every == 0:
                self._log(done, window)
                window = _Window()
            if last or done % self.runtime.validate_every == 0:
                self._validate(done)
            if last or flag or done % self.runtime.checkpoint_every == 0:
                self._save(done)
            if flag and not last:
                return flag
        return 0

    def _resume(self) -> int:
        """Load the newest checkpoint whose files are sound; return the number of steps done."""
        chosen = distributed.from_rank_zero(self._newest_sound)
        if chosen is None:
            return 0
        step = checkpoint.load(chosen, self.engine.state, self.engine.model.module)
        log.info("resumed at step %d from %s", step, chosen)
        return step

    def _newest_sound(self) -> Path | None:
        for _, folder in reversed(self.control.checkpoints()):
            try:
                checkpoint.verify(folder)
            except checkpoint.DamagedCheckpointError as error:
                log.warning("damaged checkpoint skipped, the one before is used: %s", error)
                self.control.append("events", {"event": "damaged checkpoint", "message": str(error)})
            else:
                return folder
        return None

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _step(self, step: int, batches: list[Batch], window: _Window) -> int:
        """Do one optimiser step; return the stop flag that all ranks agree on."""
        started_s = time.perf_counter()
        # Dropout is the one user of torch's global generator.
        torch.manual_seed(key(self.seed, "dropout", step, self.rank))
        losses: list[Tensor] = []
        metrics: list[Metrics] = []

        def micro_loss(batch: Batch) -> Callable[[], Tensor]:
            def compute() -> Tensor:
                draws = Draws(self.seed, batch["sample"], self.device)
                loss, values = self.stage.loss(self.engine.model, batch, draws)
                losses.append(loss.detach())
                metrics.append(values)
                return loss

            return compute

        if self.engine.step(step, [micro_loss(batch) for batch in batches]):
            ema.update(self.engine.state, step + 1, self.stage.optim.ema_decay)
        # One reduction carries loss, metrics and both flags, so that every rank stops at the same step.
        flag = self.flag.poll()
        local = {"loss": torch.stack(losses).mean()}
        local |= {name: torch.stack([values[name].detach() for values in metrics]).mean() for name in metrics[0]}
        names = sorted(local)
        vector = torch.stack([local[name].float() for name in names] + [torch.tensor(0.0, device=self.device)] * 2)
        if flag:
            vector[len(names) + flag - 1] = 1.0
        vector = distributed.total(vector).cpu()
        means = {name: vector[index].item() / self.world_size for index, name in enumerate(names)}
        window.add(means | {"grad_norm": self.engine.grad_norm()}, time.perf_counter() - started_s)
        return max((value for value in (1, 2) if vector[len(names) + value - 1] > 0), default=0)

    def _log(self, step: int, window: _Window) -> None:
        if self.rank == 0:
            samples = self.stage.optim.batch_size
            self.control.append(
                "metrics",
                window.means()
                | {
                    "step": step,
                    "samples": step * samples,
                    "split": "train",
                    "lr": learning_rate(step - 1, self.stage.optim),
                    "samples_per_second": samples / window.step_seconds(),
                },
            )

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Record the mean validation loss of the current weights over a fixed set of samples with fixed noise."""
        self.engine.model.eval()
        totals: dict[str, Tensor] = {}
        for number in range(VALIDATION_BATCHES):
            samples = batch_samples(
                number, self.stage.optim.batch_size, self.rank, self.world_size, self.micro_batch, self.accumulation
            )
            for micro in samples:
                batch = self._to_device(self.val_set.__getitems__(micro))
                draws = Draws(key(self.seed, "validation"), batch["sample"], self.device)
                loss, metrics = self.stage.loss(self.engine.model, batch, draws)
                for name, value in {"loss": loss, **metrics}.items():
                    totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.float()
        self.engine.model.train()
        names = sorted(totals)
        count = VALIDATION_BATCHES * self.accumulation * self.world_size
        means = distributed.total(torch.stack([totals[name] for name in names])).cpu() / count
        if self.rank == 0:
            record = {name: means[index].item() for index, name in enumerate(names)}
            self.control.append("metrics", record | {"step": step, "split": "val"})

    def _save(self, step: int) -> None:
        staged = distributed.from_rank_zero(self.control.stage_commit)
        try:
            checkpoint.save(staged, self.engine.state, self.engine.model.module, step)
            distributed.from_rank_zero(lambda: self.control.commit_checkpoint(step, staged))
        except BaseException:
            if self.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)
            raise

    def _export(self) -> None:
        staged = distributed.from_rank_zero(self.control.stage_commit)
        record = export(staged, self.engine.state, self.stage.export_files())
        distributed.from_rank_zero(lambda: self.control.publish_export(staged, record))


class _Window:
    """Means of the metrics between two records."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._seconds: list[float] = []

    def add(self, values: dict[str, float], seconds: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._seconds.append(seconds)

    def means(self) -> dict[str, float]:
        return {name: value / len(self._seconds) for name, value in self._sums.items()}

    def step_seconds(self) -> float:
        return sum(self._seconds) / len(self._seconds)
