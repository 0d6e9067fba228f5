"""Export of the EMA weights: what sampling loads and what child runs pin by digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle2_video.digests import folder_digest
from dalle2_video.models.factory import WEIGHTS
from dalle2_video.training import distributed
from dalle2_video.training.tensor_file import TensorSpec, file_order, write_tensors
from dalle2_video.training.zero_state import EMA, ShardedState, untrained


def export(folder: Path, state: ShardedState, texts: dict[str, str]) -> dict[str, Any]:
    """Write the EMA weights and `texts` (by file name) into `folder`.

    Weights are written as they are gathered, one parameter at a time; buffers and frozen parameters are among them.
    Collective; returns {"digest": digest of all files} on rank 0. Raises OSError on every rank where rank 0 cannot
    write.
    """
    failure: OSError | None = None
    extras = dict(untrained(state.module))
    gathered = state.gather(EMA)
    if state.rank == 0:
        try:
            _write_weights(folder / WEIGHTS, state, gathered, extras)
        except OSError as error:
            failure = error
    # The other ranks' part of the gathering, and on rank 0 what an error left of it, so that none waits for another.
    for _ in gathered:
        pass

    def finish() -> dict[str, Any]:
        if failure is not None:
            raise failure
        for name, text in texts.items():
            (folder / name).write_text(text)
        return {"digest": export_digest(folder)}

    record = distributed.from_rank_zero(finish)
    return record if state.rank == 0 else {}


def _write_weights(
    path: Path, state: ShardedState, gathered: Iterator[tuple[str, Tensor | None]], extras: dict[str, Tensor]
) -> None:
    trained = {name: TensorSpec(dtype=torch.float32, shape=slot.shape) for name, slot in state.slots.items()}
    specs = trained | {name: TensorSpec.of(tensor) for name, tensor in extras.items()}
    order = file_order(specs)
    # Gathering goes by name, as does the file among the fp32 tensors.
    assert [name for name in order if name in trained] == list(trained)

    def tensors() -> Iterator[Tensor]:
        for name in order:
            if name in extras:
                yield extras[name]
            else:
                _, full = next(gathered)
                assert full is not None
                yield full

    write_tensors(path, specs, tensors())


def export_digest(folder: Path) -> str:
    """Digest of an export folder: what children pin."""
    return folder_digest(folder)
