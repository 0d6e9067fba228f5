import logging
from pathlib import Path

import pytest
from data_fixtures import KIND_LINES

from dalle2_video.data.celebv_text import Caption, fingerprint, identity_of, read_captions, scan
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

CONFIG = DataConfig()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips that are never decoded here, and captions of the first."""
    videos = tmp_path / "videos/celebvtext_6"
    videos.mkdir(parents=True)
    (videos / "bbbbbbbbbbb_0_0.mp4").write_bytes(b"12")
    (videos / "-aaaaaaa_aa_1_2.mp4").write_bytes(b"1")
    (videos / "._hidden.mp4").write_bytes(b"1")
    for folder, lines in KIND_LINES.items():
        (tmp_path / "texts" / folder).mkdir(parents=True)
        (tmp_path / "texts" / folder / "bbbbbbbbbbb_0_0.txt").write_text(lines)
    return tmp_path


def test_clips_are_sorted_by_id_and_hidden_files_left_out(root: Path) -> None:
    clips = scan(root, CONFIG)
    assert [(clip.clip_id, clip.size_bytes) for clip in clips] == [("-aaaaaaa_aa_1_2", 1), ("bbbbbbbbbbb_0_0", 2)]
    assert [identity_of(clip.clip_id) for clip in clips] == ["-aaaaaaa_aa", "bbbbbbbbbbb"]


def test_fingerprint_changes_with_a_clip_s_size_and_with_the_set(root: Path) -> None:
    before = fingerprint(scan(root, CONFIG))
    assert before == fingerprint(scan(root, CONFIG))
    (root / "videos/celebvtext_6/bbbbbbbbbbb_0_0.mp4").write_bytes(b"123")
    grown = fingerprint(scan(root, CONFIG))
    (root / "videos/celebvtext_6/bbbbbbbbbbb_0_0.mp4").unlink()
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
    assert "tools/make_sample_data.py" in str(error.value)


def test_an_empty_video_folder_is_refused(root: Path) -> None:
    for file in (root / "videos/celebvtext_6").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no \.mp4"):
        scan(root, CONFIG)


@pytest.mark.parametrize(
    ("standard", "spelling"),
    [
        ("texts/light_color_temp", "texts/light_colot_temp"),
        ("texts/face40_details_new", "texts/face40_details/face40_details_new"),
        ("texts/emotion", "texts/descripitions/emotion"),
    ],
)
def test_spellings_of_published_copies_are_accepted_with_a_note(
    root: Path, caplog: pytest.LogCaptureFixture, standard: str, spelling: str
) -> None:
    expected = read_captions(root, "bbbbbbbbbbb_0_0", CONFIG)
    (root / spelling).parent.mkdir(exist_ok=True)
    (root / standard).rename(root / spelling)
    with caplog.at_level(logging.WARNING):
        scan(root, CONFIG)
    assert spelling in caplog.text
    assert read_captions(root, "bbbbbbbbbbb_0_0", CONFIG) == expected


def test_every_line_of_every_kind_is_a_caption(root: Path) -> None:
    captions = read_captions(root, "bbbbbbbbbbb_0_0", CONFIG)
    assert [caption.text for caption in captions] == "".join(KIND_LINES.values()).splitlines()
    assert {caption.kind for caption in captions} == set(CAPTION_KINDS)


def test_bom_crlf_blank_lines_and_other_scripts_are_read(root: Path) -> None:
    path = root / "texts/emotion/bbbbbbbbbbb_0_0.txt"
    path.write_bytes("\ufeffsie lächelt\r\n\r\n  笑う \rlast\u2028one".encode())
    texts = [caption for caption in read_captions(root, "bbbbbbbbbbb_0_0", CONFIG) if caption.kind == "emotion"]
    assert texts == [Caption(kind="emotion", text=text) for text in ("sie lächelt", "笑う", "last\u2028one")]


def test_a_missing_kind_is_fine_but_no_caption_at_all_is_not(root: Path) -> None:
    (root / "texts/emotion/bbbbbbbbbbb_0_0.txt").unlink()
    assert len(read_captions(root, "bbbbbbbbbbb_0_0", CONFIG)) == 6
    with pytest.raises(ValueError, match="no caption for -aaaaaaa_aa_1_2"):
        read_captions(root, "-aaaaaaa_aa_1_2", CONFIG)


def test_undecodable_text_names_the_file(root: Path) -> None:
    path = root / "texts/emotion/bbbbbbbbbbb_0_0.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8") as error:
        read_captions(root, "bbbbbbbbbbb_0_0", CONFIG)
    assert str(path) in str(error.value)
