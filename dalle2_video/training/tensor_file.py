"""Safetensors files written and read piece by piece, without a second copy of the tensors in memory.

The safetensors package writes a file from a dict that holds all of it, and reads through a memory map whose pages count
as the process's own. Here a writer takes tensors one after another, and a reader puts any
range of a tensor straight where it belongs. What is written is to the byte what `safetensors.torch.save_file` writes of
fp32 tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle2_video.training.durable_file import DurableFile

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_CHUNK = 1 << 23
"""Bytes read at once."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Return the spec of a tensor."""
        return cls(dtype=tensor.dtype, shape=tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Return names in the order of the file: wide types first, so that all values are aligned, then by name."""
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def write_tensors(path: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor]) -> tuple[int, str]:
    """Write a safetensors file, durably; return its size in bytes and its checksum (see `durable_file`).

    tensors: one for each of `file_order(specs)`, on any device; taken one at a time.
    """
    order, offset = file_order(specs), 0
    header = {}
    for name in order:
        spec = specs[name]
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with DurableFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in zip(order, tensors, strict=True):
            assert TensorSpec.of(tensor) == specs[name], (name, tensor.dtype, tensor.shape)
            file.write(_memory(tensor.detach().cpu().contiguous().reshape(-1)))
    return file.size, file.checksum


def _memory(tensor: Tensor) -> memoryview:
    """Return the bytes of a flat tensor on the CPU, shared."""
    return tensor.view(torch.uint8).numpy().data


class TensorFile:
    """A safetensors file open for reading ranges. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Raises ValueError naming the file where it is no safetensors file, OSError as the file system does."""
        self._file = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        try:
            # Not more than there is: a damaged length would fill the memory.
            if 8 + length > path.stat().st_size:
                raise ValueError(f"its header of {length} bytes ends beyond the file")
            self._header = _checked(json.loads(self._file.read(length)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self._file.close()
            raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from error
        self._start = 8 + length

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, view: Tensor, name: str, first: int = 0) -> None:
        """Read values [first, first + view.numel()) of the flattened tensor `name` into `view`.

        view: flat and contiguous, on any device. Raises ValueError where the file holds another type or is too short.
        """
        entry = self._entry(name)
        if entry["dtype"] != _NAMES[view.dtype]:
            raise ValueError(f"{self.path}: {name} is {entry['dtype']}, wanted {_NAMES[view.dtype]}")
        begin, end = entry["data_offsets"]
        begin += first * view.dtype.itemsize
        if begin + view.nbytes > end:
            raise ValueError(f"{self.path}: {name} ends before value {first + view.numel()}")
        self._file.seek(self._start + begin)
        step = _CHUNK // view.dtype.itemsize
        for piece in view.split(step) if view.numel() > 0 else ():
            # A GPU's memory is filled by way of a small buffer.
            target = piece if piece.device.type == "cpu" else torch.empty_like(piece, device="cpu")
            self._fill(_memory(target), name)
            if target is not piece:
                piece.copy_(target)

    def read(self, name: str) -> Tensor:
        """Return a whole tensor on the CPU."""
        entry = self._entry(name)
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        self.read_into(tensor.view(-1), name)
        return tensor

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._header:
            raise ValueError(f"{self.path}: holds no {name}")
        return self._header[name]

    def _fill(self, memory: memoryview, name: str) -> None:
        done = 0
        while done < len(memory):
            count = self._file.readinto(memory[done:])
            if not count:
                raise ValueError(f"{self.path}: the file ends within {name}")
            done += count


def _checked(header: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a header; ValueError where one's place does not have the size of its type and shape."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        begin, end = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (begin, *entry["shape"])):
            raise ValueError(f"{name} has shape {entry['shape']} at {begin}")
        if end - begin != TensorSpec(dtype=_DTYPES[entry["dtype"]], shape=tuple(entry["shape"])).bytes:
            raise ValueError(f"{name} is {entry['dtype']} {entry['shape']} in {end - begin} bytes")
    return tensors
