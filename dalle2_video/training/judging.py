"""Figures of a stage over many validation samples at once: every rank computes its share, all get the figures.

Invariant: which samples are judged, and their noise, depend on neither the step nor the ranks; every rank calls the
model equally often, the last ones on samples that are judged already and left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.draws import Draws
from dalle2_video.stages.stage import Batch, JudgedStage, Model
from dalle2_video.training import distributed


@torch.no_grad()
def figures(
    stage: JudgedStage,
    model: Model,
    dataset: WindowDataset,
    *,
    seed: int,
    micro_batch: int,
    device: torch.device,
    to_device: Callable[[Batch], Batch],
    on_progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Return the stage's figures, the same on all ranks. Collective.

    seed: of the samples' noise; on_progress: told before each micro-batch how many samples are done and how many there
    are.
    """
    count = stage.judged(dataset.num_clips)
    rank, world = distributed.rank(), distributed.world_size()
    micro = min(micro_batch, -(-count // world))
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, count, micro * world):
        on_progress(first, count)
        numbers = range(first + rank * micro, first + (rank + 1) * micro)
        batch = to_device(dataset.__getitems__([min(number, count - 1) for number in numbers]))
        for name, rows in stage.judge(model, batch, Draws(seed, batch["sample"], device)).items():
            parts.setdefault(name, []).append(rows.float())
    return stage.figures({name: _all_rows(torch.stack(found))[:count].cpu() for name, found in parts.items()})


def _all_rows(local_tbd: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of the samples."""
    everywhere = [torch.empty_like(local_tbd) for _ in range(distributed.world_size())]
    dist.all_gather(everywhere, local_tbd.contiguous())
    return rearrange(torch.stack(everywhere), "w t b ... -> (t w b) ...")
