"""How the C library gets memory for tensors on CPUs."""

from __future__ import annotations

import ctypes
import os

M_MMAP_THRESHOLD = -3
THRIFTY_BYTES = 1 << 20
USUAL_BYTES = 32 << 20
"""glibc raises its threshold as far as this by itself."""


def be_thrifty() -> None:
    """Have this process give every tensor of 1 MiB or more back to the system as soon as it is freed.

    glibc otherwise keeps freed tensors below 32 MiB for later ones, and larger ones do not fit into the holes: training
    with activations that are computed again, in many sizes, took 70 % more memory. The price is fresh pages for every
    tensor; those of 2 MiB or more ask for large ones, which Linux gives at a third of the cost where
    /sys/kernel/mm/transparent_hugepage/enabled says `madvise` or `always`. Call it before the first tensor is made:
    torch looks then whether to ask. Without glibc nothing changes.
    """
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRIFTY_BYTES)
