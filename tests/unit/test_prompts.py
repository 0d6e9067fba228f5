"""Prompts: what is let in as it is, what is refused with a remedy, and files of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dalle2_video import prompts
from dalle2_video.sample_config import SampleConfig

HOSTILE = [
    "$(touch /tmp/owned) `id`",
    'it\'s "quoted" \\ and | & ; > <',
    "<script>alert(1)</script> &amp;",
    "-n --help",
    "--sample.prompts=x",
    "../../etc/passwd",
    "%s %n {0} {prompt!r}",
    "[bold red]markup[/] ]]>",
    "日本語 العربية 👩‍👩‍👧 café",
    "'; DROP TABLE runs; --",
]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_any_line_of_text_is_a_prompt(prompt: str, tmp_path: Path) -> None:
    prompts.check(prompt, "here")
    assert SampleConfig(prompts=(prompt,)).prompts == (prompt,)
    (tmp_path / "list.txt").write_text(f"{prompt}\n")
    assert prompts.read(tmp_path / "list.txt", "--file") == (prompt,)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a\nb", "U+000A, is a control character"),
        ("a\tb", "U+0009"),
        ("\x1b[31mred\x1b[0m", "character 1, U+001B"),
        ("a\x00b", "U+0000"),
        ("a\x9b31m", "U+009B"),
        ("a\u2028b", "a line separator"),
        ("a\u202egnp.exe", "another order"),
        ("a\udcffb", "not UTF-8"),
        ("  ", "must not be empty"),
        ("x" * (prompts.MOST_CHARACTERS + 1), "has 2001 characters"),
    ],
)
def test_what_steers_a_terminal_or_hides_text_is_refused_and_shown_escaped(prompt: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        SampleConfig(prompts=("good", prompt))
    message = str(caught.value)
    assert reason in message and "sample.prompts 2" in message
    assert message.isprintable() and message.isascii()


def test_a_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff  one \r\n\n\t\n-two\nthree".encode())
    assert prompts.read(path, "--file") == ("one", "-two", "three")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"one\ntwo\xff\n", "line 2: is not UTF-8"),
        (b"one\n\nred\x1b[0m\n", "line 3: character 4, U+001B"),
        (b"one\rtwo\n", "line 1: character 4, U+000D"),
        (b"\n \n", "holds no prompt"),
        (b"x" * 2001, "line 1 has 2001 characters"),
        (b"\x00" * 10, "line 1: character 1, U+0000"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        prompts.read(path, "--file")
    assert reason in str(caught.value) and str(caught.value).isprintable() and "list.txt" in str(caught.value)


def test_a_file_that_is_too_large_or_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        prompts.read(tmp_path / "none.txt", "--file")
    with pytest.raises(ValueError, match="cannot be read"):
        prompts.read(tmp_path, "--file")
    monkeypatch.setattr(prompts, "MOST_BYTES", 1 << 20)
    (tmp_path / "long.txt").write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(ValueError, match="more than 1 MiB"):
        prompts.read(tmp_path / "long.txt", "--file")
    monkeypatch.setattr(prompts, "MOST_PROMPTS", 3)
    (tmp_path / "many.txt").write_text("a\n" * 4)
    with pytest.raises(ValueError, match="4 prompts, a run has at most 3"):
        prompts.read(tmp_path / "many.txt", "--file")
    with pytest.raises(ValueError, match="are 4, a run has at most 3"):
        SampleConfig(prompts=("a",) * 4)


def test_captions_are_cleaned_and_not_refused() -> None:
    assert prompts.cleaned(" a\nred\x1b[0m\u202e  circle ") == "a red [0m circle"
    assert len(prompts.cleaned("x" * 5000)) == prompts.MOST_CHARACTERS
