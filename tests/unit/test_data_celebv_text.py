import json
import logging
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from data_fixtures import CLIP_IDS, KIND_LINES, build_store, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import (
    Caption,
    ClipFile,
    caption_lines,
    fingerprint,
    identity_of,
    read_captions,
    scan,
    scan_with_notes,
    text_folders,
)
from dalle2_video.data_config import CAPTION_KINDS, DataConfig, TextFolders

CONFIG = DataConfig()
CLIP = "bbbbbbbbbbb_0_0"
OTHER = "-aaaaaaa_aa_1_2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips that are never decoded here, and captions of the first."""
    root = tmp_path / "data"
    videos = root / "videos/celebvtext_6"
    videos.mkdir(parents=True)
    (videos / f"{CLIP}.mp4").write_bytes(b"12")
    (videos / f"{OTHER}.mp4").write_bytes(b"1")
    (videos / "._hidden.mp4").write_bytes(b"1")
    for folder, lines in KIND_LINES.items():
        (root / "texts" / folder).mkdir(parents=True)
        (root / "texts" / folder / f"{CLIP}.txt").write_text(lines)
    return root


def captions_of(root: Path, clip_id: str = CLIP, config: DataConfig = CONFIG) -> list[Caption]:
    clips, _ = scan_with_notes(root, config)
    clip = next(clip for clip in clips if clip.clip_id == clip_id)
    return read_captions(clip_id, clip.texts, text_folders(root, config, clips))


