"""A large file that is on the disk when it is closed, and its checksum.

What makes a save slow is to wait for the disk after all is written. Here a thread has the disk take what is there
while the writer copies and hashes on, so that little is left at the end.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

CHECKSUM = "xxh3_128"
"""Name of the checksum: no cryptography, since it guards against damage and not against forgery, and fast."""
_PIECE = 1 << 23
"""Bytes hashed and written at once: they are still in the cache when they are copied."""
_PORTION = 1 << 26
"""Bytes after which the disk is set to work."""


def file_checksum(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    hasher, buffer = xxhash.xxh3_128(), bytearray(_PIECE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return hasher.hexdigest()


class DurableFile:
    """A new file written front to back. Use as a context manager; durable once that is left without an error.

    Raises OSError from `write` or at the end where the disk did not take all.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        """Bytes written."""
        self._file = path.open("wb", buffering=0)
        self._hasher = xxhash.xxh3_128()
        self._unsynced = 0
        self._due, self._closing = threading.Event(), False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._sync, name="fdatasync", daemon=True)

    @property
    def checksum(self) -> str:
        """Checksum of what was written, hexadecimal."""
        return self._hasher.hexdigest()

    def write(self, content: bytes | memoryview) -> None:
        """Append."""
        view = memoryview(content)
        for first in range(0, len(view), _PIECE):
            piece = view[first : first + _PIECE]
            self._hasher.update(piece)
            done = 0
            while done < len(piece):
                done += self._file.write(piece[done:]) or 0
            self._unsynced += len(piece)
            if self._unsynced >= _PORTION:
                self._unsynced = 0
                self._due.set()
        self.size += len(view)

    def _sync(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._closing:
                return
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:  # a later fsync may no longer tell
                self._failure = error
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing = True
        self._due.set()
        self._thread.join()
        try:
            if error is None:
                if self._failure is not None:
                    raise self._failure
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
