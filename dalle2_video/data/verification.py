"""Is a store what its tasks recorded? Every file of it is read, in units that do not know each other.

    check_records, check_layout, check_tokenizer, check_statistics     once a store
    check_task              a task's rows of every table, its captions, its tokens and its shards (verification_shards)

Invariant: a check changes nothing and never ends at damage: what it finds goes into `Findings`, with the name of the
file and what has to be made again. The truth are the records of the tasks; without them (a store that was copied alone)
its parts are held against each other. `tools/verify_store.py` runs the units side by side.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dalle2_video.config_io import from_dict
from dalle2_video.data.celebv_text import identity_of, is_validation
from dalle2_video.data.statistics import checksum
from dalle2_video.data.store import BAD_CLIPS_FILE, PAGE_FILE, SHARDS_FILE, STATISTICS_FILE, TOKENIZER_FILE, frames_name
from dalle2_video.data.store_arrays import create_frames, group_attributes, write_array
from dalle2_video.data.store_page import is_sound
from dalle2_video.data.tokenizer import Tokenizer, from_folder, train_bpe
from dalle2_video.data.verification_shards import check_frames_shard
from dalle2_video.data.verification_tables import (
    TABLES,
    Findings,
    Subject,
    TaskRecord,
    check_metadata,
    map_table,
    metadata_of,
    read_json_file,
    rows_of_split,
    shape_of,
    shards_of,
    table_file,
    table_or_none,
)
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

_DERIVED = ("is_validation", "tokens", "token_lengths")
"""Tables of what the records do not hold."""


@dataclass(kw_only=True)
class RecordSummary:
    """What the whole store's files must agree with."""

    caption_counts: list[int] = field(default_factory=list)
    """By task."""
    bad: dict[str, str] = field(default_factory=dict)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_records(
    files: Sequence[Path], clip_ids: Sequence[str] | None, config: DataConfig
) -> tuple[Findings, RecordSummary | None]:
    """Read the record of every task, in order of tasks; the summary is None if one of them is of no use.

    clip_ids: the manifest's, or None if that is lost.
    """
    found, summary = Findings(), RecordSummary()
    for task, file in enumerate(files):
        found.checked["task records"] += 1
        try:
            record = TaskRecord(file, task)
            mine = slice(task * config.clips_per_shard, (task + 1) * config.clips_per_shard)
            if clip_ids is not None and record.ids != list(clip_ids[mine]):
                raise ValueError("is of other clips than the manifest's")
        except ValueError as error:
            found.blame("task records", file, str(error), "task", task=task)
            continue
        summary.caption_counts.append(len(record.texts))
        summary.bad |= {clip: reason for clip, reason in zip(record.ids, record.bad, strict=True) if reason is not None}
        summary.shards[str(task)] = record.shards
    return found, None if found.damages else summary


