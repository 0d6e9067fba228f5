"""The code that a job runs: a copy taken at submission, so that later edits do not change what is queued.

    $DALLE2_VIDEO_HOME/code/<hash>/     one folder for each version of the code, shared by all runs that use it

The hash is that of names and contents; a copy that is there is never written again. Only the packages that a job
imports are copied, and of them only source files: no data, no keys, no `.env`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from pathlib import Path

from experiments import files

PACKAGES = ("dalle2_video", "experiments", "slurm")
SUFFIXES = (".py", ".html")
HASH_LENGTH = 12


def take(home: Path, repository: Path) -> str:
    """Copy the code of `repository` into the registry, unless it is there; return its hash."""
    sources = _sources(repository)
    name = _hash(sources)
    final = folder(home, name)
    if final.exists():
        return name
    staged = files.staging_folder(final.parent)
    try:
        for relative, content in sources.items():
            target = staged / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        try:
            files.publish(staged, final)
        except OSError:
            if not final.exists():  # another launcher was quicker: the same hash is the same code
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return name


def version(repository: Path) -> str:
    """Return the hash of the code of `repository`, without a copy."""
    return _hash(_sources(repository))


def folder(home: Path, name: str) -> Path:
    """Where a version of the code lies; a job has it on PYTHONPATH."""
    return home / "code" / name


def difference(home: Path, old: str, new: str) -> str:
    """Return the unified diff of two versions; a note where one of them is gone."""
    before, after = (folder(home, name) for name in (old, new))
    if not before.is_dir() or not after.is_dir():
        return f"version {old if not before.is_dir() else new} is not in {before.parent} any more\n"
    ours, theirs = _sources(after), _sources(before)
    found: list[str] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            texts = ((one.get(name) or b"").decode(errors="replace").splitlines(True) for one in (theirs, ours))
            found += difflib.unified_diff(next(texts), next(texts), f"{old}/{name}", f"{new}/{name}")
    return "".join(found)


def _sources(root: Path) -> dict[str, bytes]:
    """Contents of the source files by their path below `root`, sorted."""
    found = {}
    for package in PACKAGES:
        for parent, folders, names in os.walk(root / package):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = Path(parent, name)
                    found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _hash(sources: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sources.items():
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:HASH_LENGTH]
