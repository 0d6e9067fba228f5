"""How files become visible on a shared file system: the only module that links, renames and fsyncs.

A reader sees a file whole or not at all, on NFS and Lustre as well as on a local disk: content is written under a
hidden name in the destination's folder, fsynced, renamed, and the folder is fsynced. Exclusive creation goes through
`os.link`, which is atomic where O_EXCL over NFS has not always been. No locks, no comparison of two hosts' clocks.

A registry that a unix group shares is one whose home its group may write: `follow_group_mode` lets a process that
works in it make files and folders that the group may write too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dalle2_video import json_file

_PLAIN = re.compile(r"[\w+=,@%-][\w.+=,@%-]*")


def follow_group_mode(home: Path) -> None:
    """Take the group out of this process's umask where the group may write `home`; else leave the user's umask.

    The setgid bit of `home` gives everything below it the same group: the kernel hands it on to new folders.
    """
    with contextlib.suppress(OSError):  # not there: it is made later, as the user's umask has it
        if home.stat().st_mode & stat.S_IWGRP:
            os.umask(os.umask(0o007) & ~0o070)
    # Whoever may write into a registry decides what its jobs run: never everybody, whatever the user's umask.
    os.umask(os.umask(0o077) | 0o002)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user may enter, or take the one that is there; return it.

    Raises ValueError where another user has it: in a folder for all, such as /tmp, anybody may have been first.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(f"{path} is not a folder of this user's own; set TMPDIR to a folder that is, then go on")
    path.chmod(0o700)
    return path


def fsync_folder(folder: Path) -> None:
    """Make the entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file, or a folder with everything in it, durable."""
    if path.is_dir():
        for entry in path.iterdir():
            fsync_tree(entry)
        fsync_folder(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _hidden_copy(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a durable hidden file beside `path` that holds `content`; it is gone afterwards, also after an error.

    Makes the last folder only: a run that was removed meanwhile must not come back as a folder with one file.
    """
    path.parent.mkdir(exist_ok=True)
    hidden = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with hidden.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield hidden
    finally:
        hidden.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Create or replace a file whole."""
    with _hidden_copy(path, content) as hidden:
        hidden.rename(path)
        fsync_folder(path.parent)


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create a file whole, unless it exists. Return whether this call created it."""
    with _hidden_copy(path, content) as hidden:
        try:
            os.link(hidden, path)
        except FileExistsError:
            return False
        fsync_folder(path.parent)
        return True


def link_files(source: Path, folder: Path) -> None:
    """Give the files of a folder a second name in an existing one, durably; nothing is copied.

    They stay there when `source` is removed. Raises FileNotFoundError where that happened already.
    """
    for path in source.iterdir():
        os.link(path, folder / path.name)
    fsync_folder(folder)


def publish(staged: Path, final: Path) -> None:
    """Move a finished file or folder to its public name, durably. The rename is the commit.

    Both must lie on one file system. A file replaces an older one of the same name; a folder raises FileExistsError
    where `final` exists already.
    """
    fsync_tree(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    if staged.is_dir() and final.exists():
        raise FileExistsError(final)
    staged.rename(final)
    fsync_folder(final.parent)


def staging_folder(parent: Path, owner: str = "") -> Path:
    """Make an empty hidden folder in `parent`, on the same file system as what will be published there.

    owner: who makes it, so that `staged_by` finds what was left of it by somebody who was killed.
    """
    folder = parent / f".staging-{owner}-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def staged_by(parent: Path, owner: str) -> list[Path]:
    """Return the staging folders in `parent` whose owner's name begins with `owner`."""
    return sorted(parent.glob(f".staging-{owner}*"))


def remove_tree(folder: Path) -> None:
    """Remove a folder in one visible step: renamed to a hidden name first, so that no reader meets it half gone."""
    hidden = folder.parent / f".removed-{uuid.uuid4().hex}"
    try:
        folder.rename(hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden, ignore_errors=True)


def encode(value: Any) -> bytes:
    """JSON for people and programs: indented, sorted, UTF-8, newline at the end."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def encode_rows(rows: Sequence[Any]) -> bytes:
    """JSON of a long list, one row a line."""
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def read_json(path: Path | str) -> Any | None:
    """Return the content of a JSON file, or None where there is no such file; ValueError naming it if it is no JSON."""
    try:
        return json_file.read(path)
    except FileNotFoundError:
        return None


def read_record(path: Path | str) -> dict[str, Any] | None:
    """Return the fields in a JSON file, or None where there is no such file; ValueError naming it if it holds none."""
    found = read_json(path)
    if isinstance(found, dict) or (found is None and not Path(path).exists()):
        return found
    raise ValueError(f"{path} is damaged: it holds no fields")


def names_in(folder: Path | str) -> list[str]:
    """Sorted visible names in a folder; empty where there is none. Listing also refreshes NFS's idea of the folder.

    Names that no code of ours gives are left out: what steers a terminal, a shell or a page is none of a registry's.
    """
    try:
        return sorted(name for name in os.listdir(folder) if _PLAIN.fullmatch(name))  # noqa: PTH208
    except FileNotFoundError:
        return []
