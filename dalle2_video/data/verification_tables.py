"""What verification knows of a store beforehand, what it finds, and the tables of a store as they lie on disk.

Invariant: reading here never repairs and never guesses: a file that is missing, or not as long as the layout says, is
an error with the reason. `verification` and `verification_shards` are built on this.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dalle2_video import json_file
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

CHECKS = (
    "registry",
    "metadata",
    "task records",
    "clip tables",
    "captions",
    "tokens",
    "tokenizer",
    "statistics",
    "frame shards",
    "frame chunks",
    "embedding shards",
)
Redo = Literal["task", "join", "prepare", "remove", "nothing"]
# Data type and shape of each table: N clips, M captions, C tokens of context; texts are as long as their offsets say,
# and the rows of a split as many as clips are good and in it.
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "num_frames": ("<i4", ("N",)),
    "source_fps": ("<f8", ("N",)),
    "source_size": ("<i4", ("N", "2")),
    "is_validation": ("|b1", ("N",)),
    "train_rows": ("<i8", ("rows",)),
    "val_rows": ("<i8", ("rows",)),
    "caption_ranges": ("<i8", ("N+1",)),
    "caption_kinds": ("|u1", ("M",)),
    "tokens": ("<i4", ("M", "C")),
    "token_lengths": ("<i4", ("M",)),
    "clip_ids_offsets": ("<i8", ("N+1",)),
    "captions_offsets": ("<i8", ("M+1",)),
    "clip_ids_bytes": ("|u1", ("bytes",)),
    "captions_bytes": ("|u1", ("bytes",)),
}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not what it should be, and what makes it right again."""

    check: str
    """One of CHECKS."""
    file: Path
    what: str
    redo: Redo
    """The task; the last step, which joins the tasks; the metadata; removing the file; or nothing helps."""
    task: int | None = None
    embeddings: str = ""
    """Name of the embeddings whose run has to redo it; empty: the preprocess run."""


@dataclass(kw_only=True)
class Findings:
    """What was looked at and what is damaged."""

    checked: Counter[str] = field(default_factory=Counter)
    damages: list[Damage] = field(default_factory=list)
    truncated: int = 0
    """Captions that are longer than the context."""

    def add(self, other: Findings) -> None:
        """Take in another unit's findings."""
        self.checked += other.checked
        self.damages += other.damages
        self.truncated += other.truncated

    def blame(self, check: str, file: Path, what: str, redo: Redo, **more: Any) -> None:
        """Note damage."""
        self.damages.append(Damage(check=check, file=file, what=what, redo=redo, **more))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The store that is looked at, and what is known of it beforehand."""

    store: Path
    config: DataConfig
    num_clips: int
    num_captions: int | None
    """None: not known, because no record and no table tells."""
    fingerprint: str
    records_trusted: bool = True
    """Whether the records have the digest that was noted when the store was finished; else they may be the damage."""


class TaskRecord:
    """A task's record, with the columns of the tables that it becomes."""

    def __init__(self, file: Path, task: int) -> None:
        """Raises ValueError saying why the record is of no use."""
        try:
            record = json.loads(file.read_bytes())
            clips = record["clips"]
            self.ids: list[str] = [str(clip["clip_id"]) for clip in clips]
            self.bad: list[str | None] = [clip["bad"] for clip in clips]
            self.columns = {
                "num_frames": np.array([clip["num_frames"] for clip in clips], "<i4"),
                "source_fps": np.array([clip["source_fps"] for clip in clips], "<f8"),
                "source_size": np.array([clip["source_size"] for clip in clips], "<i4").reshape(-1, 2),
            }
            self.caption_counts = [len(clip["captions"]) for clip in clips]
            self.kinds = [CAPTION_KINDS.index(kind) for clip in clips for kind, _ in clip["captions"]]
            self.texts: list[str] = [str(text) for clip in clips for _, text in clip["captions"]]
            self.shards = shards_of(record["shards"])
            number = record["task"]
        except (OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"cannot be read: {type(error).__name__}: {error}") from error
        if number != task:
            raise ValueError(f"is the record of task {number!r}")


