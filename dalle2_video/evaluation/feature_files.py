"""Files of feature networks that a user names: on the command line a path, in a run's identity what lies there.

As with a text tower, the same network in another place is the same run. `feature_network` loads them. No torch here.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from dalle2_video.digests import file_digest
from dalle2_video.evaluate_config import EvaluateConfig

FIELDS = ("video_features", "frame_features")
DIGEST_MARK = "sha256:"


def files_of(config: EvaluateConfig) -> dict[str, str]:
    """Return the absolute paths of the files that a config names, by field."""
    named = {name: getattr(config, name) for name in FIELDS}
    return {name: str(Path(path).expanduser().absolute()) for name, path in named.items() if path}


def resolved(config: EvaluateConfig) -> EvaluateConfig:
    """Return the config with digests in place of paths; ValueError where a file is not there."""
    found: dict[str, Any] = {name: digest(name, Path(path)) for name, path in files_of(config).items()}
    return replace(config, **found)


def digest(field: str, path: Path) -> str:
    """Return what stands for a file in the identity; ValueError naming the field where it is not there."""
    if not path.is_file():
        flag = f"--evaluate.{field.replace('_', '-')}"
        raise ValueError(f"{flag} {path}: no such file; give a TorchScript file, as torch.jit.save writes it")
    return _digest(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _digest(path: Path, changed_ns: int) -> str:
    return DIGEST_MARK + file_digest(path)
