"""Export of the EMA weights: what sampling loads and what child runs pin by digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dalle2_video.digests import file_digest
from dalle2_video.models.factory import WEIGHTS
from dalle2_video.training.zero_state import EMA, ShardedState


def export(folder: Path, state: ShardedState, texts: dict[str, str]) -> dict[str, Any]:
    """Write the EMA weights, gathered one parameter at a time, and `texts` (by file name) into `folder`.

    Collective; returns {"digest": digest of all files} on rank 0.
    """
    weights = {name: full.contiguous() for name, full in state.gather(EMA) if full is not None}
    if state.rank != 0:
        return {}
    save_file(weights, folder / WEIGHTS)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {"digest": export_digest(folder)}


def export_digest(folder: Path) -> str:
    """sha256 over the names and contents of an export folder, hexadecimal: what children pin."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()
