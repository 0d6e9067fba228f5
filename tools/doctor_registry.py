"""Checks of the registry's home: can runs be kept there, by one user or by a group, as `experiments.files` needs it?"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import files
from experiments.registry import Registry
from tools.doctor_finding import Finding, ok, problem, warning

FREE_WARNING, FREE_PROBLEM = 20 << 30, 1 << 30
INODES_WARNING, INODES_PROBLEM = 100_000, 1_000
SKEW_WARNING_S = 2.0
LOOKED_AT = 5000
"""Files and folders whose mode is looked at."""


def writable(home: Path) -> Finding:
    """Check that a run can be created."""
    try:
        Registry(home).check_writable()
    except ValueError as error:
        return problem("registry", str(error).partition(";")[0], "export DALLE2_VIDEO_HOME=/path/that/can/be/written")
    return ok("registry", f"{home} can be written")


def group(home: Path) -> Finding:
    """Check that what one member of a group makes, another one can go on with."""
    mode, gid = home.stat().st_mode, home.stat().st_gid
    if not mode & stat.S_IWGRP:
        return ok("group", "private: only its owner writes there (to share it: chmod g+ws)")
    if not mode & stat.S_ISGID:
        return problem(
            "group", "the group may write there, but new folders do not take its group on", f"chmod g+s {home}"
        )
    entries = _entries(home)
    odd = [path for path, found in entries if _unshared(found, gid)]
    if odd:
        return problem(
            "group",
            f"{len(odd)} of {len(entries)} files and folders cannot be used by the group, the first: {odd[0]}",
            f"chgrp -R {gid} {home}; chmod -R g+rwX {home}; find {home} -type d -exec chmod g+s {{}} +",
        )
    return ok("group", f"shared with group {gid}")


def _entries(home: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the first few thousand files and folders with what `stat` says of them."""
    found: list[tuple[Path, os.stat_result]] = []
    todo = [home]
    while todo and len(found) < LOOKED_AT:
        with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
    return found


def _unshared(found: os.stat_result, gid: int) -> bool:
    if stat.S_ISLNK(found.st_mode):
        return False
    needed = stat.S_IRGRP | (stat.S_IWGRP | stat.S_IXGRP | stat.S_ISGID if stat.S_ISDIR(found.st_mode) else 0)
    return found.st_gid != gid or found.st_mode & needed != needed


def operations(home: Path) -> Finding:
    """Check that what makes files visible whole and just once does so there."""
    with _probe(home) as probe:
        failures = [says for says, holds in _trials(probe) if not holds]
    if failures:
        return problem(
            "file system", "; ".join(failures), "keep the registry on another file system: export DALLE2_VIDEO_HOME=..."
        )
    return ok("file system", "exclusive creation, links, renames and fsync work")


def _trials(probe: Path) -> Sequence[tuple[str, bool]]:
    first, second, linked = probe / "first", probe / "second", probe / "linked"
    first.write_text("first")
    second.write_text("second")
    files.fsync_tree(probe)
    (probe / "full").mkdir()
    (probe / "full" / "file").touch()
    (probe / "folder").mkdir()

    def refused(*codes: int) -> contextlib.AbstractContextManager[list[bool]]:
        return _refused(codes)

    with refused(errno.EEXIST) as exclusive:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.link(first, linked)
    with refused(errno.EEXIST) as link:
        os.link(second, linked)
    with refused(errno.ENOTEMPTY, errno.EEXIST) as rename:
        (probe / "folder").rename(probe / "full")
    second.rename(first)
    return (
        ("O_EXCL opens a file that exists", bool(exclusive)),
        ("a link replaces a file that exists", bool(link) and linked.read_text() == "first"),
        ("a folder's rename replaces one that is not empty", bool(rename)),
        ("a file's rename does not replace", first.read_text() == "second" and not second.exists()),
    )


@contextlib.contextmanager
def _refused(codes: Sequence[int]) -> Iterator[list[bool]]:
    """Yield a list that is filled where what is done is refused with one of the codes."""
    seen: list[bool] = []
    try:
        yield seen
    except OSError as error:
        if error.errno not in codes:
            raise
        seen.append(True)


def space(home: Path) -> Finding:
    """Check the free bytes."""
    found = os.statvfs(home)
    free = found.f_bavail * found.f_frsize
    says = f"{free / 2**30:.1f} GiB free"
    remedy = "free space; python tools/runs.py gc --dry-run shows what nobody needs"
    if free < FREE_PROBLEM:
        return problem("space", says, remedy)
    return warning("space", says, remedy) if free < FREE_WARNING else ok("space", f"{says} (a quota may be smaller)")


def inodes(home: Path) -> Finding:
    """Check the number of files that can still be made."""
    found = os.statvfs(home)
    if not found.f_files:
        return ok("inodes", "this file system does not count them")
    says = f"{found.f_favail:,} more files fit"
    remedy = "remove files; a larger --data.clips-per-shard makes fewer"
    if found.f_favail < INODES_PROBLEM:
        return problem("inodes", says, remedy)
    return warning("inodes", says, remedy) if found.f_favail < INODES_WARNING else ok("inodes", says)


def clock(home: Path) -> Finding:
    """Compare the file system's clock with this host's."""
    with _probe(home) as probe:
        before = time.time()
        (probe / "now").touch()
        stamped = (probe / "now").stat().st_mtime
        skew = stamped - time.time() if stamped > time.time() else min(0.0, stamped - before)
    if abs(skew) > SKEW_WARNING_S:
        return warning(
            "clock",
            f"the file system's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this host's",
            "let both follow one time server; ages in lists are off by this, nothing else relies on it",
        )
    return ok("clock", f"the file system's and this host's agree within {SKEW_WARNING_S:.0f} s")


@contextlib.contextmanager
def _probe(home: Path) -> Iterator[Path]:
    """Yield a hidden folder in the home, gone afterwards."""
    folder = home / f".probe-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        files.remove_tree(folder)


CHECKS = (group, operations, space, inodes, clock)
