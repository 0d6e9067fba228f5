"""Counting the memory that a computation would take, on fake tensors: nothing is computed and no memory is used.

Every tensor that an operation returns counts from then until nothing refers to its storage any more, so forward and
backward pass together give the true peak, activation checkpointing and all. What kernels allocate inside is not seen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While active, `live` is the number of bytes in tensors made since it was entered, `peak` the highest so far.

    Tensors below `heap_below` bytes lie on a heap which is never given back and is `heap_waste` times as large as they
    ever were: holes between them. It counts into the peak.
    """

    def __init__(self, *, heap_below: int = 0, heap_waste: float = 1.0) -> None:
        super().__init__()
        self.heap_below, self.heap_waste = heap_below, heap_waste
        self.live = self.peak = 0
        self._on_heap = self._most_on_heap = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return
        self._storages[key] = weakref.ref(storage, functools.partial(self._remove, key, size))
        self.live += size
        if size < self.heap_below:
            self._on_heap += size
            self._most_on_heap = max(self._most_on_heap, self._on_heap)
        self.peak = max(self.peak, self.live - self._on_heap + int(self._most_on_heap * self.heap_waste))

    def _remove(self, key: int, size: int, _reference: object) -> None:
        del self._storages[key]
        self.live -= size
        if size < self.heap_below:
            self._on_heap -= size


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make all tensors made inside fake: shapes without content, on a device that looks real."""
    with FakeTensorMode():
        yield