def shards_of(recorded: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return sha256 and bytes of a task's shards by frame size; raises as Python does if it is not a record of them."""
    return {size: {"sha256": str(shard["sha256"]), "bytes": int(shard["bytes"])} for size, shard in recorded.items()}


def table_file(store: Path, name: str) -> Path:
    """Return the one file that holds a table's values."""
    return store / name / ".".join(["c", *["0"] * len(TABLES[name][1])])


def map_table(subject: Subject, name: str) -> np.ndarray:
    """Map a table's file. Raises ValueError or OSError if it is missing or not as long as it should be."""
    dtype, shape = np.dtype(TABLES[name][0]), shape_of(subject, name)
    if 0 in shape:
        return np.zeros(shape, dtype)
    file = table_file(subject.store, name)
    size, wanted = file.stat().st_size, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size != wanted:
        raise ValueError(f"{size} bytes, wanted {wanted}")
    return np.memmap(file, dtype, mode="r", shape=shape)


def shape_of(subject: Subject, name: str) -> tuple[int, ...]:
    """Return the shape that a table must have. Raises ValueError or OSError if damage elsewhere hides it."""
    dims = TABLES[name][1]
    if dims == ("bytes",):
        end = int(map_table(subject, name.replace("_bytes", "_offsets"))[-1])
        if end < 0:
            raise ValueError("its offsets are damaged")
        return (end,)
    if dims == ("rows",):
        return (len(rows_of_split(subject, name)),)
    captions = subject.num_captions
    if captions is None and any(dim.startswith("M") for dim in dims):
        raise ValueError("the number of captions is not known, because caption_ranges is damaged")
    sizes = {"N": subject.num_clips, "N+1": subject.num_clips + 1, "2": 2, "C": subject.config.text_context}
    sizes |= {} if captions is None else {"M": captions, "M+1": captions + 1}
    return tuple(sizes[dim] for dim in dims)


def rows_of_split(subject: Subject, name: str) -> np.ndarray:
    """Return what train_rows or val_rows must hold, as num_frames and is_validation have it; raises as `map_table`."""
    held_out = map_table(subject, "is_validation")
    of_split = held_out if name == "val_rows" else ~held_out
    return np.flatnonzero(of_split & (map_table(subject, "num_frames") > 0))


def count_captions(store: Path, config: DataConfig, num_clips: int) -> int | None:
    """Return the number of captions as a store without records tells it, or None if it does not."""
    subject = Subject(store=store, config=config, num_clips=num_clips, num_captions=None, fingerprint="")
    return None if (ranges := table_or_none(subject, "caption_ranges")) is None else max(0, int(ranges[-1]))


def table_or_none(subject: Subject, name: str) -> np.ndarray | None:
    """Return a table, or None where `check_layout` has found it unreadable already."""
    try:
        return map_table(subject, name)
    except (OSError, ValueError):
        return None


def read_json_file(file: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError saying what is wrong with it; a finding names the file."""
    try:
        return json_file.read(file)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"no JSON: {error.__cause__}") from error


def metadata_of(folder: Path) -> dict[str, Any]:
    """Return the zarr.json of an array or group that was just created."""
    return json.loads((folder / "zarr.json").read_bytes())


def check_metadata(found: Findings, file: Path, wanted: dict[str, Any], redo: Redo, embeddings: str = "") -> None:
    """Compare a zarr.json with what creating it anew gives."""
    found.checked["metadata"] += 1
    try:
        there = read_json_file(file)
        names = {name for name in there.keys() | wanted.keys() if not _is_left_out(name, there, wanted)}
        differing = sorted(name for name in names if there.get(name) != wanted.get(name))
    except (ValueError, AttributeError) as error:
        found.blame("metadata", file, str(error), redo, embeddings=embeddings)
        return
    if differing:
        found.blame("metadata", file, f"not as created: {', '.join(differing)}", redo, embeddings=embeddings)


def _is_left_out(name: str, *of: dict[str, Any]) -> bool:
    """Whether a field is one that only some versions of Zarr write, empty, and is empty in all of these."""
    return name in ("storage_transformers", "consolidated_metadata") and not any(metadata.get(name) for metadata in of)
