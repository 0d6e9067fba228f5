"""Checkpoints that any world size can load: safetensors slices, no pickle.

A folder holds one `shard-RRRRR-of-WWWWW.safetensors` a rank with its unpadded slices `fp32/NAME`, `exp_avg/NAME`,
`exp_avg_sq/NAME`, `ema/NAME` (rank 0 adds `buffer/NAME`), one `state.json` with the step, the shapes and the world
size, and a `manifest.json`, written last, with size and sha256 of every file. Loading reads just the overlapping
slices. Who makes the folder visible (the commit) is the caller's matter; all ranks call save and load together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dalle2_video.digests import file_digest
from dalle2_video.training import distributed
from dalle2_video.training.zero_state import KINDS, ShardedState, slice_bounds

MANIFEST = "manifest.json"
STATE = "state.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint folder does not hold what its manifest says."""


def shard_name(rank: int, world_size: int) -> str:
    """File of one rank."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def save(folder: Path, state: ShardedState, module: nn.Module, step: int) -> None:
    """Write the checkpoint of `step` into an existing folder that all ranks see."""
    rank, world_size = distributed.rank(), distributed.world_size()
    tensors = {
        f"{kind}/{name}": view.cpu() for kind in KINDS for name, _, view in state.local(kind) if view.numel() > 0
    }
    if rank == 0:
        tensors |= {f"buffer/{name}": buffer.detach().cpu() for name, buffer in _saved_buffers(module).items()}
    path = folder / shard_name(rank, world_size)
    save_file(tensors, path)
    entries = distributed.gather_at_zero((path.name, {"bytes": path.stat().st_size, "sha256": file_digest(path)}))
    if entries is not None:
        content: dict[str, Any] = {
            "step": step,
            "world_size": world_size,
            "shapes": {name: list(slot.shape) for name, slot in state.slots.items()},
        }
        (folder / STATE).write_text(json.dumps(content, indent=1))
        files = dict(entries) | {
            STATE: {"bytes": (folder / STATE).stat().st_size, "sha256": file_digest(folder / STATE)}
        }
        (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def _saved_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = {name for name, _ in module.named_parameters()}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}


def verify(folder: Path) -> None:
    """Raise DamagedCheckpointError that names the file unless every file is what the manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, entry in files.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                raise DamagedCheckpointError(f"{path}: {path.stat().st_size} bytes, manifest says {entry['bytes']}")
            if file_digest(path) != entry["sha256"]:
                raise DamagedCheckpointError(f"{path}: checksum differs from the manifest")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        raise DamagedCheckpointError(f"{folder}: {error}") from error


def load(folder: Path, state: ShardedState, module: nn.Module) -> int:
    """Load a verified checkpoint written at any world size; return its step.

    Raises ValueError naming the parameters where the checkpoint belongs to another model.
    """
    content = json.loads((folder / STATE).read_text())
    shapes = {name: list(slot.shape) for name, slot in state.slots.items()}
    changed = [name for name in content["shapes"].keys() | shapes if content["shapes"].get(name) != shapes.get(name)]
    if changed:
        raise ValueError(f"{folder} belongs to another model; parameters that differ: {', '.join(sorted(changed))}")
    readers = [
        safe_open(folder / shard_name(rank, content["world_size"]), "pt") for rank in range(content["world_size"])
    ]
    for kind in KINDS:
        for name, slot, view in state.local(kind):
            begin, end = slice_bounds(slot.numel, state.rank, state.world_size)
            for rank, reader in enumerate(readers):
                low, high = slice_bounds(slot.numel, rank, content["world_size"])
                first, last = max(begin, low), min(end, high)
                if first < last:
                    stored = reader.get_slice(f"{kind}/{name}")[first - low : last - low]
                    view[first - begin : last - begin].copy_(stored)
    for name, buffer in _saved_buffers(module).items():
        buffer.copy_(readers[0].get_tensor(f"buffer/{name}"))
    state.set_step(content["step"])
    state.refresh(state.master_flats)
    return content["step"]
