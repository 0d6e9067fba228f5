"""Export of a committed checkpoint's EMA weights by one process, while the training that made it goes on or is gone.

Of any world size and ZeRO stage; what comes out is to the byte what the training itself would export at that step.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from dalle2_video.models.factory import WEIGHTS
from dalle2_video.training import checkpoint
from dalle2_video.training.tensor_file import TensorFile, TensorSpec, file_order, write_tensors
from dalle2_video.training.zero_state import EMA


def export_commit(committed: Path, folder: Path, texts: Mapping[str, str]) -> None:
    """Write the EMA weights of a checkpoint, and `texts` by file name, into an existing folder.

    Takes the memory of one parameter. Raises DamagedCheckpointError, a ValueError, where a file is not what its
    manifest says.
    """
    checkpoint.verify(committed)
    content = json.loads((committed / checkpoint.STATE).read_text())
    if content.get("format") != checkpoint.FORMAT:
        raise ValueError(f"{committed} has checkpoint format {content.get('format')}, wanted {checkpoint.FORMAT}")
    shapes = {name: tuple(entry["shape"]) for name, entry in content["parameters"].items()}
    cuts = {name: entry["cuts"] for name, entry in content["parameters"].items()}
    with contextlib.ExitStack() as stack:
        shards = [
            stack.enter_context(TensorFile(committed / checkpoint.shard_name(rank, content["world_size"])))
            for rank in range(content["world_size"])
        ]
        extras = {name: shards[0].read(checkpoint.UNTRAINED + name) for name in content["untrained"]}
        specs = {name: TensorSpec(dtype=torch.float32, shape=shape) for name, shape in shapes.items()}
        specs |= {name: TensorSpec.of(tensor) for name, tensor in extras.items()}

        def tensors() -> Iterator[Tensor]:
            for name in file_order(specs):
                if name in extras:
                    yield extras[name]
                    continue
                flat = torch.empty(math.prod(shapes[name]))
                for shard, (low, high) in zip(shards, pairwise(cuts[name]), strict=True):
                    if low < high:
                        shard.read_into(flat[low:high], f"{EMA}/{name}")
                yield flat.reshape(shapes[name])

        write_tensors(folder / WEIGHTS, specs, tensors())
    for name, text in texts.items():
        (folder / name).write_text(text)
