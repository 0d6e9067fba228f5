"""Homes for the chaos run: finished parents made once, fresh homes beside them, and a disk small enough to fill."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PARENTS = ("preprocess", "clip", "embed")
DATA = ("--data.clips-per-shard", "8")
CLIP = ("--clip.optim.steps", "2", "--clip.optim.batch-size", "8")
DISK_MIB = 192
"""A launcher asks for 64 MiB of free space; two commits, a third that is written and what a kill leaves are 60 MiB."""


def training_command(steps: int, interval: int, *more: str) -> list[str]:
    """Return the command that is disturbed: the prior of the recipe `tiny` on two ranks.

    more: the flags that the parents were made with.
    """
    flags = ["--prior.optim.steps", str(steps), "--prior.optim.batch-size", "8", "--checkpoint-every", str(interval)]
    flags += ["--validate-every", str(interval * 3), "--log-every", "1", "--ranks-per-node", "2"]
    return [sys.executable, "launch/prior.py", "--cluster", "local", *more, *flags]


def make_parents(folder: Path) -> list[str]:
    """Make a home in `folder` with all that a prior needs; return the flags that lead to these parents."""
    data = folder / "data"
    _run([sys.executable, "tools/make_sample_data.py", "--out", str(data), "--clips", "24"], folder)
    for stage, flags in (
        ("preprocess", [*DATA, "--data-root", str(data)]),
        ("clip", [*DATA, *CLIP, "--ranks-per-node", "2"]),
        ("embed", [*DATA, *CLIP]),
    ):
        _run([sys.executable, f"launch/{stage}.py", "--cluster", "local", *flags], folder)
    return [*DATA, *CLIP]


def _run(command: Sequence[str], home: Path) -> None:
    environment = os.environ | {"DALLE2_VIDEO_HOME": str(home)}
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{answer.stdout}\n{answer.stderr}")


def fresh_home(parents: Path, folder: Path) -> Path:
    """Return a new home in `folder` that has the finished parents and no prior."""
    (folder / "runs").mkdir(parents=True)
    for stage in PARENTS:
        (folder / "runs" / stage).symlink_to(parents / "runs" / stage)
    return folder


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Mount a small tmpfs on a new folder for a while; yield why there is none, "" where there is."""
    folder.mkdir(parents=True)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755", "tmpfs", str(folder)]
        answer = subprocess.run(mount, capture_output=True, text=True, check=False)
        refused = answer.stderr.strip() if answer.returncode else ""
    except OSError as error:
        refused = str(error)
    try:
        yield refused
    finally:
        if not refused:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


class Filler:
    """A file that eats the free space of the disk that it lies on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._size = 0

    def eat(self) -> None:
        """Take what is free now; others may have freed some since the last time."""
        disk = os.fstatvfs(self._file.fileno())
        block, blocks = disk.f_frsize, disk.f_bavail
        while blocks:
            try:
                os.posix_fallocate(self._file.fileno(), self._size, blocks * block)
                self._size += blocks * block
            except OSError:
                blocks //= 2
            else:
                return

    def free(self) -> None:
        """Give everything back."""
        self._file.close()
        self.path.unlink()
