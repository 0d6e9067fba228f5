"""A durable file holds what was written, tells its checksum, and raises where the disk is full."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.training import durable_file
from dalle2_video.training.durable_file import DurableFile, file_checksum


@given(pieces=st.lists(st.binary(max_size=300), max_size=6))
def test_what_is_written_is_there_with_its_checksum(tmp_path_factory: pytest.TempPathFactory, pieces: list) -> None:
    path = tmp_path_factory.mktemp("files") / "a"
    with DurableFile(path) as file:
        for piece in pieces:
            file.write(memoryview(piece))
    assert path.read_bytes() == b"".join(pieces)
    assert (file.size, file.checksum) == (path.stat().st_size, file_checksum(path))


def test_one_bit_changes_the_checksum(tmp_path: Path) -> None:
    content = bytearray(b"content" * 5_000_000)  # of several pieces
    (tmp_path / "a").write_bytes(content)
    before = file_checksum(tmp_path / "a")
    content[20_000_000] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert file_checksum(tmp_path / "a") != before


def test_the_disk_is_set_to_work_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()

    def told(descriptor: int) -> None:
        synced.set()

    monkeypatch.setattr(durable_file.os, "fdatasync", told)
    with DurableFile(tmp_path / "a") as file:
        file.write(bytes(1 << 26))
        assert synced.wait(timeout=30)


def test_what_the_disk_refuses_in_the_background_is_raised_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def refuse(descriptor: int) -> None:
        refused.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable_file.os, "fdatasync", refuse)
    with pytest.raises(OSError, match="Input/output error"), DurableFile(tmp_path / "a") as file:
        file.write(bytes(1 << 26))
        assert refused.wait(timeout=30)


def test_a_full_disk_raises_and_leaves_no_thread() -> None:
    with pytest.raises(OSError, match="No space left"), DurableFile(Path("/dev/full")) as file:
        file.write(b"content")
    assert not any(thread.name == "fdatasync" for thread in threading.enumerate())
