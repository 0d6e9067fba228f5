"""Checkpoints that any world size and any ZeRO stage can load: safetensors ranges, no pickle.

A folder holds one `shard-RRRRR-of-WWWWW.safetensors` a rank with the ranges that it keeps, `fp32/NAME`, `exp_avg/NAME`,
`exp_avg_sq/NAME`, `ema/NAME` (rank 0 adds `untrained/NAME`: buffers and frozen parameters), one `state.json` with the
step, the parameter groups, and shape and cut points of every parameter, and a `manifest.json`, written last, with size
and checksum of every file. Loading reads just the ranges that overlap, straight into the state.

A save has three parts: `snapshot` (collective), `write` (each rank its own file, possibly in a thread while training
goes on) and `finish` (collective). Who makes the folder visible (the commit) is the caller's matter.
"""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dalle2_video.training import distributed
from dalle2_video.training.durable_file import CHECKSUM, file_checksum
from dalle2_video.training.tensor_file import TensorFile, TensorSpec, file_order, write_tensors
from dalle2_video.training.zero_state import KINDS, ShardedState, set_untrained, untrained

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 3
UNTRAINED = "untrained/"
_SHOWN = 5
"""Parameters that an error names: a model has thousands."""
Written = tuple[str, dict[str, Any]]
"""Name of a rank's file and its entry in the manifest."""


class DamagedCheckpointError(ValueError):
    """A checkpoint folder does not hold what its manifest says."""


class CheckpointNotSaved(OSError):  # noqa: N818 - a state that training goes on from, not a defect of the caller
    """A rank could not write; raised on every rank alike, so that all can go on. The state is untouched."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What this rank writes."""

    file: str
    tensors: dict[str, Tensor]
    content: dict[str, Any]
    """Of `state.json`; equal on all ranks."""


def shard_name(rank: int, world_size: int) -> str:
    """File of one rank."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def save(folder: Path, state: ShardedState, module: nn.Module, step: int) -> None:
    """Write the checkpoint of `step` into an existing folder that all ranks see, without a copy of the state.

    Collective. Raises CheckpointNotSaved on every rank where one could not write.
    """
    taken = snapshot(state, module, step, copy=False)
    finish(folder, taken, try_write(folder, taken))


def snapshot(state: ShardedState, module: nn.Module, step: int, *, copy: bool = True) -> Snapshot:
    """Take this rank's part of the checkpoint of `step`. Collective.

    copy: to memory of its own on the CPU, so that training may go on while it is written. Else it shares memory with
    the state.
    """
    tensors = {f"{kind}/{name}": view for kind in KINDS for name, view in state.kept(kind) if view.numel() > 0}
    extras = dict(untrained(module))
    if state.rank == 0:
        tensors |= {UNTRAINED + name: tensor for name, tensor in extras.items()}
    if copy:
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    content = {
        "format": FORMAT,
        "step": step,
        "updates": state.updates,
        "world_size": state.world_size,
        "groups": state.groups(),
        "parameters": {name: {"shape": list(slot.shape), "cuts": slot.cuts} for name, slot in state.slots.items()},
        "untrained": {name: list(tensor.shape) for name, tensor in extras.items()},
    }
    return Snapshot(file=shard_name(state.rank, state.world_size), tensors=tensors, content=content)


def write(folder: Path, taken: Snapshot) -> Written:
    """Write this rank's file. No collective: may run in a thread. Raises OSError where the disk is full."""
    specs = {name: TensorSpec.of(tensor) for name, tensor in taken.tensors.items()}
    size, checksum = write_tensors(folder / taken.file, specs, (taken.tensors[name] for name in file_order(specs)))
    return taken.file, {"bytes": size, CHECKSUM: checksum}


def try_write(folder: Path, taken: Snapshot) -> Written | OSError:
    """Write this rank's file and return the error where that fails, for `finish` to tell all ranks."""
    try:
        return write(folder, taken)
    except OSError as error:
        return error