def check_layout(subject: Subject) -> Findings:
    """Check the metadata of the group, of the frames and of every table, and that each table's file has its length."""
    found, store = Findings(), subject.store
    _check_group(found, subject)
    _check_names(found, subject)
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder)
        zarr.create_group(str(staging / "embeddings"))
        for size in subject.config.frame_sizes:
            create_frames(staging, size, subject.num_clips, subject.config)
        for name in ("embeddings", *map(frames_name, subject.config.frame_sizes)):
            check_metadata(found, store / name / "zarr.json", metadata_of(staging / name), "prepare")
        for name, (dtype, dims) in TABLES.items():
            file = table_file(store, name)
            found.checked["metadata"] += 1
            try:
                shape = shape_of(subject, name)
                values = map_table(subject, name)
                if name.endswith("_rows") and (values != rows_of_split(subject, name)).any():
                    raise ValueError("rows are not those of the split's good clips")
            except FileNotFoundError:
                found.blame("metadata", file, "is missing", "join")
                continue
            except (OSError, ValueError) as error:
                found.blame("metadata", file, str(error), "join")
                continue
            # The metadata of a small table differs from a large one's in these two fields only.
            write_array(staging, name, np.zeros((1,) * len(dims), dtype))
            template = metadata_of(staging / name) | {"shape": list(shape)}
            template["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, length) for length in shape]
            check_metadata(found, store / name / "zarr.json", template, "join")
    return found


def _check_group(found: Findings, subject: Subject) -> None:
    file = subject.store / "zarr.json"
    found.checked["metadata"] += 1
    wanted = group_attributes(subject.config, subject.num_clips, subject.fingerprint)
    try:
        metadata = read_json_file(file)
        there = metadata["attributes"]
        # As configs, not as text: a field that is new since has its default.
        differing = [] if from_dict(DataConfig, there["data"]) == subject.config else ["data"]
        differing += [name for name in wanted if name != "data" and there.get(name) != wanted[name]]
        differing += [] if (metadata["zarr_format"], metadata["node_type"]) == (3, "group") else ["zarr_format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.blame("metadata", file, f"{type(error).__name__}: {error}", "prepare")
        return
    if differing:
        found.blame("metadata", file, f"not as created: {', '.join(differing)}", "prepare")


def _check_names(found: Findings, subject: Subject) -> None:
    """Look for shards that no task owns."""
    tasks = -(-subject.num_clips // subject.config.clips_per_shard)
    owned = {f"c.{task}.0.0.0.0" for task in range(tasks)}
    for size in subject.config.frame_sizes:
        for file in sorted((subject.store / frames_name(size)).glob("c.*")):
            if file.name not in owned:
                found.blame("metadata", file, "no task owns this file", "remove")


def check_task(subject: Subject, task: int, first_caption: int, record_file: Path | None) -> Findings:
    """Check one task's rows of every table against its record, its tokens by encoding again, its shards by decoding.

    first_caption: row of the task's first caption; record_file: None for a store without records.
    """
    return _TaskCheck(subject, task, first_caption, record_file).run()


class _TaskCheck:
    def __init__(self, subject: Subject, task: int, first_caption: int, record_file: Path | None) -> None:
        self.subject, self.task, self.record_file, self.found = subject, task, record_file, Findings()
        self.record: TaskRecord | None = None
        if record_file is not None:
            with contextlib.suppress(ValueError):  # `check_records` says so
                self.record = TaskRecord(record_file, task)
        self.first = task * subject.config.clips_per_shard
        self.last = min(self.first + subject.config.clips_per_shard, subject.num_clips)
        self.first_caption = first_caption
        self.tables = {name: table_or_none(subject, name) for name in TABLES}
        self.listed: dict[str, str] | None = None
        with contextlib.suppress(ValueError):  # `check_statistics` says so
            listed = read_json_file(subject.store / BAD_CLIPS_FILE)
            self.listed = listed if isinstance(listed, dict) else None

    def run(self) -> Findings:
        self.found.checked["clip tables"] += self.last - self.first
        ids = self._texts("clip tables", "clip_ids", self.first, self.last, self.record.ids if self.record else None)
        if ids is not None:
            fraction = self.subject.config.val_fraction
            held_out = np.array([is_validation(identity_of(clip), fraction) for clip in ids], "|b1")
            self._compare("clip tables", "is_validation", self.first, held_out, from_record=False)
        for name, column in (self.record.columns if self.record else {}).items():
            self._compare("clip tables", name, self.first, column)
        self._check_bad_list(ids)
        self._check_captions()
        self._confirm_record()
        for size in self.subject.config.frame_sizes:
            shards, counts = self._recorded_shards(), self._frame_counts()
            self.found.add(check_frames_shard(self.subject, size, self.task, shards, counts))
        return self.found

    def _disagree(self, check: str, file: Path, what: str, *, from_record: bool = True) -> None:
        """Blame the joined file; or the record, if it has changed since the store was finished."""
        if self.record is None or self.subject.records_trusted or not from_record:
            self.found.blame(check, file, what, "join")
        else:
            assert self.record_file is not None
            what = f"changed since the store was finished; {file.relative_to(self.subject.store)}: {what}"
            self.found.blame("task records", self.record_file, what, "task", task=self.task)

    def _compare(self, check: str, name: str, first: int, wanted: np.ndarray, *, from_record: bool = True) -> None:
        """Compare rows first, first + 1, ... of a table."""
        table = self.tables[name]
        if table is None or len(wanted) == 0:
            return
        # Bytes, not values: a bool that is neither 0 nor 1 is damage too.
        there = np.ascontiguousarray(table[first : first + len(wanted)])
        of_row = np.flatnonzero(
            (there.view(np.uint8).reshape(len(there), -1) != wanted.view(np.uint8).reshape(len(wanted), -1)).any(1)
            if len(there) == len(wanted)
            else np.ones(len(wanted), bool)
        )
        if len(of_row):
            what = f"{len(of_row)} of rows {first}:{first + len(wanted)} are wrong (first: {first + int(of_row[0])})"
            self._disagree(check, table_file(self.subject.store, name), what, from_record=from_record)

    def _texts(self, check: str, name: str, first: int, last: int, wanted: list[str] | None) -> list[str] | None:
        """Compare texts first, ..., last-1 with those wanted, or take them as they are; None if they cannot be read."""
        offsets, data = self.tables[f"{name}_offsets"], self.tables[f"{name}_bytes"]
        if offsets is None:
            return wanted
        store = self.subject.store
        mine = np.asarray(offsets[first : last + 1])
        lengths = np.diff(mine)
        starts_right = len(mine) == last - first + 1 and (first > 0 or mine[0] == 0)
        if wanted is not None:
            encoded = [text.encode() for text in wanted]
            if not starts_right or lengths.tolist() != list(map(len, encoded)):
                what = f"offsets {first}:{last + 1} are not those of the recorded texts"
                self._disagree(check, table_file(store, f"{name}_offsets"), what)
            elif data is not None and bytes(data[mine[0] : mine[-1]]) != b"".join(encoded):
                ends = pairwise(mine.tolist())
                pairs = zip(encoded, ends, strict=True)
                wrong = [row for row, (text, (start, end)) in enumerate(pairs) if bytes(data[start:end]) != text]
                what = f"{len(wrong)} of texts {first}:{last} differ from the record (first: {first + wrong[0]})"
                self._disagree(check, table_file(store, f"{name}_bytes"), what)
            return wanted
        if not starts_right or (lengths < 0).any() or (data is not None and mine[-1] > len(data)):
            self.found.blame(
                check, table_file(store, f"{name}_offsets"), f"offsets {first}:{last + 1} fall or lead outside", "join"
            )
            return None
        if data is None:
            return None
        try:
            return [bytes(data[start:stop]).decode() for start, stop in pairwise(mine.tolist())]
        except UnicodeDecodeError as error:
            file = table_file(store, f"{name}_bytes")
            self.found.blame(check, file, f"texts {first}:{last} are not UTF-8: {error.reason}", "join")
            return None

    def _check_bad_list(self, ids: list[str] | None) -> None:
        listed = self.listed
        if listed is None:
            return
        if self.record is not None:
            recorded = zip(self.record.ids, self.record.bad, strict=True)
            wrong = [clip for clip, reason in recorded if listed.get(clip) != reason]
        else:
            frames = self.tables["num_frames"]
            if ids is None or frames is None:
                return
            found = zip(ids, frames[self.first : self.last], strict=True)
            wrong = [clip for clip, count in found if (clip in listed) != (count == 0)]
        if wrong:
            self._disagree(
                "statistics", self.subject.store / BAD_CLIPS_FILE, f"wrong about {len(wrong)} clips (first: {wrong[0]})"
            )

    def _check_captions(self) -> None:
        texts: list[str] | None = None
        first = self.first_caption
        if self.record is not None:
            counts = np.cumsum([first, *self.record.caption_counts], dtype="<i8")
            self._compare("captions", "caption_ranges", self.first, counts)
            self._compare("captions", "caption_kinds", first, np.array(self.record.kinds, "|u1"))
            last = first + len(self.record.texts)
            texts = self._texts("captions", "captions", first, last, self.record.texts)
        if self.record is None or not self.subject.records_trusted:
            texts = self._stored_captions()
        if texts is None:
            return
        self.found.checked["captions"] += len(texts)
        try:
            tokenizer = Tokenizer.read(self.subject.store / TOKENIZER_FILE)
            tokens, lengths, uncut = tokenizer.encode(texts, self.subject.config.text_context)
        except (OSError, ValueError, OverflowError):
            return  # `check_tokenizer` says so
        self.found.checked["tokens"] += len(texts)
        self.found.truncated += int((uncut > lengths).sum())
        self._compare("tokens", "tokens", first, tokens, from_record=False)
        self._compare("tokens", "token_lengths", first, lengths, from_record=False)

    def _stored_captions(self) -> list[str] | None:
        """Return the captions as the tables have them, or None if they cannot be read."""
        ranges, kinds = self.tables["caption_ranges"], self.tables["caption_kinds"]
        if ranges is None:
            return None
        mine = ranges[self.first : self.last + 1]
        first, last = int(mine[0]), int(mine[-1])
        inside = self.subject.num_captions is not None and 0 <= first <= last <= self.subject.num_captions
        if not inside or (self.first == 0 and first != 0) or (np.diff(mine) < 0).any():
            what = f"ranges {self.first}:{self.last + 1} fall or lead outside"
            self.found.blame("captions", table_file(self.subject.store, "caption_ranges"), what, "join")
            return None
        if kinds is not None and (kinds[first:last] >= len(CAPTION_KINDS)).any():
            self.found.blame("captions", table_file(self.subject.store, "caption_kinds"), "unknown kinds", "join")
        return self._texts("captions", "captions", first, last, None)

    def _confirm_record(self) -> None:
        """Blame a record that may have changed unless everything it says can be read in the store too."""
        if self.record is None or self.subject.records_trusted:
            return
        lost = [name for name in TABLES if name not in _DERIVED and self.tables[name] is None]
        lost += [] if self.listed is not None else [BAD_CLIPS_FILE]
        if lost:
            assert self.record_file is not None
            what = f"cannot be confirmed, since other records and {', '.join(lost)} are damaged"
            self.found.blame("task records", self.record_file, what, "task", task=self.task)

    def _recorded_shards(self) -> dict[str, dict[str, Any]] | None:
        if self.record is not None:
            return self.record.shards
        try:
            return shards_of(read_json_file(self.subject.store / SHARDS_FILE)[str(self.task)])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # `check_statistics` says so if they cannot be read at all

    def _frame_counts(self) -> np.ndarray | None:
        if self.record is not None:
            return self.record.columns["num_frames"]
        table = self.tables["num_frames"]
        return None if table is None else table[self.first : self.last]


def check_tokenizer(subject: Subject, record_files: Sequence[Path]) -> Findings:
    """Train the tokenizer again, or load its folder again if it is still there, and compare it with the store's.

    record_files: the tasks' records; empty where there are none that can be trusted: the stored captions are taken.
    """
    found, file = Findings(), subject.store / TOKENIZER_FILE
    found.checked["tokenizer"] += 1
    try:
        stored = file.read_text()
        Tokenizer.from_json(stored)
    except (OSError, ValueError) as error:
        found.blame("tokenizer", file, f"cannot be loaded: {error}", "join")
        return found
    if subject.config.tokenizer != "bpe":
        folder = Path(subject.config.tokenizer)
        with contextlib.suppress(ValueError):  # the folder has gone or is of no use: nothing to compare with
            if from_folder(folder).to_json() != stored:
                found.blame("tokenizer", file, f"differs from the one in {folder}", "join")
        return found
    try:
        trained = train_bpe(_all_texts(subject, record_files), subject.config.vocab_size)
    except (OSError, ValueError):
        return found  # the texts are damaged; `check_task` or `check_records` says where
    if trained.to_json() != stored:
        found.blame("tokenizer", file, "differs from the one that the captions give", "join")
    return found


def _all_texts(subject: Subject, record_files: Sequence[Path]) -> Iterator[str]:
    for task, file in enumerate(record_files):
        yield from TaskRecord(file, task).texts
    if not record_files:
        offsets, data = map_table(subject, "captions_offsets"), map_table(subject, "captions_bytes")
        for start, stop in pairwise(offsets.tolist()):
            yield bytes(data[start:stop]).decode()


def check_statistics(subject: Subject, summary: RecordSummary | None, truncated: int | None) -> Findings:
    """Count again what statistics.json says, and check that the bad list names no other clips.

    summary: None if there are no records to trust; truncated: captions cut at the context, or None if they
    could not all be encoded.
    """
    found = Findings()
    found.checked["statistics"] += 4
    frames, held_out = table_or_none(subject, "num_frames"), table_or_none(subject, "is_validation")
    kinds = table_or_none(subject, "caption_kinds")
    counted: dict[str, Any] = {"clips": subject.num_clips}
    if truncated is not None:
        counted["captions_truncated"] = truncated
    if summary is not None:
        counted["bad"] = len(summary.bad)
    if frames is not None:
        good = frames > 0
        counted |= {"bad": int((~good).sum()), "frames": int(frames.sum(dtype=np.int64))}
        if held_out is not None:
            of_split = {"train": frames[good & ~held_out], "val": frames[good & held_out]}
            counted |= {f"{split}_clips": len(lengths) for split, lengths in of_split.items()}
            counted["shortest"] = {
                split: int(lengths.min()) if len(lengths) else 0 for split, lengths in of_split.items()
            }
    if kinds is not None:
        of_kind = np.bincount(kinds, minlength=len(CAPTION_KINDS)).tolist()
        counted["captions"] = {kind: count for kind, count in zip(CAPTION_KINDS, of_kind, strict=False) if count}
    try:
        tokenizer = Tokenizer.read(subject.store / TOKENIZER_FILE)
        counted["vocab_size"] = tokenizer.vocab_size
    except (OSError, ValueError):
        pass  # `check_tokenizer` says so
    file = subject.store / STATISTICS_FILE
    try:
        stated = read_json_file(file)
        counted["checksum"] = checksum(stated)
        wrong = [name for name, value in counted.items() if stated.get(name) != value]
        if wrong:
            found.blame("statistics", file, f"wrong: {', '.join(wrong)}", "join")
    except (ValueError, AttributeError) as error:
        found.blame("statistics", file, str(error), "join")
    file = subject.store / SHARDS_FILE
    try:
        shards = read_json_file(file)
        tasks = -(-subject.num_clips // subject.config.clips_per_shard)
        if shards != summary.shards if summary is not None else len(shards) != tasks:
            found.blame("statistics", file, "is not the list of the tasks' shards", "join")
    except (ValueError, TypeError) as error:
        found.blame("statistics", file, str(error), "join")
    file = subject.store / PAGE_FILE
    if not file.is_file() or not is_sound(file.read_bytes()):
        found.blame("statistics", file, "is missing or is not what was written", "join")
    file = subject.store / BAD_CLIPS_FILE
    try:
        listed = read_json_file(file)
        if not isinstance(listed, dict):
            raise ValueError("is not a table of clips and reasons")
        expected = len(summary.bad) if summary is not None else counted.get("bad", len(listed))
        if len(listed) != expected:
            found.blame("statistics", file, f"names {len(listed)} clips, wanted {expected}", "join")
    except ValueError as error:
        found.blame("statistics", file, str(error), "join")
    return found
