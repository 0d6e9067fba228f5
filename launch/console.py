"""What the commands print on a terminal: names and errors that come from disk may not steer it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

import rich.console
from rich.segment import Segment


def shown(text: object) -> str:
    """Return a text with its control characters escaped, line ends and tabs kept: `\\x1b[2J` is four characters."""
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in str(text))


def print_error(text: object) -> None:
    """Print what went wrong to standard error."""
    print(f"error: {shown(text)}", file=sys.stderr)


def leave_closed_pipe() -> int:
    """Return the exit code for output whose reader, such as `head`, has seen enough; the rest goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


class Console(rich.console.Console):
    """rich's, which by itself lets escape sequences through."""

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the pieces of what is printed; their colours are no part of their texts."""
        for segment in super().render(renderable, options):
            plain = segment.control or segment.text.isprintable()
            yield segment if plain else Segment(shown(segment.text), segment.style)