def finish(folder: Path, taken: Snapshot, written: Written | OSError) -> None:
    """Complete a checkpoint whose files are written: state and manifest, on rank 0. Collective.

    written: what `try_write` returned on this rank. Raises CheckpointNotSaved on every rank where one failed.
    """
    failure = (written.errno or errno.EIO, str(written)) if isinstance(written, OSError) else None
    outcomes = distributed.gather_at_zero((failure, None if failure else written))

    def complete() -> None:
        assert outcomes is not None
        failures = [(rank, *reason) for rank, (reason, _) in enumerate(outcomes) if reason is not None]
        if failures:
            reasons = "; ".join(f"rank {rank} could not write: {reason}" for rank, _, reason in failures)
            raise CheckpointNotSaved(failures[0][1], reasons)
        try:
            _write_json(folder / STATE, taken.content)
            files = dict(entry for _, entry in outcomes if isinstance(entry, tuple))
            files[STATE] = {"bytes": (folder / STATE).stat().st_size, CHECKSUM: file_checksum(folder / STATE)}
            _write_json(folder / MANIFEST, {"files": files})
        except OSError as error:
            raise CheckpointNotSaved(error.errno or errno.EIO, f"rank 0 could not write: {error}") from error

    distributed.from_rank_zero(complete)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def verify_together(folder: Path) -> None:
    """Verify with the contents shared out among the ranks; what one finds is raised on all. Collective."""
    try:
        verify(folder, rank=distributed.rank(), world_size=distributed.world_size())
        found = None
    except DamagedCheckpointError as error:
        found = str(error)
    problems = distributed.gather_at_zero(found)

    def agree() -> None:
        for problem in problems or []:
            if problem is not None:
                raise DamagedCheckpointError(problem)

    distributed.from_rank_zero(agree)


def verify(folder: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Raise DamagedCheckpointError that names the file unless every file is what the manifest says.

    rank, world_size: of the contents just one rank's share is read.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for number, (name, entry) in enumerate(sorted(files.items())):
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                raise DamagedCheckpointError(f"{path}: {path.stat().st_size} bytes, manifest says {entry['bytes']}")
            if number % world_size == rank and file_checksum(path) != entry[CHECKSUM]:
                raise DamagedCheckpointError(f"{path}: checksum differs from the manifest")
        ranks = json.loads((folder / STATE).read_text())["world_size"]
        missing = {STATE, *(shard_name(number, ranks) for number in range(ranks))} - files.keys()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        raise DamagedCheckpointError(f"{folder}: {error}") from error
    if missing:
        raise DamagedCheckpointError(f"{folder}: the manifest does not name {', '.join(sorted(missing))}")


def load(folder: Path, state: ShardedState, module: nn.Module) -> int:
    """Load a verified checkpoint written at any world size and ZeRO stage; return its step. Collective.

    Raises ValueError naming the parameters where the checkpoint belongs to another model or other parameter groups.
    """
    content = json.loads((folder / STATE).read_text())
    _check(folder, content, state, module)
    with contextlib.ExitStack() as stack:
        shards: dict[int, TensorFile] = {}

        def shard(rank: int) -> TensorFile:
            if rank not in shards:
                path = folder / shard_name(rank, content["world_size"])
                shards[rank] = stack.enter_context(TensorFile(path))
            return shards[rank]

        for kind in KINDS:
            for name, begin, view in state.held(kind):
                end = begin + view.numel()
                for rank, (low, high) in enumerate(pairwise(content["parameters"][name]["cuts"])):
                    first, last = max(begin, low), min(end, high)
                    if first < last:
                        shard(rank).read_into(view[first - begin : last - begin], f"{kind}/{name}", first - low)
        set_untrained(module, {name: shard(0).read(UNTRAINED + name) for name in content["untrained"]})
    state.set_updates(content["updates"])
    state.refresh()
    return content["step"]


def _check(folder: Path, content: dict[str, Any], state: ShardedState, module: nn.Module) -> None:
    """Raise ValueError unless the checkpoint belongs to a model with these parameters in these groups."""
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {content.get('format', 1)}, this version reads {FORMAT}: "
            f"go on with the version that wrote it, or start the run anew"
        )
    stored = {name: entry["shape"] for name, entry in content["parameters"].items()}
    present: dict[str, Any] = {name: list(slot.shape) for name, slot in state.slots.items()}
    untrained_here = {name: list(tensor.shape) for name, tensor in untrained(module)}
    if changed := _differing(stored, present) + _differing(content["untrained"], untrained_here):
        shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        raise ValueError(f"{folder} belongs to another model; parameters or buffers that differ: {shown}")
    stored, present = _settings(content["groups"]), _settings(state.groups())
    if changed := _differing(stored, present):
        shown = "; ".join(f"{name}: {stored.get(name)} there, {present.get(name)} here" for name in changed[:_SHOWN])
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(f"{folder} was trained with other parameter groups: {shown}{more}")


def _settings(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in group.items() if key != "parameters"}
        for group in groups
        for name in group["parameters"]
    }


def _differing(stored: dict[str, Any], present: dict[str, Any]) -> list[str]:
    return sorted(name for name in stored.keys() | present if stored.get(name) != present.get(name))
