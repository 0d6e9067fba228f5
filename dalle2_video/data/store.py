"""The preprocessed data set: one Zarr v3 group, readable anywhere with plain `zarr`.

    frames_<size>        (N, Tmax, size, size, 3) uint8 RGB, sharded by clips; rows of bad clips are empty
    num_frames           (N,) int32, 0 for a bad clip;  source_fps (N,) float64;  source_size (N, 2) int32 width, height
    is_validation        (N,) bool
    clip_ids, captions   text as <name>_bytes (UTF-8, uint8) and <name>_offsets (int64, one more than texts)
    caption_ranges       (N+1,) int64: clip i has captions [ranges[i], ranges[i+1]);  caption_kinds (M,) uint8
    tokens               (M, context) int32;  token_lengths (M,) int32
    tokenizer.json  bad_clips.json  statistics.json      statistics.json is published last: it marks a finished store

This module holds the layout and the reader; `preprocess` decides what goes in. Writers fill a staging folder with whole
files and return (staged file, path relative to the store); Store only ever sees what was published.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.data.celebv_text import Caption
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

Split = Literal["train", "val"]
Published = list[tuple[Path, str]]

FORMAT = "dalle2-video-store"
VERSION = 1
TOKENIZER_FILE, BAD_CLIPS_FILE, STATISTICS_FILE = "tokenizer.json", "bad_clips.json", "statistics.json"
# "." keeps a shard one file in the array's folder; "/" would make a folder for each index.
KEY_ENCODING = {"name": "default", "separator": "."}
# The pipeline must never start threads: a task owns one core.
ZARR_SETTINGS = {"threading.max_workers": 1, "async.concurrency": 1}
# Zarr ignores this setting as an argument of open_array, so that it goes through zarr.config.set too.
WRITE_EMPTY_CHUNKS = {"array.write_empty_chunks": True}


def frames_name(size: int) -> str:
    """Return the name of the array of frames of this size."""
    return f"frames_{size}"


def files_below(staging: Path) -> list[Path]:
    """Return every file below a folder, sorted, zarr.json last: metadata must not be seen before its data."""
    files = [path for path in staging.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "zarr.json", path))


def published_from(staging: Path) -> Published:
    """Return (staged file, path relative to the store) for all files of a staging folder."""
    return [(path, path.relative_to(staging).as_posix()) for path in files_below(staging)]


def create_sharded(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    *,
    items_per_shard: int,
    chunk_frames: int,
    compressed: bool,
    fill_value: float = 0,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array:
    """Create the metadata of an array that ShardReader reads; shape (N, T, *rest)."""
    frames = -(-shape[1] // chunk_frames) * chunk_frames
    return zarr.create_array(
        str(path),
        shape=shape,
        dtype=dtype,
        chunks=(1, chunk_frames, *shape[2:]),
        shards=(items_per_shard, frames, *shape[2:]),
        compressors=[ZstdCodec(level=1, checksum=True)] if compressed else None,
        filters=None,
        fill_value=fill_value,
        chunk_key_encoding=KEY_ENCODING,
        attributes=attributes,
    )


def create_frames(staging: Path, size: int, num_clips: int, config: DataConfig) -> zarr.Array:
    """Create the metadata of `frames_<size>` below `staging`."""
    return create_sharded(
        staging / frames_name(size),
        (num_clips, config.max_frames, size, size, 3),
        "uint8",
        items_per_shard=config.clips_per_shard,
        chunk_frames=min(config.chunk_frames, config.max_frames),
        compressed=config.compression == "zstd",
    )


def write_array(staging: Path, name: str, values: np.ndarray) -> None:
    """Write a whole array as one uncompressed chunk, so that readers may also map its file."""
    shape = tuple(max(1, length) for length in values.shape)
    array = zarr.create_array(
        str(staging / name),
        shape=values.shape,
        dtype=values.dtype,
        chunks=shape,
        compressors=None,
        filters=None,
        chunk_key_encoding=KEY_ENCODING,
        config={"write_empty_chunks": True},
    )
    if values.size:
        array[...] = values


def write_texts(staging: Path, name: str, texts: list[str]) -> None:
    """Write texts as UTF-8 bytes and offsets: variable-length strings are not portable between Zarr libraries."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    write_array(staging, f"{name}_bytes", np.frombuffer(b"".join(encoded), np.uint8))
    write_array(staging, f"{name}_offsets", offsets)


