"""Prompts as people give them: checked, and read from a file with one a line.

A prompt is one line of text of any language. It is never a file name, a part of one, or a word of a shell: it goes into
JSON, into a tag of a video file and into the tokenizer, and is otherwise shown escaped. So `$(...)`, quotes, `<script>`
and a leading "-" are words like others; what steers a terminal or hides text from its reader is refused. Imports no
torch.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

MOST_CHARACTERS = 2000
"""Of a prompt: several times what any text encoder here reads."""
MOST_PROMPTS = 100_000
MOST_BYTES = 64 << 20
"""Of a file of prompts."""
_REFUSED = {
    "Cc": "a control character",
    "Cs": "no character: the text is not UTF-8",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def check(prompt: str, where: str) -> None:
    """Raise ValueError with the place and the remedy where a text cannot be a prompt; where: the field, or the line."""
    if not prompt.strip():
        raise ValueError(f"{where}={prompt[:20]!r} must not be empty")
    if len(prompt) > MOST_CHARACTERS:
        raise ValueError(
            f"{where} has {len(prompt)} characters, a prompt at most {MOST_CHARACTERS}; shorten it: {prompt[:60]!r}..."
        )
    for place, character in enumerate(prompt, start=1):
        if (what := _reason(character)) is not None:
            shown = prompt if len(prompt) <= 80 else f"{prompt[:80]}..."
            raise ValueError(
                f"{where}: character {place}, U+{ord(character):04X}, is {what}; remove it, a prompt is one line of "
                f"text: {shown!a}"
            )


def cleaned(text: str) -> str:
    """Return a caption of a data set as a prompt: refused characters become spaces, what is too long is cut."""
    kept = (" " if _reason(character) else character for character in text)
    return " ".join("".join(kept).split())[:MOST_CHARACTERS]


def _reason(character: str) -> str | None:
    if character in _REORDERING:
        return "a mark that shows text in another order than it has"
    return _REFUSED.get(unicodedata.category(character))


def check_all(prompts: tuple[str, ...], where: str) -> None:
    """Raise ValueError with the place and the remedy where one of them cannot be a prompt, or they are too many."""
    if len(prompts) > MOST_PROMPTS:
        raise ValueError(f"{where} are {len(prompts)}, a run has at most {MOST_PROMPTS}; share them among several runs")
    for number, prompt in enumerate(prompts, start=1):
        check(prompt, where if len(prompts) == 1 else f"{where} {number}")


def read(path: Path, where: str) -> tuple[str, ...]:
    """Read a file of prompts: UTF-8, one a line; spaces around a prompt do not count, empty lines are passed over.

    where: the option that names it. Raises ValueError with the line's number and the remedy.
    """
    named = f"{where} {path}"
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{named}: cannot be read ({error.strerror}); give a text file, one prompt a line") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{named}: more than {MOST_BYTES >> 20} MiB; share the prompts among several files and runs")
    found = []
    # Lines end as editors end them; other separators of Python's splitlines are refused where they stand.
    lines = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            prompt = line.decode().strip(" \t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{named}, line {number}: is not UTF-8 ({error.reason}); save the file as UTF-8") from None
        if prompt:
            check(prompt, f"{named}, line {number}")
            found.append(prompt)
    if not found:
        raise ValueError(f"{named}: holds no prompt; write one a line")
    if len(found) > MOST_PROMPTS:
        raise ValueError(f"{named}: {len(found)} prompts, a run has at most {MOST_PROMPTS}; share them among several")
    return tuple(found)
