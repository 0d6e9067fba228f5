"""The ranks of trainings whose peak memory is measured; started by `memory.py` with its plans as JSON.

    OMP_NUM_THREADS=1 python -m tools.bench.memory_ranks PLANS.json

Trainer, stage and step are the product's; CLIP is untrained and the clips are noise, neither of which memory knows.
Rank 0 leaves the ranks' highest figures beside the plans, in a file named after the plan's number.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from dalle2_video.config import Precision, Recipe
from dalle2_video.models.clip import Clip
from dalle2_video.models.factory import WEIGHTS, export_files
from dalle2_video.runtime import Checkpointing, RuntimeConfig
from dalle2_video.stages import STAGES, StageInputs
from dalle2_video.training import distributed
from dalle2_video.training.loop import Trainer
from dalle2_video.training.memory_estimate import dims_of
from dalle2_video.training.watchdog import Watchdog
from experiments.recipes import seed_decoder
from tools.bench import forked_ranks
from tools.bench.checkpoint_ranks import Control, largest, peak_mib, resident_mib

Unet = Literal["decoder", "spatial_sr"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training of recipe seed_decoder."""

    stage: Unet
    frames: int
    checkpointing: Checkpointing
    precision: Precision = "fp32"
    world: int = 2
    micro_batches: int = 2
    """A rank accumulates over so many: the first has no gradients to add to."""

    def made(self) -> Recipe:
        """Return the recipe with this plan's frames and precision, and a batch of 1 a rank."""
        recipe = seed_decoder.recipe(self.frames)
        config = getattr(recipe, self.stage)
        optim = replace(config.optim, batch_size=self.world * self.micro_batches, precision=self.precision)
        return replace(recipe, **{self.stage: replace(config, optim=optim)})


def batch_of(recipe: Recipe, stage: str) -> dict[str, Tensor]:
    """Return a micro-batch of noise."""
    config, data = getattr(recipe, stage), recipe.data
    window = config.window
    shape = (1, window.num_frames, window.size, window.size, 3)
    batch = {
        "sample": torch.arange(1),
        "tokens": torch.randint(data.vocab_size, (1, data.text_context)),
        "length": torch.full((1,), data.text_context),
        "embedding": torch.nn.functional.normalize(torch.randn(1, recipe.clip.embed_dim)),
        "video": torch.randint(256, shape, dtype=torch.uint8),
    }
    if stage == "spatial_sr":
        low = (*shape[:2], config.low_size, config.low_size, 3)
        batch["low_video"] = torch.randint(256, low, dtype=torch.uint8)
    return batch


def prepare(recipe: Recipe, folder: Path) -> None:
    """Leave an untrained CLIP in `folder`."""
    dims = dims_of(recipe)
    folder.mkdir()
    torch.manual_seed(0)
    save_file(Clip(recipe.clip, dims.vocab_size, dims.text_context).state_dict(), folder / WEIGHTS)
    for name, text in export_files("clip", recipe.clip, dims, fps=recipe.data.fps).items():
        (folder / name).write_text(text)


def carry_out(plan: Plan, folder: Path, answer: Path) -> None:
    """Train and answer, on one rank; folder: holds `clip`."""
    device = distributed.start(threads=1, thrifty=plan.checkpointing != "none")
    watchdog = Watchdog(minimum_s=3600, factor=1000, on_hang=lambda hang: print(hang.stack, file=sys.stderr))
    recipe = plan.made()
    inputs = StageInputs(
        config=getattr(recipe, plan.stage),
        seed=0,
        store=folder,
        exports={"clip": folder / "clip"},
        activation_checkpointing=plan.checkpointing,
    )
    stage = STAGES[plan.stage](inputs)
    stage.dataset = lambda split: None  # type: ignore[assignment,method-assign,return-value]
    figures = {"start_mib": [resident_mib()]}
    with peak_mib() as peak:
        trainer = Trainer(
            stage,
            name=plan.stage,
            seed=0,
            runtime=RuntimeConfig(torch_threads=1, micro_batch=1, activation_checkpointing=plan.checkpointing),
            control=Control(folder),  # type: ignore[arg-type]
            watchdog=watchdog,
            device=device,
        )
        figures["engine_mib"] = [resident_mib()]
        trainer.step(0, [batch_of(recipe, plan.stage) for _ in range(plan.micro_batches)])
        figures |= {"steady_mib": [resident_mib()], "peak_mib": [peak()]}
    highest = largest(figures)
    if distributed.rank() == 0:
        answer.write_text(json.dumps({name: value for name, (value,) in highest.items()}))
    distributed.end()
    watchdog.stop()


def main(file: Path) -> bool:
    """Carry out the plans in a file, one after the other; return whether all were."""
    logging.disable(logging.WARNING)
    forked_ranks.preload()
    plans, folder = [Plan(**content) for content in json.loads(file.read_text())], file.parent
    # In a process of its own: what is left of it there must not count as the ranks'.
    return forked_ranks.run([1], lambda *_: prepare(seed_decoder.recipe(), folder / "clip")) and all(
        forked_ranks.run(
            [plan.world], lambda *_, plan=plan, number=number: carry_out(plan, folder, folder / f"{number}.json")
        )
        for number, plan in enumerate(plans)
    )


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1])))