def group_attributes(config: DataConfig, num_clips: int, fingerprint: str) -> dict[str, Any]:
    """Return the attributes of the group, which make the store describe itself."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "data": to_dict(config),
        "num_clips": num_clips,
        "fingerprint": fingerprint,
        "caption_kinds": list(CAPTION_KINDS),
    }


class Store:
    """Reader of a finished store. Opening reads the small arrays; frames, tokens and text are read on demand."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError, with the command to type, if there is no finished store of this version at `path`."""
        self.path = Path(path)
        remedy = "run python launch/preprocess.py"
        if not (self.path / "zarr.json").is_file():
            raise ValueError(f"no store at {self.path}; {remedy}")
        attributes = json.loads((self.path / "zarr.json").read_text()).get("attributes", {})
        found = (attributes.get("format"), attributes.get("version"))
        if found != (FORMAT, VERSION):
            raise ValueError(f"{self.path} is {found}, wanted {(FORMAT, VERSION)}; {remedy} into another folder")
        if not (self.path / STATISTICS_FILE).is_file():
            raise ValueError(f"the store at {self.path} is not finished; {remedy} again")
        self.config = from_dict(DataConfig, attributes["data"])
        self.fingerprint: str = attributes["fingerprint"]
        self.num_clips: int = attributes["num_clips"]
        self._kinds: list[str] = attributes["caption_kinds"]
        self.num_frames = self._small("num_frames", (self.num_clips,))
        self.is_validation = self._small("is_validation", (self.num_clips,))
        self.source_fps = self._small("source_fps", (self.num_clips,))
        self.source_size = self._small("source_size", (self.num_clips, 2))
        self.caption_ranges = self._small("caption_ranges", (self.num_clips + 1,))
        self.num_captions = int(self.caption_ranges[-1])
        self.token_lengths = self._small("token_lengths", (self.num_captions,))
        self.tokens = self._mapped("tokens", (self.num_captions, self.config.text_context), "<i4")

    def _small(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = zarr.open_array(str(self.path / name), mode="r")
        if array.shape != shape:
            raise ValueError(f"{self.path / name} has shape {array.shape}, wanted {shape}; preprocess again")
        return np.asarray(array[...])

    def _mapped(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Map a one-chunk array: the processes of a node share its pages instead of holding a copy each."""
        metadata = json.loads((self.path / name / "zarr.json").read_text())
        codecs = [codec["name"] for codec in metadata["codecs"]]
        if tuple(metadata["shape"]) != shape or codecs != ["bytes"]:
            raise ValueError(f"{self.path / name} is not one uncompressed chunk of shape {shape}; preprocess again")
        if 0 in shape:
            return np.zeros(shape, dtype)
        chunk = self.path / name / ".".join(["c", *["0"] * len(shape)])
        return np.memmap(chunk, dtype, mode="r", shape=shape)

    def _texts(self, name: str, first: int, last: int, offsets: np.ndarray) -> list[str]:
        data = self._mapped(f"{name}_bytes", (int(offsets[-1]),), "<u1")
        return [bytes(data[offsets[i] : offsets[i + 1]]).decode() for i in range(first, last)]

    @cached_property
    def clip_ids(self) -> list[str]:
        """Ids of all clips, bad ones included, in the order of the rows."""
        offsets = self._small("clip_ids_offsets", (self.num_clips + 1,))
        return self._texts("clip_ids", 0, self.num_clips, offsets)

    @cached_property
    def _caption_offsets(self) -> np.ndarray:
        return self._small("captions_offsets", (self.num_captions + 1,))

    @cached_property
    def _caption_kinds(self) -> np.ndarray:
        return self._small("caption_kinds", (self.num_captions,))

    def caption_range(self, clip: int) -> tuple[int, int]:
        """Return the first and the last-plus-one caption of a clip: rows of `tokens` and `token_lengths`."""
        return int(self.caption_ranges[clip]), int(self.caption_ranges[clip + 1])

    def captions_of(self, clip: int) -> list[Caption]:
        """Return the clip's captions as they stand in the data set; none for a bad clip."""
        first, last = self.caption_range(clip)
        texts = self._texts("captions", first, last, self._caption_offsets)
        kinds = self._caption_kinds[first:last]
        return [Caption(kind=self._kinds[kind], text=text) for kind, text in zip(kinds, texts, strict=True)]

    def frames(self, size: int) -> ShardReader:
        """Return a reader of one size: `read(clip, start, stop, step)` -> (t, size, size, 3) uint8 RGB."""
        if size not in self.config.frame_sizes:
            raise ValueError(
                f"frames of {size} px are not in {self.path}, which holds {self.config.frame_sizes}; "
                f"preprocess with --data.frame-sizes {size}"
            )
        return ShardReader(self.path / frames_name(size))

    def usable(self, split: Split) -> np.ndarray:
        """Return the rows of the good clips of a split, int64 ascending. Raises ValueError if there are none."""
        of_split = self.is_validation if split == "val" else ~self.is_validation
        clips = np.flatnonzero(of_split & (self.num_frames > 0))
        if len(clips) == 0:
            direction = "raise" if split == "val" else "lower"
            raise ValueError(
                f"{self.path} has no usable clip in split {split!r}; {direction} --data.val-fraction "
                f"(now {self.config.val_fraction}), add clips, or see {BAD_CLIPS_FILE} for rejected ones"
            )
        return clips.astype(np.int64)

    def bad_clips(self) -> dict[str, str]:
        """Return why each bad clip was rejected, by clip id."""
        return json.loads((self.path / BAD_CLIPS_FILE).read_text())

    def statistics(self) -> dict[str, Any]:
        """Return what preprocessing counted."""
        return json.loads((self.path / STATISTICS_FILE).read_text())

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that made `tokens`."""
        return Tokenizer.from_json((self.path / TOKENIZER_FILE).read_text())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
