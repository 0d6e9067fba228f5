"""What the setups of `variance.py` learn from: sample data, its store, and a CLIP trained for a moment.

All through the product's own code, in this process. Each part appears whole, by a rename, so that a bench that was
killed goes on; what is there is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from dalle2_video.config import Recipe
from dalle2_video.data import celebv_text
from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.draws import Draws
from dalle2_video.data.preprocess_array import PreprocessArray
from dalle2_video.models.clip import Clip
from dalle2_video.models.factory import WEIGHTS
from dalle2_video.stages.clip import ClipStage
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.task_array import Published, TaskArray
from tools.sample_data import dataset
from tools.sample_data.scenes import plan

OnProgress = Callable[[float], None]
"""Takes the share done, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """A store, and the export folder of a CLIP trained on it."""

    store: Path
    clip: Path


def prepare(
    folder: Path, recipe: Recipe, *, clips: int, clip_steps: int, store: Path | None, on_progress: OnProgress
) -> Material:
    """Return the material, made in `folder` as far as it is missing; store: one to take instead of sample data."""
    if store is None:
        store = folder / f"store-{clips}"
        if not store.is_dir():
            _make_store(store, folder / f"data-{clips}", recipe, clips, on_progress)
    clip = folder / f"clip-{store.name}-{clip_steps}"
    if not clip.is_dir():
        _make_clip(clip, store, recipe, clip_steps, on_progress)
    return Material(store=store, clip=clip)


def _make_store(store: Path, data: Path, recipe: Recipe, clips: int, on_progress: OnProgress) -> None:
    dataset.build(data, plan(clips, 0), [], seed=0, workers=1, progress=lambda done: on_progress(0.8 * done / clips))
    partial = store.with_name(f".{store.name}")
    shutil.rmtree(partial, ignore_errors=True)
    found = celebv_text.scan(data, recipe.data)
    carry_out(PreprocessArray(root=partial, data_root=data, clips=found, config=recipe.data), partial / ".staging")
    partial.rename(store)


def carry_out(array: TaskArray, staging: Path) -> None:
    """Do all tasks of an array and its last step; staging: a folder on the file system of array.root, removed again."""

    def publish(files: Published) -> None:
        for staged, relative in files:
            (array.root / relative).parent.mkdir(parents=True, exist_ok=True)
            staged.rename(array.root / relative)

    publish(array.prepare(staging / "prepare"))
    records = {}
    for task in range(array.num_tasks):
        files, records[task] = array.run_task(task, staging / f"task{task}", lambda share: None)
        publish(files)
    files, _ = array.finish(records, staging / "finish")
    publish(files)
    shutil.rmtree(staging)


def _make_clip(folder: Path, store: Path, recipe: Recipe, steps: int, on_progress: OnProgress) -> None:
    torch.manual_seed(0)
    stage = ClipStage(StageInputs(config=recipe.clip, seed=0, store=store))
    model, samples = stage.build().train(), stage.dataset("train")
    assert isinstance(model, Clip)
    size = recipe.clip.optim.batch_size
    adam = torch.optim.AdamW(model.parameters(), lr=recipe.clip.optim.lr, betas=recipe.clip.optim.betas)
    for step in range(steps):
        batch = batch_of(samples, step, size)
        loss, _ = stage.loss(model, batch, Draws(0, batch["sample"], "cpu"))
        adam.zero_grad()
        loss.backward()
        adam.step()
        on_progress((step + 1) / steps)
    partial = folder.with_name(f".{folder.name}")
    partial.mkdir(exist_ok=True)
    save_file(model.state_dict(), partial / WEIGHTS)
    for name, text in stage.export_files().items():
        (partial / name).write_text(text)
    partial.rename(folder)


def batch_of(samples: WindowDataset, step: int, size: int) -> dict[str, torch.Tensor]:
    """Return the batch of a step."""
    return samples.__getitems__(range(step * size, (step + 1) * size))
