"""Members of tar and zip archives are read where they lie, and an archive that is not whole is never a smaller one."""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from data_fixtures import write_mp4

from dalle2_video.data.archives import Source, members

CONTENT = {
    "videos/a.mp4": random.Random(0).randbytes(70_001),
    "texts/emotion/a.txt": "lächelt\n".encode() * 400,
    "texts/emotion/empty.txt": b"",
    "x" * 60 + "/" + "y" * 120 + ".txt": b"a name too long for the first tar format",
}


def write_tar(path: Path, content: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


ARCHIVES: list[Callable[[Path], Path]] = [
    lambda folder: write_tar(folder / "pax.tar", CONTENT),
    lambda folder: write_tar(folder / "gnu.tar", CONTENT, tarfile.GNU_FORMAT),
    lambda folder: write_zip(folder / "stored.zip", CONTENT),
    lambda folder: write_zip(folder / "deflated.zip", CONTENT, zipfile.ZIP_DEFLATED),
]


def listed(archive: Path) -> dict[str, Source]:
    return {str(name): source for name, source in members(archive)}


@pytest.mark.parametrize("write", ARCHIVES)
def test_members_read_as_they_were_packed(write: Callable[[Path], Path], tmp_path: Path) -> None:
    found = listed(write(tmp_path))
    assert {name: source.read() for name, source in found.items()} == CONTENT
    assert {name: source.size for name, source in found.items()} == {name: len(data) for name, data in CONTENT.items()}


@pytest.mark.parametrize("write", ARCHIVES)
def test_every_cut_of_an_archive_is_refused_with_its_name(write: Callable[[Path], Path], tmp_path: Path) -> None:
    archive = write(tmp_path)
    whole = archive.read_bytes()
    end = len(whole.rstrip(b"\0"))  # of the zeros at the end of a tar some may go
    cut = archive.with_name(f"cut{archive.suffix}")
    places = {0, 1, 511, 512, 513, 1024, 70_000, end - 1, *random.Random(1).sample(range(end), 40)}
    places |= {source.offset + source.size for source in listed(archive).values() if source.offset}  # between members
    for place in sorted(place for place in places if place < end):
        cut.write_bytes(whole[:place])
        with pytest.raises(ValueError, match=r"cut\.(tar|zip).*fetch it again"):
            list(members(cut))


def test_a_download_into_reserved_space_is_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", CONTENT)
    first_end = 512 + 512 * -(-len(CONTENT["videos/a.mp4"]) // 512)
    with archive.open("r+b") as file:
        file.truncate(first_end)
        file.truncate(5_000_000)
    with pytest.raises(ValueError, match="not fetched whole"):
        list(members(archive))


def test_archives_appended_to_one_another_do_not_lose_the_later_ones(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", CONTENT)
    archive.write_bytes(archive.read_bytes() * 2)
    with pytest.raises(ValueError, match="goes on after its end"):
        list(members(archive))


def test_a_damaged_header_does_not_end_the_archive_early(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", CONTENT, tarfile.GNU_FORMAT)
    second = listed(archive)["texts/emotion/a.txt"]
    assert second.offset is not None
    with archive.open("r+b") as file:
        file.seek(second.offset - 500)
        file.write(b"?")
    with pytest.raises(ValueError, match="damaged or cut at byte"):
        list(members(archive))


def test_nothing_that_leads_outside_or_is_no_file_is_read_and_it_is_said(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind in (
            ("good.mp4", tarfile.REGTYPE), ("../up.mp4", tarfile.REGTYPE), ("/abs.mp4", tarfile.REGTYPE),
            ("a/../../up.mp4", tarfile.REGTYPE), ("soft.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE),
            ("pipe.mp4", tarfile.FIFOTYPE), ("disk.mp4", tarfile.BLKTYPE), ("folder.mp4", tarfile.DIRTYPE),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
    packed = write_zip(tmp_path / "a.zip", dict.fromkeys(("good.mp4", "../up.mp4", "/a.mp4", "C:\\a.mp4"), b"1"))
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("soft.mp4")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(secret))
    notes: list[str] = []
    assert [[str(name) for name, _ in members(archive, notes.append)] for archive in (tar, packed)] == [
        ["good.mp4"]
    ] * 2
    assert [note.split(": ")[1].split()[0] for note in notes] == ["7", "4"]


def test_folders_written_with_backslashes_are_folders(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"texts\\emotion\\a.txt": b"calm", "texts\\": b""})
    assert list(listed(archive)) == ["texts/emotion/a.txt"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a.tar.gz", "gunzip"),
        ("A.TGZ", "gunzip"),
        ("a.tar.xz", "unxz"),
        ("a.tar.zst", "unzstd"),
        ("a.tar.bz2", "bunzip2"),
    ],
)
def test_an_archive_compressed_as_a_whole_is_refused_with_the_command_to_type(
    name: str, command: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"{command}.*{name}"):
        list(members(path))


def test_a_compressed_archive_under_the_name_of_a_tar_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "b.tar", CONTENT).read_bytes()))
    with pytest.raises(ValueError, match="compressed as a whole"):
        list(members(path))


def test_encrypted_members_and_other_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.zip: videos/a\.mp4 is compressed by a method other than deflate"):
        list(members(write_zip(tmp_path / "a.zip", CONTENT, zipfile.ZIP_LZMA)))
    path = write_zip(tmp_path / "b.zip", {"a.mp4": b"1"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the flags in the directory
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"b\.zip: a\.mp4 is encrypted"):
        list(members(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_is_found_when_the_member_is_read(compression: int, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", CONTENT, compression)
    found = listed(archive)["texts/emotion/a.txt"]
    assert found.offset is not None
    places, refused = found.packed_size or 40, 0
    for place in range(places):
        raw = bytearray(archive.read_bytes())
        raw[found.offset + place] ^= 16
        damaged = tmp_path / "damaged.zip"
        damaged.write_bytes(raw)
        try:
            read = dataclasses.replace(found, path=damaged).read()
        except ValueError as error:
            assert "damaged.zip" in str(error)
            refused += 1
        else:
            assert read == CONTENT["texts/emotion/a.txt"]  # some bits of deflated data say nothing
    assert refused > places - 3


def test_a_bomb_is_refused_before_it_is_unpacked_and_a_lie_about_its_size_while_it_is(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a.mp4": bytes(30_000_000), "b.mp4": bytes(3000)}, zipfile.ZIP_DEFLATED)
    bomb, small = listed(archive).values()
    with pytest.raises(ValueError, match="not trusted"):
        bomb.read()
    with pytest.raises(ValueError, match="another size"):
        dataclasses.replace(bomb, size=1000).read()
    with pytest.raises(ValueError, match="another size"):
        dataclasses.replace(small, size=3001).read()


def test_a_tar_header_with_a_negative_size_is_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.mp4": b"1" * 600, "b.mp4": b"2"}, tarfile.GNU_FORMAT)
    raw = bytearray(archive.read_bytes())
    raw[124:136] = b"\xff" * 4 + struct.pack(">q", -2048)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        list(members(archive))


def test_a_file_that_shrank_after_it_was_found_is_not_read_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    source = Source.of_file(path)
    assert source.read() == b"12345"
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match=r"a\.txt has 3 bytes, but had 5"):
        source.read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.read()


def test_an_archive_cut_after_it_was_listed_is_found_when_read(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", CONTENT)
    source = listed(archive)["videos/a.mp4"]
    with archive.open("r+b") as file:
        file.truncate(40_000)
    with pytest.raises(ValueError, match="ends after"):
        source.read()


def test_a_clip_decodes_from_inside_an_archive_to_the_same_frames(tmp_path: Path) -> None:
    clip = write_mp4(tmp_path / "a.mp4", seconds=1.0)
    content = {"before.bin": bytes(1000), "x/a.mp4": clip.read_bytes(), "after.bin": b"\xff" * 5000}
    odd = tmp_path / "a folder: with, 100%d,,:signs"
    odd.mkdir()
    archives = [
        write_tar(odd / "a.tar", content),
        write_zip(odd / "stored.zip", content),
        write_zip(odd / "deflated.zip", content, zipfile.ZIP_DEFLATED),
    ]

    def frames(source: Source) -> np.ndarray:
        with av.open(source.for_av()) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    expected = frames(Source.of_file(clip))
    assert len(expected) == 24
    for archive in archives:
        source = pickle.loads(pickle.dumps(listed(archive)["x/a.mp4"]))  # as it is sent to the decoding process
        np.testing.assert_array_equal(frames(source), expected)
        assert isinstance(source.for_av(), io.BytesIO) == (archive.name == "deflated.zip")
