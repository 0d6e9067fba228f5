"""What the loop remembers beside weights and moments, in a small file of each checkpoint.

It carries its own checksum: a checkpoint whose notes are damaged is as damaged as one whose weights are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dalle2_video import json_file
from dalle2_video.training.checkpoint import DamagedCheckpointError

NOTES = "notes.json"


def write(folder: Path, notes: dict[str, Any]) -> None:
    """Write the notes (JSON types, finite numbers) into a checkpoint that is not committed yet."""
    (folder / NOTES).write_text(json.dumps({"notes": notes, "sha256": _digest(notes)}))


def read(folder: Path) -> dict[str, Any]:
    """Return the notes, to the bit. Raises DamagedCheckpointError where they are missing or damaged."""
    path = folder / NOTES
    try:
        content = json_file.read(path)
        notes, digest = content["notes"], content["sha256"]
    except (OSError, ValueError) as error:  # they name the file
        raise DamagedCheckpointError(str(error)) from error
    except (LookupError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: not written by this project ({error!r})") from error
    if digest != _digest(notes):
        raise DamagedCheckpointError(f"{path}: checksum differs")
    return notes


def _digest(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()
