"""What the training loop needs to know of a stage, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dalle2_video.config import OptimConfig
from dalle2_video.data.batches import Split, WindowDataset
from dalle2_video.data.draws import Draws

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]
Model = Callable[..., Any]


class Stage(Protocol):
    """One trainable stage. Everything here is the same on all ranks; all randomness comes from `draws`."""

    optim: OptimConfig

    def build(self) -> nn.Module:
        """Return the model with fp32 initial weights drawn from torch's global generator."""

    def to(self, device: torch.device) -> None:
        """Move what the stage keeps beside the model (frozen parents) to `device`."""

    def dataset(self, split: Split) -> WindowDataset:
        """Return the samples of a split: a pure function of the global sample number."""

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the mean loss of a micro-batch (scalar) and scalar metrics.

        model: the engine, or the bare module; called the same number of times on every rank.
        """

    def export_files(self) -> dict[str, str]:
        """Return the texts that lie beside the exported weights, by file name; see `models.factory`."""


@runtime_checkable
class JudgedStage(Protocol):
    """A stage whose validation also says how good the model is, over samples that have to be seen together."""

    def judged(self, num_clips: int) -> int:
        """Return how many samples, the first of the validation split, are judged; num_clips: those of the split."""

    def judge(self, model: Model, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Return rows (b, ...) of a batch, one a sample; collective as `Stage.loss` is."""

    def figures(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Return the figures of the rows of all samples, float32 on the CPU, in the order of the samples."""