def pack(folder: Path, archive: Path, *, within: str = "", deflate: bool = False) -> None:
    """Move all files below a folder into an archive, under their paths relative to `within`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path, path.relative_to(folder.parents[0] if not within else Path(within)).as_posix()) for path in files]
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".tar":
        with tarfile.open(archive, "w") as packed:
            for path, name in names:
                packed.add(path, name)
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as packed:
            for path, name in names:
                packed.write(path, name)
    shutil.rmtree(folder)


def as_tar(root: Path) -> None:
    pack(root / "videos", root / "sp_0001.tar")
    pack(root / "texts", root / "a/b/c/texts.tar")


def as_zip(root: Path) -> None:
    pack(root / "videos", root / "videos.zip")
    pack(root / "texts", root / "texts.zip")


def as_deflated_zip(root: Path) -> None:
    pack(root / "videos", root / "VIDEOS.ZIP", deflate=True)
    pack(root / "texts", root / "texts.zip", deflate=True)


def one_archive_a_kind(root: Path) -> None:
    """As `cd texts/emotion; zip ../emotion.zip *` makes them: no folder within."""
    for folder in sorted((root / "texts").iterdir()):
        pack(folder, root / "texts" / f"{folder.name}.zip", within=str(folder))


def some_of_each(root: Path) -> None:
    """One clip and half of the kinds in archives, the rest extracted."""
    (root / "moved").mkdir()
    (root / f"videos/celebvtext_6/{CLIP}.mp4").rename(root / f"moved/{CLIP}.mp4")
    pack(root / "moved", root / "videos/celebvtext_6/part.tar")
    for name in ("emotion", "light_dir", "action_dur"):
        pack(root / "texts" / name, root / "texts" / f"{name}.tar")


@pytest.mark.parametrize("lay_out", [as_tar, as_zip, as_deflated_zip, one_archive_a_kind, some_of_each])
def test_clips_captions_and_fingerprint_are_the_same_extracted_and_packed(
    root: Path, lay_out: Callable[[Path], None]
) -> None:
    extracted, captions = scan(root, CONFIG), captions_of(root)
    content = [clip.source.read() for clip in extracted]
    lay_out(root)
    packed, notes = scan_with_notes(root, CONFIG)
    assert [clip.clip_id for clip in packed] == [OTHER, CLIP]
    assert [clip.source.read() for clip in packed] == content == [b"1", b"12"]
    assert fingerprint(packed) == fingerprint(extracted)
    assert captions_of(root) == captions
    assert not notes
    assert [ClipFile.from_row(json.loads(json.dumps(clip.to_row(root))), root) for clip in packed] == packed


def test_the_store_of_a_packed_data_set_is_that_of_the_extracted_one_to_the_byte(
    tmp_path: Path, data_config: DataConfig
) -> None:
    root = write_dataset(tmp_path / "data", CLIP_IDS[:4])
    bad = root / "videos/celebvtext_6" / f"{CLIP_IDS[2]}.mp4"
    bad.write_bytes(bad.read_bytes()[:-3000])

    def contents(name: str) -> dict[str, bytes]:
        store = tmp_path / name
        build_store(root, data_config, store, tmp_path / f"staging_{name}")
        files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items()}

    extracted = contents("extracted")
    assert CLIP_IDS[2].encode() in extracted["bad_clips.json"]
    pack(root / "texts", root / "texts.zip", deflate=True)
    pack(root / "videos", root / "videos.tar")
    assert contents("packed") == extracted


def test_clips_are_sorted_by_id_and_hidden_files_left_out(root: Path) -> None:
    clips = scan(root, CONFIG)
    assert [(clip.clip_id, clip.source.size) for clip in clips] == [(OTHER, 1), (CLIP, 2)]
    assert [identity_of(clip.clip_id) for clip in clips] == ["-aaaaaaa_aa", "bbbbbbbbbbb"]


def test_fingerprint_changes_with_a_clip_s_size_and_with_the_set(root: Path) -> None:
    before = fingerprint(scan(root, CONFIG))
    assert before == fingerprint(scan(root, CONFIG))
    (root / f"videos/celebvtext_6/{CLIP}.mp4").write_bytes(b"123")
    grown = fingerprint(scan(root, CONFIG))
    (root / f"videos/celebvtext_6/{CLIP}.mp4").unlink()
    assert len({before, grown, fingerprint(scan(root, CONFIG))}) == 3


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("", "--data-root"),
        ("videos/celebvtext_6", "--data.video-folder"),
        ("texts/emotion", "--data.text-folders.emotion"),
        ("texts/light_dir", "--data.text-folders.light-direction"),
    ],
)
def test_a_missing_folder_is_named_with_its_setting(root: Path, missing: str, remedy: str) -> None:
    (root / missing).rename(root.parent / f"{root.name}_gone")
    with pytest.raises(ValueError, match=remedy) as error:
        scan(root, CONFIG)
    assert str(root / missing) in str(error.value)
    assert "archives" in str(error.value) and "tools/make_sample_data.py" in str(error.value)


def test_kinds_of_captions_can_be_gone_without_by_the_command_in_the_message(root: Path) -> None:
    for folder in ("emotion", "light_dir"):
        shutil.rmtree(root / "texts" / folder)
    with pytest.raises(ValueError) as error:
        scan(root, CONFIG)
    subprocess.run(str(error.value).rpartition(": ")[2], shell=True, check=True)
    assert len(scan(root, CONFIG)) == 2
    assert {caption.kind for caption in captions_of(root)} == set(CAPTION_KINDS) - {"emotion", "light_direction"}


def test_it_is_said_where_one_side_of_the_split_would_be_empty(root: Path) -> None:
    def says(fraction: float) -> list[str]:
        _, notes = scan_with_notes(root, DataConfig(val_fraction=fraction))
        return [note for note in notes if "held out" in note]

    fractions = sorted(
        int.from_bytes(sha256(identity_of(name).encode()).digest()[:8], "little") / 2**64 for name in (CLIP, OTHER)
    )
    below, between, above = fractions[0] / 2, sum(fractions) / 2, (fractions[1] + 1) / 2
    assert says(between) == []
    for fraction, remedy in ((below, "raise --data.val-fraction"), (above, "lower --data.val-fraction")):
        [note] = says(fraction)
        assert "2 identities" in note and remedy in note


def test_an_empty_video_folder_is_refused(root: Path) -> None:
    for file in (root / "videos/celebvtext_6").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no \.mp4"):
        scan(root, CONFIG)


def test_an_extracted_file_is_used_before_an_archived_one_and_it_is_said(root: Path) -> None:
    shutil.copytree(root / "videos", root / "old/videos")
    shutil.copytree(root / "texts", root / "old/texts")
    pack(root / "old/videos", root / "videos.tar")
    pack(root / "old/texts", root / "texts.zip")
    (root / f"videos/celebvtext_6/{CLIP}.mp4").write_bytes(b"mended")
    (root / f"videos/celebvtext_6/{OTHER}.mp4").unlink()
    (root / f"texts/emotion/{CLIP}.txt").write_text("mended")
    clips, notes = scan_with_notes(root, CONFIG)
    assert [clip.source.read() for clip in clips] == [b"1", b"mended"]
    assert Caption(kind="emotion", text="mended") in captions_of(root)
    assert len(captions_of(root)) == 7
    assert sum("1 clips lie both extracted" in note for note in notes) == 1
    assert sum("files with captions" in note for note in notes) == len(CAPTION_KINDS)


def test_a_clip_in_two_archives_is_taken_from_the_first_if_it_is_the_same(root: Path) -> None:
    pack(root / "videos", root / "b.tar")
    shutil.copy(root / "b.tar", root / "a.tar")
    clips, notes = scan_with_notes(root, CONFIG)
    assert {clip.source.path.name for clip in clips} == {"a.tar"}
    assert len(notes) == 1 and notes[0].startswith("2 files lie in the archives more than once")


def test_a_clip_that_differs_between_archives_is_refused_naming_both(root: Path) -> None:
    shutil.copytree(root / "videos", root / "other")
    pack(root / "videos", root / "a.tar")
    (root / f"other/celebvtext_6/{CLIP}.mp4").write_bytes(b"123")
    pack(root / "other", root / "b.zip")
    with pytest.raises(ValueError, match=f"{CLIP} lies in archives twice") as error:
        scan(root, CONFIG)
    assert "a.tar" in str(error.value) and "b.zip" in str(error.value)


def test_archives_are_searched_three_levels_deep_and_not_among_caption_files(root: Path) -> None:
    pack(root / "videos", root / "1/2/3/videos.tar")
    (root / "1/2/3/4").mkdir()
    (root / "1/2/3/4/deeper.tar").write_bytes(b"never opened")
    (root / "texts/emotion/packed.tar.gz").write_bytes(b"never seen")
    assert len(scan(root, CONFIG)) == 2
    (root / "1/2/deeper.tar").write_bytes(b"opened")
    with pytest.raises(ValueError, match=r"1/2/deeper\.tar is no uncompressed tar archive"):
        scan(root, CONFIG)


def test_half_an_archive_does_not_make_a_smaller_data_set(root: Path) -> None:
    pack(root / "videos", root / "sp_0001.tar")
    with (root / "sp_0001.tar").open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(ValueError, match=r"sp_0001\.tar.*cut.*fetch it again"):
        scan(root, CONFIG)


def test_a_compressed_archive_is_refused_with_a_command(root: Path) -> None:
    (root / "videos/sp_0001.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"gunzip .*videos/sp_0001\.tar\.gz"):
        scan(root, CONFIG)


@pytest.mark.parametrize("packed", [False, True])
def test_videos_that_are_no_clips_by_their_names_are_said(root: Path, packed: bool) -> None:
    for name in ("ccccccccccc_0_0.MP4", "ddddddddddd_0_0.webm", "._eeeeeeeeeee_0_0.MP4", "index.csv"):
        (root / "videos/celebvtext_6" / name).write_bytes(b"1")
    if packed:
        pack(root / "videos", root / "videos.tar")
    clips, notes = scan_with_notes(root, CONFIG)
    assert len(clips) == 2
    (note,) = [note for note in notes if "do not end in .mp4" in note]
    assert note.startswith("2 videos ") and "ccccccccccc_0_0.MP4" in note and "ddddddddddd_0_0.webm" in note


def test_caption_files_of_no_kind_and_links_to_nothing_are_said(root: Path) -> None:
    (root / "notes").mkdir()
    (root / "notes/readme.txt").write_text("thank you")
    pack(root / "notes", root / "notes.zip")
    (root / "videos/celebvtext_6/gone.mp4").symlink_to("nowhere.mp4")
    (root / os.fsdecode(b"videos/celebvtext_6/caf\xe9_______0_0.mp4")).write_bytes(b"1")
    clips, notes = scan_with_notes(root, CONFIG)
    assert len(clips) == 2
    assert [any(part in note for note in notes) for part in ("notes/readme.txt in", "gone.mp4", "not UTF-8")] == [
        True
    ] * 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("standard", "spelling"),
    [
        ("texts/light_color_temp", "texts/light_colot_temp"),
        ("texts/light_color_temp", "texts/Light_Color_Temp"),
        ("texts/face40_details_new", "texts/face40_details/face40_details_new"),
        ("texts/face40_details_new", "texts/face40_details"),
        ("texts/emotion", "texts/descripitions/emotion"),
        ("texts/action_dur", "descripitions/action_dur"),
        ("texts/emotion", "texts/emotion/emotion"),
    ],
)
def test_spellings_of_published_copies_are_accepted_with_a_note(
    root: Path, caplog: pytest.LogCaptureFixture, standard: str, spelling: str, packed: bool
) -> None:
    expected = captions_of(root)
    (root / standard).rename(root / "moved")
    (root / spelling).parent.mkdir(exist_ok=True, parents=True)
    (root / "moved").rename(root / spelling)
    if packed:
        pack(root / spelling, root / "captions.tar", within=str(root))
        shutil.rmtree(root / standard, ignore_errors=True)
    with caplog.at_level(logging.WARNING):
        scan(root, CONFIG)
    assert (spelling in caplog.text) != packed
    assert captions_of(root) == expected


def test_upper_and_lower_case_are_alike_at_every_level(root: Path) -> None:
    expected = captions_of(root)
    (root / "texts").rename(root / "TEXTS")
    assert captions_of(root) == expected
    pack(root / "TEXTS", root / "captions.zip")
    assert captions_of(root) == expected


def test_the_configured_name_goes_before_other_spellings(root: Path) -> None:
    expected = captions_of(root)
    for older in ("texts/face40_details", "texts/light_colot_temp"):
        (root / older).mkdir()
        (root / older / f"{CLIP}.txt").write_text("an older version")
    assert captions_of(root) == expected
    pack(root / "texts", root / "texts.tar")
    assert captions_of(root) == expected


def test_kinds_configured_with_folders_of_one_name_are_told_apart_by_those_above(root: Path) -> None:
    (root / "feeling").mkdir()
    (root / "texts/emotion").rename(root / "feeling/text")
    (root / "deed").mkdir()
    (root / "texts/action_dur").rename(root / "deed/text")
    config = DataConfig(text_folders=TextFolders(emotion="feeling/text", action="deed/text"))
    expected = captions_of(root, config=config)
    pack(root / "feeling", root / "one.tar")
    pack(root / "deed", root / "other.tar")
    assert captions_of(root, config=config) == expected
    (root / "text").mkdir()
    (root / "text/a.txt").write_text("whose?")
    pack(root / "text", root / "third.tar")
    with pytest.raises(ValueError, match="may be of kind action or emotion"):
        scan(root, config)


def test_a_caption_folder_that_goes_away_is_no_clip_without_captions(root: Path) -> None:
    clips = scan(root, CONFIG)
    folders = text_folders(root, CONFIG, clips)
    (root / "texts/emotion").rename(root / "gone")
    with pytest.raises(ValueError, match=r"--data\.text-folders\.emotion"):
        text_folders(root, CONFIG, clips)
    with pytest.raises(FileNotFoundError, match="texts/emotion"):
        read_captions(CLIP, {}, folders)


INFO = {
    f"{CLIP}.mp4": {"ytb_id": "bbbbbbbbbbb", "duration": {"start_sec": 1.5, "end_sec": 11.0}},
    f"{OTHER}.mp4": {"ytb_id": "someoneelse", "duration": {"start_sec": 3, "end_sec": 3}},
    "ccccccccccc_0_0.mp4": {},
}


@pytest.mark.parametrize("place", ["", "descriptions"])
def test_the_info_file_tells_durations_and_what_is_not_there(root: Path, place: str) -> None:
    (root / place).mkdir(exist_ok=True)
    (root / place / "celebvtext_info.json").write_text(json.dumps(INFO))
    clips, notes = scan_with_notes(root, CONFIG)
    assert [clip.expected_seconds for clip in clips] == [None, 9.5]
    absent, odd, strangers = notes
    assert absent.startswith("1 of 3 clips") and "ccccccccccc_0_0" in absent
    assert odd.startswith("1 entries") and OTHER in odd
    assert strangers.startswith("1 clips have another ytb_id") and OTHER in strangers


@pytest.mark.parametrize("entry", [None, [], "1", {"duration": None}, {"duration": {"end_sec": "x", "start_sec": 0}},
                                   {"duration": {"end_sec": float("nan"), "start_sec": 0}}])  # fmt: skip
def test_an_odd_entry_of_the_info_file_is_counted_and_left_out(root: Path, entry: object) -> None:
    (root / "celebvtext_info.json").write_text(json.dumps({f"{CLIP}.mp4": entry}))
    clips, notes = scan_with_notes(root, CONFIG)
    assert [clip.expected_seconds for clip in clips] == [None, None]
    assert notes == [f"1 entries of celebvtext_info.json tell no duration: {CLIP}"]


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000])
def test_a_broken_info_file_is_named_with_the_remedy(root: Path, text: str) -> None:
    (root / "celebvtext_info.json").write_text(text)
    with pytest.raises(ValueError, match=r"celebvtext_info\.json.*remove it"):
        scan(root, CONFIG)


def test_every_line_of_every_kind_is_a_caption(root: Path) -> None:
    captions = captions_of(root)
    assert [caption.text for caption in captions] == "".join(KIND_LINES.values()).splitlines()
    assert {caption.kind for caption in captions} == set(CAPTION_KINDS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_crlf_blank_lines_and_other_scripts_are_read(root: Path, encoding: str) -> None:
    path = root / f"texts/emotion/{CLIP}.txt"
    path.write_bytes("sie lächelt\r\n\r\n  笑う \rlast\u2028o\x0bn\x0ce😀\n\t\n".encode(encoding))
    texts = [caption for caption in captions_of(root) if caption.kind == "emotion"]
    expected = ("sie lächelt", "笑う", "last\u2028o\x0bn\x0ce😀")
    assert texts == [Caption(kind="emotion", text=text) for text in expected]


def test_big_endian_utf16_is_read() -> None:
    assert caption_lines(b"\xfe\xff" + "笑う\nb".encode("utf-16-be"), "x") == ["笑う", "b"]


def test_a_missing_kind_is_fine_but_no_caption_at_all_is_not(root: Path) -> None:
    (root / f"texts/emotion/{CLIP}.txt").unlink()
    assert len(captions_of(root)) == 6
    with pytest.raises(ValueError, match=f"no caption for {OTHER}"):
        captions_of(root, OTHER)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"caf\xe9", "not UTF-8: .* at byte 3"),
        (b"\xef\xbb\xbfcaf\xe9", "not UTF-8: .* at byte 6"),
        (b"\xff\xfea\0\x00\xd8b\0", "not UTF-16: .* at byte 4"),
        (b"\xff\xfea\0b", "not UTF-16: .* at byte 4"),
        (b"a\nb\0", "a zero at byte 3"),
        ("\ufeffa\0".encode("utf-16-le"), "a zero at byte 4"),
        ("calm".encode("utf-16-le"), "a zero at byte 1; .*iconv"),
        ("\ufeffcalm".encode("utf-32-le"), "a zero at byte 2"),
        (b"x" * 1_048_577, "1048577 bytes"),
    ],
)
def test_what_is_no_text_names_file_and_byte(root: Path, data: bytes, complaint: str) -> None:
    path = root / f"texts/emotion/{CLIP}.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=complaint) as error:
        captions_of(root)
    assert str(path) in str(error.value)
    pack(root / "texts", root / "texts.zip", deflate=True)
    with pytest.raises(ValueError, match=complaint) as error:
        captions_of(root)
    assert str(root / "texts.zip") in str(error.value)


lines = st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"])).filter(str.strip)
breaks = st.text("\r\n \t", min_size=1).filter(lambda text: "\n" in text or "\r" in text)


@given(st.lists(st.tuples(lines, breaks)), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_whatever_the_line_ends_and_encoding_the_lines_come_back(pairs: list[tuple[str, str]], encoding: str) -> None:
    data = "".join(line + end for line, end in pairs).encode(encoding)
    assert caption_lines(data, "x") == [line.strip() for line, _ in pairs]


@given(st.binary())
def test_any_bytes_are_lines_or_a_value_error(data: bytes) -> None:
    try:
        found = caption_lines(data, "x")
    except ValueError as error:
        assert str(error).startswith("caption file x")
    else:
        assert all(line and line == line.strip() and not set("\0\r\n") & set(line) for line in found)


numbers = st.none() | st.integers(0, 2**62)
paths = st.lists(st.text("ab.-_ é", min_size=1).filter(lambda part: part.strip(".")), min_size=1, max_size=4)
sources = st.builds(
    Source,
    path=paths.map(lambda parts: Path("/root", *parts)),
    size=st.integers(0, 2**62), offset=numbers, packed_size=numbers, crc32=numbers,
)  # fmt: skip
clip_files = st.builds(
    ClipFile,
    clip_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    source=sources,
    texts=st.dictionaries(st.sampled_from(CAPTION_KINDS), sources),
    expected_seconds=st.none() | st.floats(0, 1e6),
)


@given(clip_files)
def test_a_clip_comes_back_from_the_manifest_also_where_the_data_moved(clip: ClipFile) -> None:
    row = json.loads(json.dumps(clip.to_row(Path("/root"))))
    assert ClipFile.from_row(row, Path("/root")) == clip
    assert ClipFile.from_row(row, Path("/moved")).to_row(Path("/moved")) == clip.to_row(Path("/root"))
