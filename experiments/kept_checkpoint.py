"""A checkpoint of a run that goes on, as the parent of another run: pinned by its step, kept while that one needs it.

The child keeps it under a second name in its own folder (a hard link: no copy, and the training goes on to remove its
own), until the child is done. Imports no torch.
"""

from __future__ import annotations

import hashlib
import shutil

from experiments import files
from experiments.identity import Parent
from experiments.run import Commit, Run

CHECKPOINT, EXPORT = "checkpoint", "export"
"""Folders of the child: what it keeps, and the weights that it makes of it."""
MANIFEST = "manifest.json"


def as_parent(run: Run, commit: Commit) -> Parent:
    """Pin a checkpoint. Raises FileNotFoundError where it is gone."""
    # The manifest names size and checksum of every other file.
    digest = hashlib.sha256((commit.path / MANIFEST).read_bytes()).hexdigest()
    return Parent(stage=run.stage, id=run.id, digest=digest, step=commit.step)


def keep(child: Run, commit: Commit) -> None:
    """Keep a checkpoint for a child, unless it is kept already. Raises FileNotFoundError where it is gone."""
    final = child.folder / CHECKPOINT
    if final.exists():
        return
    staged = files.staging_folder(child.folder)
    try:
        files.link_files(commit.path, staged)
        files.publish(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def release(child: Run) -> None:
    """Remove the checkpoint that a child kept, and the weights that it was made into, once the child is done."""
    # Of a run without such a parent an export is its own.
    if any(pin.step is not None for pin in child.spec.parents.values()) and child.is_done():
        for name in (CHECKPOINT, EXPORT):
            files.remove_tree(child.folder / name)
