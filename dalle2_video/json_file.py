"""JSON files that others wrote: read whole, with errors that name the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError naming it where it is no JSON; OSError as the disk does."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the second: nested without end
        raise ValueError(f"{path} is no JSON: {error}") from error


@contextlib.contextmanager
def as_written_here(path: Path, remedy: str) -> Iterator[None]:
    """Turn what comes of fields that lack, or are of another kind, into a ValueError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged, or not written by this project ({error!r}); {remedy}") from error
