"""Files of a data set where they lie: on their own, or in a tar or zip archive that is read in place.

A copy of CelebV-Text comes as 70 archives of 1,000 clips; unpacked it takes 500,000 inodes. Nothing here writes to
disk, so a member's name cannot lead anywhere; names that try are left out all the same. Invariant: an archive that is
cut, encrypted or packed as a whole is refused, and never read as one that holds fewer files.
"""

from __future__ import annotations

import io
import logging
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

log = logging.getLogger(__name__)

SUFFIXES = (".tar", ".zip")
_UNPACKERS = {
    (".tar.gz", ".tgz"): "gunzip",
    (".tar.bz2", ".tbz2", ".tbz"): "bunzip2",
    (".tar.xz", ".txz"): "unxz",
    (".tar.zst", ".tzst"): "unzstd --rm",
}
_PACKED_BEGINS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and zstd."""
_LOCAL_HEADER = struct.Struct("<4s22x2H")
"""Of a zip member: signature, then the lengths of name and extra field; the content follows these."""
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ZIP_ENCRYPTED_OR_PATCHED = 0x1 | 0x20 | 0x40
_MAX_TAR_TAIL = 1 << 20
"""Zeros after the last member: tar rounds up to a record of 10 KiB; a download into reserved space leaves many more."""
_MAX_RATIO = 100
_FREE_BYTES = 1 << 20
"""Content larger than _FREE_BYTES may not be packed more than _MAX_RATIO times: videos hardly shrink, bombs do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The bytes of one file."""

    path: Path
    """The file, or the archive that holds it."""
    size: int
    """Bytes of the content."""
    offset: int | None = None
    """Where the content begins in the archive; None: `path` is the file itself."""
    packed_size: int | None = None
    """Bytes that it takes in the archive if it is deflated there; None: it is stored as it is."""
    crc32: int | None = None
    """Of the content, where the archive tells it (zip does)."""

    @classmethod
    def of_file(cls, path: Path) -> Source:
        """Return a file of its own. Raises OSError where there is none."""
        return cls(path=path, size=path.stat().st_size)

    def read(self) -> bytes:
        """Return the whole content. Raises ValueError if it is damaged, OSError as the file system does."""
        if self.offset is None:
            data = self.path.read_bytes()
            if len(data) != self.size:
                raise ValueError(f"{self} has {len(data)} bytes, but had {self.size} when it was found; begin anew")
            return data
        stored = self.size if self.packed_size is None else self.packed_size
        if self.size > max(_FREE_BYTES, _MAX_RATIO * stored):
            raise ValueError(f"{self} would unpack from {stored} to {self.size} bytes; such data is not trusted")
        with self.path.open("rb") as archive:
            archive.seek(self.offset)
            data = archive.read(stored)
        if len(data) != stored:
            raise ValueError(f"{self}: the archive ends after {len(data)} of {stored} bytes")
        if self.packed_size is not None:
            data = self._inflated(data)
        if self.crc32 is not None and zlib.crc32(data) != self.crc32:
            raise ValueError(f"{self} is damaged: its checksum is not that of the archive's directory")
        return data

    def _inflated(self, packed: bytes) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than announced at most: a bomb must not fill the memory.
            data = inflater.decompress(packed, self.size + 1)
        except zlib.error as error:
            raise ValueError(f"{self} is damaged: {error}") from error
        if len(data) != self.size:
            raise ValueError(f"{self} unpacks to another size than the archive's directory says ({self.size} bytes)")
        return data

    def for_av(self) -> str | io.BytesIO:
        """Return what av.open takes. Raises as `read` where the content has to be unpacked first.

        Paths are absolute: what stands before a colon in a relative one would be taken for a protocol.
        """
        if self.offset is None:
            return str(self.path.absolute())
        if self.packed_size is not None:
            return io.BytesIO(self.read())
        # FFmpeg's own protocol for a part of a file: no copy, no callback into Python.
        return f"subfile,,start,{self.offset},end,{self.offset + self.size},,:{self.path.absolute()}"

    def open(self) -> BinaryIO:
        """Return a file that stands at the content's beginning, whose end may lie beyond the content's.

        Raises as `read` where the content has to be unpacked first, OSError as the file system does.
        """
        if self.packed_size is not None:
            return io.BytesIO(self.read())
        file = self.path.open("rb")
        file.seek(self.offset or 0)
        return file

    def __str__(self) -> str:
        return str(self.path) if self.offset is None else f"{self.path} (at byte {self.offset})"


def members(archive: Path, note: Callable[[str], None] = log.warning) -> Iterator[tuple[PurePosixPath, Source]]:
    """Yield name and place of every regular file in a .tar or .zip, in the archive's order.

    Links, devices and names that lead outside the archive are left out; `note` is told how many. Raises ValueError,
    naming archive and remedy, for one that cannot be read in place or is not whole; OSError as the file system does.
    """
    refuse_packed(archive)
    left_out = []
    for name, source in _of_zip(archive) if archive.suffix.lower() == ".zip" else _of_tar(archive):
        path = PurePosixPath(name)
        if source is None or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
            left_out.append(name)
        else:
            yield path, source
    if left_out:
        note(
            f"{archive}: {len(left_out)} members are links, devices or lead outside the archive and are left out, "
            f"for example {left_out[0]!r}"
        )


def refuse_packed(path: Path) -> None:
    """Raise ValueError if a file is, by its name, an archive that is compressed as a whole: no member has a place."""
    for suffixes, unpacker in _UNPACKERS.items():
        if path.name.lower().endswith(suffixes):
            raise _packed(path, f"{unpacker} {path}")


def _packed(path: Path, command: str) -> ValueError:
    return ValueError(
        f"{path} is compressed as a whole and cannot be read in place; uncompress it to a .tar: {command} "
        "(or extract it and move it away)"
    )


def _of_tar(archive: Path) -> Iterator[tuple[str, Source | None]]:
    """Yield name and place of each member but folders; None for what is no regular file."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        if file.read(8).startswith(_PACKED_BEGINS):
            raise _packed(archive, f"tar -xf {archive} detects how")
    try:
        with tarfile.open(archive, "r:") as opened:
            for member in opened:
                opened.members.clear()  # type: ignore[attr-defined]  # it would keep 400,000 of them
                # A negative size would lead tarfile round in circles.
                if member.size < 0 or (member.isfile() and member.offset_data + member.size > size):
                    raise ValueError(f"{archive} is cut or damaged in the middle of {member.name}; fetch it again")
                if member.issparse():
                    raise ValueError(f"{archive}: {member.name} is a sparse member; pack the archive again without -S")
                if member.isfile():
                    yield member.name, Source(path=archive, size=member.size, offset=member.offset_data)
                elif not member.isdir():
                    yield member.name, None
            end = opened.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{archive} is no uncompressed tar archive, or damaged or cut ({error}); fetch it again"
        ) from error
    _require_tar_end(archive, end)


