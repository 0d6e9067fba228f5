"""The preprocessed data set: one Zarr v3 group, readable anywhere with plain `zarr`.

    frames_<size>        (N, Tmax, size, size, 3) uint8 RGB, sharded by clips; rows of bad clips are empty
    num_frames           (N,) int32, 0 for a bad clip;  source_fps (N,) float64;  source_size (N, 2) int32 width, height
    is_validation        (N,) bool;  train_rows, val_rows int64: the good clips of each split, ascending
    clip_ids, captions   text as <name>_bytes (UTF-8, uint8) and <name>_offsets (int64, one more than texts)
    caption_ranges       (N+1,) int64: clip i has captions [ranges[i], ranges[i+1]);  caption_kinds (M,) uint8
    tokens               (M, context) int32;  token_lengths (M,) int32
    tokenizer.json  bad_clips.json  statistics.html      shards.json: sha256 and bytes of every shard, by task and size
    statistics.json      published last: it marks a finished store

This module holds the layout and the reader, which needs no zarr: its import is a good part of a training's start.
`store_arrays` writes, `preprocess` and `join` decide what goes in; Store only ever sees what was published.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dalle2_video import json_file
from dalle2_video.config_io import from_dict
from dalle2_video.data.celebv_text import Caption
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.data_config import DataConfig

Split = Literal["train", "val"]

FORMAT = "dalle2-video-store"
VERSION = 2
TOKENIZER_FILE, BAD_CLIPS_FILE, STATISTICS_FILE = "tokenizer.json", "bad_clips.json", "statistics.json"
SHARDS_FILE, PAGE_FILE = "shards.json", "statistics.html"


def frames_name(size: int) -> str:
    """Return the name of the array of frames of this size."""
    return f"frames_{size}"


def chunk_file(array: Path, dimensions: int) -> Path:
    """Return the file of the one chunk of an array that `write_array` wrote."""
    return array / ".".join(["c", *["0"] * dimensions])


class Store:
    """Reader of a finished store. Opening reads a few small files, whatever the number of clips: tables are mapped."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError, with the command to type, if there is no finished store of this version at `path`."""
        self.path = Path(path)
        remedy = "run python launch/preprocess.py"
        if not (self.path / "zarr.json").is_file():
            raise ValueError(f"no store at {self.path}; {remedy}")
        with json_file.as_written_here(self.path / "zarr.json", remedy):
            self._open(json_file.read(self.path / "zarr.json").get("attributes", {}), remedy)

    def _open(self, attributes: dict[str, Any], remedy: str) -> None:
        found = (attributes.get("format"), attributes.get("version"))
        if found != (FORMAT, VERSION):
            raise ValueError(f"{self.path} is {found}, wanted {(FORMAT, VERSION)}; {remedy} into another folder")
        if not (self.path / STATISTICS_FILE).is_file():
            raise ValueError(f"the store at {self.path} is not finished; {remedy} again")
        self.config = from_dict(DataConfig, attributes["data"])
        self.fingerprint: str = attributes["fingerprint"]
        self.num_clips: int = attributes["num_clips"]
        self._kinds: list[str] = attributes["caption_kinds"]
        self.num_frames = self._mapped("num_frames", (self.num_clips,), "<i4")
        self.is_validation = self._mapped("is_validation", (self.num_clips,), "?")
        self.source_fps = self._mapped("source_fps", (self.num_clips,), "<f8")
        self.source_size = self._mapped("source_size", (self.num_clips, 2), "<i4")
        self.caption_ranges = self._mapped("caption_ranges", (self.num_clips + 1,), "<i8")
        self.num_captions = int(self.caption_ranges[-1])
        self.caption_kinds = self._mapped("caption_kinds", (self.num_captions,), "<u1")
        self.tokens = self._mapped("tokens", (self.num_captions, self.config.text_context), "<i4")
        self.token_lengths = self._mapped("token_lengths", (self.num_captions,), "<i4")

    def _mapped(self, name: str, shape: tuple[int, ...] | None, dtype: str) -> np.ndarray:
        """Map a one-chunk array: the processes of a node share its pages instead of holding a copy each.

        shape: what it must be; None takes what is stored. Raises ValueError naming the file that is not as it must be.
        """
        metadata = json_file.read(self.path / name / "zarr.json")
        stored, codecs = tuple(metadata["shape"]), [codec["name"] for codec in metadata["codecs"]]
        chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        there = (stored, np.dtype(metadata["data_type"]), codecs, chunks)
        shape = stored if shape is None else shape
        if there != (shape, np.dtype(dtype), ["bytes"], [max(1, length) for length in shape]):
            raise ValueError(
                f"{self.path / name} is not one uncompressed chunk of {np.dtype(dtype)} {shape}; run python "
                "tools/verify_store.py on the store"
            )
        if 0 in shape:
            return np.zeros(shape, dtype)
        file, wanted = chunk_file(self.path / name, len(shape)), math.prod(shape) * np.dtype(dtype).itemsize
        size = file.stat().st_size
        if size != wanted:
            raise ValueError(f"{file}: {size} bytes, wanted {wanted}; run python tools/verify_store.py on the store")
        # As a plain array: every indexing of a memmap makes another one, which costs more than the reading.
        return np.asarray(np.memmap(file, dtype, mode="r", shape=shape))

    def _text(self, row: int, offsets: np.ndarray, data: np.ndarray, name: str) -> str:
        try:
            return bytes(data[offsets[row] : offsets[row + 1]]).decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path / name}_bytes: row {row} is no text ({error.reason}); run python tools/verify_store.py "
                f"{self.path} --repair"
            ) from error

    @cached_property
    def _clip_id_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        return self._offsets_and_bytes("clip_ids", self.num_clips)

    @cached_property
    def _caption_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        return self._offsets_and_bytes("captions", self.num_captions)

    def _offsets_and_bytes(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        offsets = self._mapped(f"{name}_offsets", (count + 1,), "<i8")
        return offsets, self._mapped(f"{name}_bytes", (int(offsets[-1]),), "<u1")

    def clip_id(self, row: int) -> str:
        """Return the id of one clip."""
        return self._text(row, *self._clip_id_bytes, "clip_ids")

    @cached_property
    def clip_ids(self) -> list[str]:
        """Ids of all clips, bad ones included, in the order of the rows; `clip_id` reads but one."""
        return [self.clip_id(row) for row in range(self.num_clips)]

    def caption_range(self, clip: int) -> tuple[int, int]:
        """Return the first and the last-plus-one caption of a clip: rows of `tokens` and `token_lengths`."""
        return int(self.caption_ranges[clip]), int(self.caption_ranges[clip + 1])

    def captions_of(self, clip: int) -> list[Caption]:
        """Return the clip's captions as they stand in the data set; none for a bad clip."""
        return [
            Caption(kind=self._kinds[self.caption_kinds[row]], text=self._text(row, *self._caption_bytes, "captions"))
            for row in range(*self.caption_range(clip))
        ]

    def frames(self, size: int) -> ShardReader:
        """Return a reader of one size: `read(clip, start, stop, step)` -> (t, size, size, 3) uint8 RGB."""
        if size not in self.config.frame_sizes:
            raise ValueError(
                f"frames of {size} px are not in {self.path}, which holds {self.config.frame_sizes}; "
                f"preprocess with --data.frame-sizes {size}"
            )
        return ShardReader(self.path / frames_name(size))

    def num_frames_at(self, size: int, clips: np.ndarray) -> np.ndarray:
        """Return how many frames are stored of each of the clips (rows, any shape) at one size, int64."""
        return np.minimum(self.num_frames[clips].astype(np.int64), self.config.frames_at(size))

    def usable(self, split: Split) -> np.ndarray:
        """Return the rows of the good clips of a split, int64 ascending. Raises ValueError if there are none."""
        clips = self._mapped(f"{split}_rows", None, "<i8")
        if len(clips) == 0:
            direction = "raise" if split == "val" else "lower"
            raise ValueError(
                f"{self.path} has no usable clip in split {split!r}; {direction} --data.val-fraction "
                f"(now {self.config.val_fraction}), add clips of other identities (the first 11 characters of a clip's "
                f"name), or see {BAD_CLIPS_FILE} for rejected ones"
            )
        return clips

    def shortest(self, split: Split) -> int:
        """Return the fewest stored frames of a usable clip of a split; 0 if there is none."""
        return self.statistics()["shortest"][split]

    def bad_clips(self) -> dict[str, str]:
        """Return why each bad clip was rejected, by clip id."""
        return json_file.read(self.path / BAD_CLIPS_FILE)

    def statistics(self) -> dict[str, Any]:
        """Return what preprocessing counted."""
        return json_file.read(self.path / STATISTICS_FILE)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that made `tokens`."""
        return Tokenizer.read(self.path / TOKENIZER_FILE)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
