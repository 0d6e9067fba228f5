"""Generated clips, as a page can hold them: each file whole, with what is on record of how it was made.

`samples.json` names the files; whatever it names, only videos and pictures that lie in the samples' folder are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import files

SAMPLES = "samples.json"
MOST_BYTES = 16 << 20
TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".webp": "image/webp", ".png": "image/png"}
_NOT_FACTS = ("file", "prompt", "sha256")
RECORD = ".json"
"""Ending of the file beside each video that says how it was made."""


def clips(folder: Path, most: int) -> dict[str, Any] | None:
    """Return the first `most` clips of a samples folder and how many there are; None where there is no list of them.

    A clip that cannot be shown is there with the reason as `missing`. Raises ValueError where the list is damaged.
    """
    entries = files.read_json(folder / SAMPLES)
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{folder / SAMPLES} is not a list of clips; launch the sampling again after removing it")
    return {"of": len(entries), "shown": [_clip(folder, entry) for entry in entries[:most]]}


def _clip(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    name = str(entry.get("file", ""))
    facts = {
        key: value for key, value in entry.items() if key not in _NOT_FACTS and isinstance(value, (str, int, float))
    }
    found: dict[str, Any] = {"file": name, "prompt": str(entry.get("prompt", "")), "facts": facts, "made": []}
    path = folder / name
    kind = TYPES.get(path.suffix.lower())
    if not path.resolve().is_relative_to(folder.resolve()):
        return found | {"missing": "the file is not in the samples' folder"}
    found["made"] = [[what, value] for what, value in _made(path.with_suffix(RECORD))]
    if kind is None:
        return found | {"missing": f"a {path.suffix or 'file without suffix'} is not shown here"}
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            return found | {"missing": f"{size / 2**20:.0f} MiB are more than a page should hold; see {path}"}
        return found | {"type": kind, "data": path.read_bytes()}
    except OSError as error:
        return found | {"missing": f"it cannot be read ({error.strerror})"}


def _made(record: Path) -> Iterator[tuple[str, str]]:
    """Yield what a video's record says of how it was made; nothing where there is none that can be read."""
    try:
        # A link could lead to a file that is no record.
        stored = None if record.is_symlink() else files.read_json(record)
    except (OSError, ValueError):
        return
    if not isinstance(stored, dict):
        return
    for stage, sampler in _objects(stored.get("samplers")):
        guidance = f", guidance {sampler.get('guidance')}"
        yield stage, f"{sampler.get('steps')} steps of {sampler.get('method')}{guidance}"
    made_by = stored.get("made_by")
    for stage, pin in _objects(made_by.get("parents") if isinstance(made_by, dict) else None):
        step = f" at step {pin['step']}" if "step" in pin else ""
        yield f"{stage} run", f"{pin.get('id')}{step}"
    for name in ("fps", "device"):
        if name in stored:
            yield name, str(stored[name])


def _objects(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the objects in an object, by name."""
    of = value if isinstance(value, dict) else {}
    return [(name, one) for name, one in of.items() if isinstance(one, dict)]
