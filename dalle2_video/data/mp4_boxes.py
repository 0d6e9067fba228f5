"""The boxes of an MP4 file (ISO/IEC 14496-12, section 4.2), of which FFmpeg reads a cut one without a word."""

from __future__ import annotations

import struct
from typing import BinaryIO

_SIZE_AND_TYPE, _LARGE_SIZE = struct.Struct(">I4s"), struct.Struct(">Q")

_FIRST_TYPES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot")


def is_box(begin: bytes) -> bool:
    """Whether a file that begins so is an MP4 file, as far as the type of its first box tells."""
    return begin[4:8] in _FIRST_TYPES


def cut_box(file: BinaryIO, size: int) -> str | None:
    """Return what is cut of an MP4 file that begins where `file` stands and is `size` bytes long, or None.

    A file in fragments that states no duration ends wherever its last box does: nothing else tells that one is missing
    a part.
    """
    begin, end = file.tell(), file.tell() + size
    while begin < end:
        file.seek(begin)
        header = file.read(min(_SIZE_AND_TYPE.size, end - begin))
        if len(header) < _SIZE_AND_TYPE.size:
            return f"{len(header)} bytes of a box at its end"
        box_size, box_type = _SIZE_AND_TYPE.unpack(header)
        if box_size == 0:  # up to the end of the file
            return None
        least = _SIZE_AND_TYPE.size
        if box_size == 1:
            large = file.read(_LARGE_SIZE.size)
            least += len(large)
            box_size = _LARGE_SIZE.unpack(large)[0] if len(large) == _LARGE_SIZE.size else size
        if box_size < least or begin + box_size > end:
            return f"{end - begin} of {box_size} bytes of its last box, {box_type.decode('latin-1')!r}"
        begin += box_size
    return None
