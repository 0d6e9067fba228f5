"""What users, data and libraries wrote, as text that a page can show: nothing in it acts any more.

Markup is the page's concern (it only ever makes text nodes); here terminal escapes, changes of direction and other
characters that do something become visible, and what is endless is cut.
"""

from __future__ import annotations

import base64
import math
import unicodedata
from typing import Any

MOST_CHARACTERS = 4000
_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that do something where they are shown, or that nothing can show."""
_KEPT = "\n\t"


def visible(text: str, most: int = MOST_CHARACTERS) -> str:
    r"""Return a text in which acting characters are written out and which is of bounded length.

    >>> visible("a\x1b[31mb")
    'a\\u{1b}[31mb'
    """
    cut = text if len(text) <= most else f"{text[:most]} ... ({len(text) - most} more characters)"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(character if _shows(character) else f"\\u{{{ord(character):x}}}" for character in cut)


def _shows(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) not in _ACTING


def plain(value: Any) -> Any:
    """Return values as JSON has them: texts and keys made visible, bytes as base64, NaN and infinity as words."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {visible(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
