"""How the C library gets memory for tensors on CPUs."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
THRIFTY_BYTES = 1 << 20
USUAL_BYTES = 32 << 20
"""glibc raises its threshold as far as this by itself."""


def be_thrifty() -> None:
    """Have this process give every tensor of 1 MiB or more back to the system as soon as it is freed.

    glibc otherwise keeps freed tensors below 32 MiB for later ones, and larger ones do not fit into the holes: training
    with activations that are computed again, in many sizes, took 70 % more memory. The price is fresh pages for
    every tensor: a step of maps of 1 to 8 MiB took 1.5 times as long; those above 32 MiB are fresh in any case. Without
    glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRIFTY_BYTES)
