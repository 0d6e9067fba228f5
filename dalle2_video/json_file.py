"""JSON files that others wrote: read whole, with errors that name the file.

Imports the standard library alone: the registry reads its records by it too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path | str) -> Any:
    """Return the content of a JSON file. Raises ValueError naming it where it is no JSON; OSError as the disk does."""
    # Lists of thousands of runs read tens of thousands of small files: no more system calls than it takes.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = b""
        while chunk := os.read(descriptor, 1 << 20):
            content += chunk
    except OSError as error:
        error.filename = str(path)  # a folder is found out here alone
        raise
    finally:
        os.close(descriptor)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # the second: nested without end
        raise ValueError(f"{path} is no JSON: {error}") from error


@contextlib.contextmanager
def as_written_here(path: Path, remedy: str) -> Iterator[None]:
    """Turn what comes of fields that lack, or are of another kind, into a ValueError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged, or not written by this project ({error!r}); {remedy}") from error
