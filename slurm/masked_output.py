"""What a process of a run prints into its log, without secrets.

Ranks write their logs by themselves: no process stands between a training and its files, so that none can hold it up.
What goes through `sys.stdout` and `sys.stderr` is looked at here: `print`, `logging`, tracebacks. What a library in
another language, or another process, writes to the descriptors is not.
"""

from __future__ import annotations

import io
import sys

from experiments import secret_words


class MaskedStream(io.TextIOWrapper):
    """A text stream that leaves secrets out of what it writes; one that comes in several pieces is not seen."""

    def write(self, text: str, /) -> int:
        """Write a text without secrets; return its own length, as callers expect."""
        super().write(secret_words.redacted(text))
        return len(text)


def mask_secrets() -> None:
    """Let this process print no secrets from now on; called once, first thing in a program that writes a log."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        masked = MaskedStream(
            stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=stream.write_through
        )
        # The stream before it lives on as sys.__stdout__: it would close the descriptor if nothing held it.
        setattr(sys, name, masked)
