"""The one training loop of all stages.

Optimiser step s consumes the global samples [s*B, (s+1)*B). All state is the step, the weights, the moments and the
EMA; order, crops, captions, noise and dropout are functions of seed, purpose and sample (or step) number. So a resumed
run equals an undisturbed one to the bit at the same world size, and any other world size sees the same samples with
the same noise. In records and messages step 1 is the first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dalle2_video.data.batches import batch_samples
from dalle2_video.data.draws import Draws
from dalle2_video.data.keyed_random import key
from dalle2_video.data.loading import loader
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.stages.stage import Batch, JudgedStage, Metrics, Stage
from dalle2_video.training import checkpoint, distributed, ema, judging
from dalle2_video.training.commits import Commits
from dalle2_video.training.engine import Engine, learning_rate
from dalle2_video.training.export import export
from dalle2_video.training.health import StepHealth, spread_nonfinite
from dalle2_video.training.run_control import RunControl
from dalle2_video.training.stop import PREEMPT, StopFlag, StopSignals, Switch
from dalle2_video.training.watchdog import Watchdog
from dalle2_video.training.window import Window

log = logging.getLogger(__name__)
VALIDATION_BATCHES = 2
Outcome = Literal["done", "stopped", "preempted"]


class Trainer:
    """One attempt at training one stage; every rank makes one and calls `run`."""

    def __init__(
        self,
        stage: Stage,
        *,
        name: str,
        seed: int,
        runtime: RuntimeConfig,
        control: RunControl,
        watchdog: Watchdog,
        device: torch.device,
        signals: StopSignals | None = None,
    ) -> None:
        """Build model, optimiser and loaders; nothing is read from a checkpoint yet.

        name: the stage's on the command line, for messages; watchdog: is told of every phase; signals: those caught
        since the process started.
        """
        self.stage, self.seed, self.runtime, self.control, self.device = stage, seed, runtime, control, device
        self.watchdog = watchdog
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.micro_batch, self.accumulation = runtime.accumulation(stage.optim.batch_size, self.world_size)
        torch.manual_seed(key(seed, "weights"))
        watchdog.phase("building the model", start=True)
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
        self.flag = StopFlag(control.stop_requested if self.rank == 0 else lambda: False, signals)
        self.save_switch = Switch(control.save_requested if self.rank == 0 else lambda: False)
        self.save_asked = False
        """Whether a checkpoint is to be made after this step, as all ranks agree."""
        self.commits = Commits(control, self.engine.state, self.engine.model.module)
        self.window = Window()
        policies = {
            "--on-nonfinite skip": runtime.on_nonfinite == "stop",
            "--on-spike record": runtime.on_spike == "stop",
        }
        go_on = " or ".join([words for words, stops in policies.items() if stops] or ["a larger --max-skipped"])
        self.health = StepHealth(
            on_nonfinite=runtime.on_nonfinite,
            on_spike=runtime.on_spike,
            skip_spikes=stage.optim.skip_spikes,
            max_skipped=runtime.max_skipped,
            remedy=f"the weights are as before. Lower the learning rate, as a new run (--{name}.optim.lr, now "
            f"{stage.optim.lr:g}), or go on over such steps with {go_on}",
        )

    def run(self) -> Outcome:
        """Train from the newest sound checkpoint to the last step, then export; return how it ended."""
        resumed_from, first_step = self._resume()
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
        start = {"event": "start", "step": first_step, "world_size": self.world_size}
        if resumed_from is not None:
            start |= {"resumed_from": resumed_from.name, "message": f"goes on from {resumed_from.name}"}
        self._event(start)
        with contextlib.closing(micro_batches):
            flag = self._train(first_step, steps, micro_batches)
        if flag:
            return "preempted" if flag == PREEMPT else "stopped"
        self._export()
        return "done"

    def _train(self, first_step: int, last_step: int, micro_batches: Iterator[Batch]) -> int:
        """Do steps [first_step, last_step); return the flag that ended them early, or 0. The last step is saved."""
        retry = 0
        # Told while it started: there is nothing new to save, and a node to give back.
        if flag := distributed.highest(self.flag.poll(), self.device):
            return flag
        for step in range(first_step, last_step):
            done, last = step + 1, step + 1 == last_step
            self.watchdog.phase(f"waiting for the data of step {done}")
            started_s = time.perf_counter()
            batches = [self._to_device(next(micro_batches)) for _ in range(self.accumulation)]
            data_s = time.perf_counter() - started_s
            self.watchdog.phase(f"step {done}")
            flag = self.step(step, batches)
            step_s = time.perf_counter() - started_s
            self.window.add_times(step_s, data_s)
            self.watchdog.step_took(done, step_s)
            if self.rank == 0:
                self.control.beat({"step": done, "steps": last_step})
            if (last or done % self.runtime.log_every == 0) and self.window.updates:
                self._log(done)
            if last or done % self.runtime.validate_every == 0:
                self._validate(done)
            ends = last or flag > 0
            # After a save that failed the switch waits for the next try, as everything does.
            asked = self.save_asked and not retry
            if ends or asked or done == retry or done % self.runtime.checkpoint_every == 0:
                saved = self._save(done, must=ends)
                retry = 0 if saved else done + max(1, self.runtime.checkpoint_every // 10)
            if flag and not last:
                return flag
        return 0

    def _resume(self) -> tuple[Path | None, int]:
        """Load the newest checkpoint whose files are sound, if there is one; return it and the number of steps done."""
        self.watchdog.phase("loading the checkpoint", start=True)
        found = self.commits.load()
        if found is None:
            return None, 0
        folder, step, remembered = found
        self.window = Window(remembered["window"])
        self.health.restore(remembered["health"])
        return folder, step

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def step(self, step: int, batches: list[Batch]) -> int:
        """Do one optimiser step; return the stop flag that all ranks agree on. Raises Diverged on all ranks alike."""
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
                return spread_nonfinite(loss)

            return compute

        applied = self.engine.step(step, [micro_loss(batch) for batch in batches], norm_limit=self.health.norm_limit())
        if applied:
            ema.update(self.engine.state, step + 1, self.stage.optim.ema_decay)
        # One reduction carries loss, metrics and flags, so that every rank stops, or saves, at the same step.
        flag = self.flag.poll()
        local = {"loss": torch.stack(losses).mean()}
        local |= {name: torch.stack([values[name].detach() for values in metrics]).mean() for name in metrics[0]}
        names = sorted(local)
        vector = torch.stack([local[name].float() for name in names] + [torch.tensor(0.0, device=self.device)] * 3)
        if flag:
            vector[len(names) + flag - 1] = 1.0
        if self.save_switch.poll():
            vector[-1] = 1.0
        vector = distributed.total(vector).cpu()
        means = {name: vector[index].item() / self.world_size for index, name in enumerate(names)}
        means["grad_norm"] = self.engine.grad_norm()
        self.save_asked = vector[-1].item() > 0
        self.window.add(means, applied=applied)
        if event := self.health.judge(step + 1, means["loss"], means["grad_norm"], applied=applied):
            self._event(event)
        self.health.check()
        return max((value for value in (1, 2) if vector[len(names) + value - 1] > 0), default=0)

    def _event(self, event: dict[str, Any]) -> None:
        if self.rank == 0:
            self.control.append("events", event)

    def _log(self, step: int) -> None:
        """Record what happened since the last record, and begin the next."""
        if self.rank == 0:
            optim = self.stage.optim
            where = {"step": step, "samples": step * optim.batch_size, "split": "train"}
            rate = {"lr": learning_rate(step - 1, optim)}
            self.control.append("metrics", self.window.record(optim.batch_size) | where | rate)
        self.window = Window()

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Record the mean validation loss of the current weights over a fixed set of samples with fixed noise."""
        self.watchdog.phase(f"validation after step {step}")
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
        figures = self._figures(step)
        self.engine.model.train()
        names = sorted(totals)
        count = VALIDATION_BATCHES * self.accumulation * self.world_size
        means = distributed.total(torch.stack([totals[name] for name in names])).cpu() / count
        if self.rank == 0:
            record = {name: means[index].item() for index, name in enumerate(names)}
            self.control.append("metrics", record | figures | {"step": step, "split": "val"})

    def _figures(self, step: int) -> dict[str, float]:
        """Return what the stage says of the current weights over many samples at once, if it says anything."""
        if not isinstance(self.stage, JudgedStage):
            return {}

        # A wish to stop is not asked for: the record would be without its figures for good.
        def on_progress(done: int, count: int) -> None:
            self.watchdog.phase(f"validation after step {step}: {done} of {count} samples judged")

        return judging.figures(
            self.stage,
            self.engine.model,
            self.val_set,
            seed=key(self.seed, "validation"),
            micro_batch=self.micro_batch,
            device=self.device,
            to_device=self._to_device,
            on_progress=on_progress,
        )

    def _save(self, step: int, *, must: bool) -> bool:
        """Commit a checkpoint; return whether that came about.

        A failure to write is on record and no reason to end, unless the checkpoint `must` be there.
        """
        self.watchdog.phase(f"saving after step {step}")
        started_s = time.perf_counter()
        try:
            self.commits.save(step, {"window": self.window.state(), "health": self.health.state()})
        except checkpoint.CheckpointNotSaved as error:
            if must:
                raise
            log.warning("checkpoint of step %d not saved, training goes on and tries again soon: %s", step, error)
            self._event({"event": "checkpoint not saved", "step": step, "message": str(error)})
            return False
        finally:
            seconds = time.perf_counter() - started_s
            self.window.add_checkpoint(seconds)
        self._event({"event": "checkpoint", "step": step, "seconds": seconds})
        return True

    def _export(self) -> None:
        self.watchdog.phase("export")
        staged = distributed.from_rank_zero(self.control.stage_commit)
        record = export(staged, self.engine.state, self.stage.export_files())
        distributed.from_rank_zero(lambda: self.control.publish_export(staged, record))
