"""A trap in the processes of a run: the n-th call that makes files durable or visible kills, or stops, its process.

The chaos run copies this file under the name `sitecustomize.py` into a folder on the PYTHONPATH of the processes that
it disturbs, and names a file of traps in `CHAOS_TRAPS`: a JSON list of objects with `id`, `role` (launcher, supervisor,
rank or any), `match` (parts of a path, one of which must occur), `n` (from 1, counted by each process since it first
saw the trap), `when` (before or after the call) and `signal`. A trap snaps once, in one process, which says so in
`CHAOS_TRAPS.ID` before. Imports nothing of the product, and the product nothing of this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

CALLS = ("fsync", "rename", "replace", "link")


def role_of(command: bytes) -> str:
    """Return what part of a run a process plays, by its command line."""
    if b"slurm.job" in command:
        return "rank"
    if b"submitit" in command:
        return "supervisor"
    return "launcher" if b"launch/" in command else "other"


def install(traps_file: str) -> None:
    """Wrap the calls of this process."""
    with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - sys.argv is not there yet
        role = role_of(file.read())
    if role == "other":
        return
    counts: dict[str, int] = {}

    def snapping(name: str, paths: str) -> dict[str, Any] | None:
        """Count a call and return the trap that snaps at it, if one does."""
        try:
            with open(traps_file, encoding="utf-8") as file:  # noqa: PTH123
                traps = json.load(file)
        except FileNotFoundError:
            return None
        for trap in traps:
            if trap["role"] in ("any", role) and any(part in paths for part in trap["match"]):
                counts[trap["id"]] = counts.get(trap["id"], 0) + 1
                if counts[trap["id"]] == trap["n"] and _first(f"{traps_file}.{trap['id']}", name, paths, role, trap):
                    return trap
        return None

    def wrap(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            trap = snapping(name, " ".join(map(_path, arguments)))
            if trap is not None and trap["when"] == "before":
                os.kill(os.getpid(), trap["signal"])
            result = real(*arguments, **more)
            if trap is not None and trap["when"] == "after":
                os.kill(os.getpid(), trap["signal"])
            return result

        setattr(os, name, wrapped)

    for name in CALLS:
        wrap(name)


def _path(argument: Any) -> str:
    """Return the path that an argument names: descriptors by what they are open on."""
    fd = f"/proc/self/fd/{argument}"
    return os.readlink(fd) if isinstance(argument, int) else os.fspath(argument)  # noqa: PTH115 - loads no pathlib


def _first(path: str, name: str, paths: str, role: str, trap: dict[str, Any]) -> bool:
    """Record that a trap snaps; False where it did so before."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    told = {"pid": os.getpid(), "role": role, "call": name, "paths": paths, "when": trap["when"]}
    os.write(descriptor, json.dumps(told).encode())
    os.close(descriptor)
    return True


if __name__ == "sitecustomize" and "CHAOS_TRAPS" in os.environ:
    install(os.environ["CHAOS_TRAPS"])