def _require_tar_end(archive: Path, end: int) -> None:
    """Raise ValueError unless the archive ends at byte `end`: tarfile takes whatever is no member for the end."""
    with archive.open("rb") as file:
        file.seek(end)
        tail = file.read(_MAX_TAR_TAIL + 1)
    if len(tail) < tarfile.BLOCKSIZE or any(tail[: tarfile.BLOCKSIZE]):
        raise ValueError(f"{archive} is damaged or cut at byte {end}; fetch it again")
    if any(tail):
        raise ValueError(
            f"{archive} goes on after its end at byte {end}, as archives appended to one another do; take them apart, "
            f"or extract it (tar --ignore-zeros -xf {archive}) and move it away"
        )
    if len(tail) > _MAX_TAR_TAIL:
        raise ValueError(
            f"{archive} holds nothing but zeros from byte {end} on: it is not fetched whole; fetch it again"
        )


def _of_zip(archive: Path) -> Iterator[tuple[str, Source | None]]:
    """Yield name and place of each member but folders; None for what is no regular file."""
    size = archive.stat().st_size
    try:
        with zipfile.ZipFile(archive) as opened, archive.open("rb") as file:
            for entry in opened.infolist():
                name = entry.filename.replace("\\", "/")  # as some packers on Windows write it
                if name.endswith("/"):
                    continue
                # The upper half holds the mode of a file packed on Unix, 0 if on other systems.
                if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                    yield name, None
                    continue
                deflated = entry.compress_type == zipfile.ZIP_DEFLATED
                if entry.flag_bits & _ZIP_ENCRYPTED_OR_PATCHED:
                    raise ValueError(f"{archive}: {name} is encrypted; extract it with its password and move it away")
                if not deflated and entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(
                        f"{archive}: {name} is compressed by a method other than deflate; extract the archive and "
                        "move it away, or pack it again: zip -0"
                    )
                if not 0 <= entry.header_offset < size:
                    raise ValueError(f"{archive} is damaged at {name}; fetch it again")
                file.seek(entry.header_offset)
                header = file.read(_LOCAL_HEADER.size)
                if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
                    raise ValueError(f"{archive} is damaged at {name}; fetch it again")
                _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
                offset = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
                if offset + entry.compress_size > size or (not deflated and entry.compress_size != entry.file_size):
                    raise ValueError(f"{archive} is damaged at {name}; fetch it again")
                packed_size = entry.compress_size if deflated else None
                yield (
                    name,
                    Source(path=archive, size=entry.file_size, offset=offset, packed_size=packed_size, crc32=entry.CRC),
                )
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{archive} is no zip archive, or damaged or cut ({error}); fetch it again") from error
