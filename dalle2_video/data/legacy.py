"""The old project's videos, tensors made ready for one network in an HDF5 file, back to a store of uint8 RGB frames.

    LegacyVideos (layout)  ->  sample  ->  detect_values, bgr_evidence  ->  LegacyArray (one task a shard)

Layout and value range follow from shapes and values or are refused as ambiguous, never guessed. Invariant: a clip goes
in as it was seen, to within half a grey level before scaling, or to the bad list with its reason. Memory holds one
block of a clip and one shard of the store, whatever the length of the file.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from einops import rearrange

from dalle2_video.data.celebv_text import text_folders
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.data.video import BadClip
from dalle2_video.data_config import DataConfig
from dalle2_video.digests import file_digest

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PATTERNS = {"ncthw": "c t h w -> t h w c", "ntchw": "t c h w -> t h w c", "nthwc": "t h w c -> t h w c"}
LAYOUTS = tuple(_PATTERNS)
GREY_OF: dict[str, tuple[np.ndarray, np.ndarray]] = {
    name: (np.array(scale, np.float32), np.array(offset, np.float32))
    for name, scale, offset in (
        ("clip", [255 * std for std in _CLIP_STD], [255 * mean for mean in _CLIP_MEAN]),
        ("unit", [255.0] * 3, [0.0] * 3),
        ("signed", [127.5] * 3, [127.5] * 3),
        ("bytes", [1.0] * 3, [0.0] * 3),
    )
}
"""Scale and offset of each channel, by name of the value range: grey level in [0, 255] = stored * scale + offset."""
VALUE_NAMES = {
    "clip": "normalised with CLIP's mean and deviation",
    "unit": "in [0, 1]",
    "signed": "in [-1, 1]",
    "bytes": "in [0, 255]",
}

_ZERO_IS_GREY = ("clip", "signed")
_ID_NAMES = ("clip_ids", "ids", "video_ids", "names", "filenames", "keys")
_OVERSHOOT = 13.0  # grey levels outside [0, 255] that bicubic scaling of tensors leaves, 5 % of the range
_ON_LATTICE = 0.1  # half precision moves a CLIP-normalised grey level by at most 0.07
_SAMPLED_CLIPS, _SAMPLED_SIDE = 32, 128
_BLOCK_BYTES = 32 << 20
_WHOLE_FILE_BYTES = 64 << 20
_MIN_SIDE = 8
_SURE = 0.7
_MIN_SKIN = 0.02
_CUT_WORD_TOKENS = 12  # a cut word has fewer; text is compared up to there


def detect_layout(shape: tuple[int, ...], wanted: str = "auto") -> str:
    """Return which of LAYOUTS a shape has, `wanted` unless that is "auto". ValueError where none or two fit."""
    if len(shape) != 5:
        raise ValueError(f"shape {shape} has {len(shape)} axes; wanted 5, such as (N, 3, T, H, W)")
    fits = [
        layout
        for layout in (LAYOUTS if wanted == "auto" else [wanted])
        if shape[layout.index("c")] == 3 and min(shape[layout.index("h")], shape[layout.index("w")]) >= _MIN_SIDE
    ]
    if len(fits) > 1:
        raise ValueError(f"shape {shape} may be {' or '.join(fits)}; say which: --layout {fits[0]}")
    if not fits or 0 in shape:
        asked = ", ".join(LAYOUTS) if wanted == "auto" else wanted
        raise ValueError(
            f"shape {shape} is not {asked} with c = 3 channels, sides of {_MIN_SIDE} px or more and at least one "
            "clip and frame"
        )
    return fits[0]


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets by name, those left out whose values lie in other files: those are not for this file to name.

    Links out of the file are not followed either.
    """
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
            found[name] = item

    file.visititems(visit)
    return found


class LegacyVideos:
    """Read-only view of one dataset of videos: `num_clips`, `num_frames`, `height`, `width`, `layout`."""

    def __init__(self, path: Path, dataset: str = "videos", layout: str = "auto") -> None:
        """Raises ValueError, naming the file and the datasets in it, unless it holds videos."""
        self.path = path
        if not path.is_file():
            raise ValueError(f"--videos {path}: no such file")
        try:
            # Nothing is written, and many shared file systems refuse locks.
            self.file = h5py.File(path, "r", locking=False)
            self._datasets = _datasets(self.file)
        except Exception as error:  # the library raises many kinds where bytes are damaged
            raise ValueError(f"--videos {path}: no readable HDF5 file: {error}") from error
        found = self._datasets
        if dataset not in found:
            there = ", ".join(f"{name} {item.shape}" for name, item in found.items()) or "none at all"
            raise ValueError(f"--videos {path}: no dataset {dataset!r}; set --dataset to one of: {there}")
        self.data = found[dataset]
        if self.data.dtype != np.uint8 and self.data.dtype.kind != "f":
            raise ValueError(f"dataset {dataset!r} of {path} holds {self.data.dtype}; wanted uint8 or floating point")
        try:
            self.layout = detect_layout(self.data.shape, layout)
        except ValueError as error:
            raise ValueError(f"dataset {dataset!r} of {path}: {error}") from error
        sizes = dict(zip(self.layout, self.data.shape, strict=True))
        self.num_clips, self.num_frames, self.height, self.width = (sizes[axis] for axis in "nthw")
        self.frame_bytes = 3 * self.height * self.width * self.data.dtype.itemsize
        self._time_axis = self.layout.index("t")

    def read(self, row: int, frames: slice | list[int]) -> np.ndarray:
        """Return the given frames of a clip, (t, h, w, 3) in the stored type and order of channels.

        Raises BadClip for data that HDF5 finds damaged, OSError as the file system does.
        """
        place: list[Any] = [row, *[slice(None)] * 4]
        place[self._time_axis] = frames
        try:
            return rearrange(self.data[tuple(place)], _PATTERNS[self.layout])
        except (OSError, RuntimeError, KeyError) as error:
            if getattr(error, "errno", None) is not None or "errno = " in str(error):
                raise
            raise BadClip(f"damaged in the HDF5 file: {error}") from error

    def block_frames(self) -> int:
        """Return how many frames to read at once: about 32 MiB, and whole chunks of the file."""
        frames = max(1, _BLOCK_BYTES // self.frame_bytes)
        chunk = self.data.chunks[self._time_axis] if self.data.chunks else 1
        return -(-frames // chunk) * chunk

    def ids(self) -> list[str] | None:
        """Return the clip ids that the file holds, None where it holds none.

        Taken from a dataset, or else an attribute, with one of the usual names (clip_ids, ids, video_ids, names,
        filenames, keys) and one entry a clip; folders and .mp4 are cut off. Raises ValueError for repeated ids.
        """
        for holder in (self._datasets, self.data.attrs, self.file.attrs):
            for name in _ID_NAMES:
                try:
                    entries = holder.get(name)
                    if entries is None or np.shape(entries) != (self.num_clips,):
                        continue
                    values = [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in entries[...]]
                except Exception as error:
                    raise ValueError(f"{name!r} of {self.path} cannot be read: {error}") from error
                return check_ids(values, self.num_clips, f"{name!r} of {self.path}")
        return None

    def fps(self) -> float | None:
        """Return attribute `fps` of the dataset or the file, None where there is none."""
        try:
            found = self.data.attrs.get("fps", self.file.attrs.get("fps"))
            return None if found is None else float(found)
        except Exception as error:
            raise ValueError(f"attribute 'fps' of {self.path} is no number, or damaged: {error}") from error

    def fingerprint(self) -> str:
        """Return sha256 hex of the file; beyond 64 MiB of its length and 4,096 blocks of 16 KiB spread evenly."""
        size = self.path.stat().st_size
        if size <= _WHOLE_FILE_BYTES:
            return file_digest(self.path)
        digest = hashlib.sha256(str(size).encode())
        with self.path.open("rb") as file:
            for number in range(4096):
                file.seek((size - (16 << 10)) * number // 4095)
                digest.update(file.read(16 << 10))
        return digest.hexdigest()

    def sample(self) -> list[np.ndarray]:
        """Return first, middle and last frame of up to 32 clips, each (3, h, w, 3) float32 as stored, thinned out.

        Clips that are empty, damaged or not finite are left out. Raises ValueError if none is left.
        """
        step = -(-max(self.height, self.width) // _SAMPLED_SIDE)
        places = sorted({0, self.num_frames // 2, self.num_frames - 1})  # in one read: a chunk is inflated once
        clips, reason = [], ""
        for row in sorted({round(n) for n in np.linspace(0, self.num_clips - 1, _SAMPLED_CLIPS)}):
            try:
                frames_thwc = self.read(row, places)[:, ::step, ::step].astype(np.float32)
                _check_picture(frames_thwc)
                clips.append(frames_thwc)
            except BadClip as bad:
                reason = bad.reason
        if not clips:
            raise ValueError(f"{self.path}: none of the clips looked at can be used; the last: {reason}")
        return clips


def check_ids(values: Sequence[str], num_clips: int, where: str) -> list[str]:
    """Return ids without folder and .mp4. Raises ValueError unless there is one a clip, none empty, none twice."""
    ids = [value.strip().replace("\\", "/").rpartition("/")[2].removesuffix(".mp4") for value in values]
    problems = [f"{len(ids)} ids for {num_clips} clips"] if len(ids) != num_clips else []
    problems += [f"{name!r} {count} times" for name, count in Counter(ids).items() if count > 1 or not name]
    if problems:
        raise ValueError(f"clip ids in {where}: {problems[0]}; give one id a line in the file's order: --ids LIST")
    return ids


def synthetic_ids(num_clips: int) -> list[str]:
    """Return ids for clips that have none: `h5_00000042_0_0`, whose first 11 characters are one identity each."""
    assert num_clips <= 10**8
    return [f"h5_{row:08d}_0_0" for row in range(num_clips)]


def _check_picture(frames_thwc: np.ndarray) -> None:
    if not np.isfinite(frames_thwc).all():
        raise BadClip("holds values that are not finite (NaN or infinity)")
    if (frames_thwc == frames_thwc.flat[0]).all():
        raise BadClip(f"every value is {frames_thwc.flat[0]:g}: a row that was never written")


def detect_values(clips: Sequence[np.ndarray]) -> tuple[str, str]:
    """Return which of GREY_OF the sampled clips (t, h, w, 3) float32 are, and the reason in words.

    A range that the values do not fill is told from another by the lattice: frames that were once 8-bit give whole
    grey levels under the right hypothesis alone. Raises ValueError where no range fits or where two do.
    """
    values = np.concatenate([rearrange(clip, "t h w c -> (t h w) c") for clip in clips])
    low, high = float(values.min()), float(values.max())
    seen = f"values from {low:.4g} to {high:.4g}"
    fits, exact, full = [], [], []
    for name, (scale, offset) in GREY_OF.items():
        grey = values * scale + offset
        if grey.min() < -_OVERSHOOT or grey.max() > 255 + _OVERSHOOT:
            continue
        if (name == "bytes" and high < 64) or (name == "signed" and low >= -0.05) or (name == "unit" and high < 0.02):
            continue
        fits.append(name)
        if np.mean(np.abs(grey - np.rint(grey)) < _ON_LATTICE) > 0.99:
            exact.append(name)
        if grey.min() < 5 and grey.max() > 250:
            full.append(name)
    if not fits:
        raise ValueError(f"{seen} fit no known range ({'; '.join(VALUE_NAMES.values())}); is this a dataset of videos?")
    for found, reason in ((exact, "whole grey levels"), (fits, "the only range that fits"), (full, "fills this range")):
        if len(found) == 1:
            return found[0], f"{seen}, {VALUE_NAMES[found[0]]} ({reason})"
    raise ValueError(f"{seen} may be {' or '.join(fits)}; say which: --values {fits[0]}")


@dataclass(frozen=True, kw_only=True)
class BgrEvidence:
    """How many sampled clips show skin in one order of channels far more than in the other."""

    rgb: int
    bgr: int

    @property
    def verdict(self) -> bool | None:
        """True for BGR, False for RGB, None where the evidence is not enough."""
        return None if self.confidence < _SURE else self.bgr > self.rgb

    @property
    def confidence(self) -> float:
        """Lower end of the 95 % interval (Wilson 1927) of the share of clips that vote with the majority."""
        wins, votes, z2 = max(self.rgb, self.bgr), self.rgb + self.bgr, 1.96**2
        if votes == 0:
            return 0.0
        share = wins / votes
        spread = math.sqrt(z2 * (share * (1 - share) / votes + z2 / (4 * votes**2)))
        return (share + z2 / (2 * votes) - spread) / (1 + z2 / votes)

    def __str__(self) -> str:
        return (
            f"skin tones say RGB in {self.rgb} and BGR in {self.bgr} of the clips looked at "
            f"(majority at least {self.confidence:.0%} at 95 % confidence, {_SURE:.0%} needed)"
        )


def bgr_evidence(clips: Sequence[np.ndarray], values: str) -> BgrEvidence:
    """Count the clips that show skin as RGB and as BGR; a clip votes with 2 % skin and twice as much as the other way.

    clips: (t, h, w, 3) float32 as stored. Skin by the daylight rule for RGB of Kovac, Peer & Solina (2003).
    """
    scale, offset = GREY_OF[values]
    rgb = bgr = 0
    for clip in clips:
        grey = clip * scale + offset
        as_rgb, as_bgr = _skin_share(grey), _skin_share(grey[..., ::-1])
        rgb += as_rgb >= _MIN_SKIN and as_rgb >= 2 * as_bgr
        bgr += as_bgr >= _MIN_SKIN and as_bgr >= 2 * as_rgb
    return BgrEvidence(rgb=rgb, bgr=bgr)


def _skin_share(grey_thwc: np.ndarray) -> float:
    red, green, blue = np.moveaxis(grey_thwc, -1, 0)
    spread = grey_thwc.max(-1) - grey_thwc.min(-1)
    bright = (red > 95) & (green > 40) & (blue > 20) & (spread > 15)
    return float(np.mean(bright & (red - green > 15) & (red > blue)))


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How stored values become pictures."""

    values: str
    """One of GREY_OF; CLIP's mean and deviation were applied to the channels as they lie in the file."""
    bgr: bool
    """Channels lie in the file as blue, green, red."""
    source_fps: float
    """Frames per second in the file; greater than 0."""


def frame_numbers(num_frames: int, source_fps: float, fps: float, max_frames: int) -> list[int]:
    """Return the source frame nearest in time to k / fps, for k = 0, 1, ... up to the end or `max_frames`.

    k counts while a source frame lies within half its period of k / fps; in a tie the earlier one is taken.
    """
    ratio = Fraction(source_fps).limit_denominator(1001) / Fraction(fps).limit_denominator(1001)
    half = Fraction(1, 2)
    count = min(max_frames, math.floor((num_frames - half) / ratio) + 1)
    return [max(0, math.ceil(k * ratio - half)) for k in range(count)]


def area_weights(source: int, size: int) -> np.ndarray:
    """Return (size, source) float32 rows that average `source` pixels over `size` equal areas (identity if equal)."""
    edges, pixels = np.arange(size + 1) * (source / size), np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * (size / source)).astype(np.float32)


def read_clip(videos: LegacyVideos, row: int, how: Conversion, config: DataConfig) -> dict[int, np.ndarray]:
    """Return frames[size]: (t, size, size, 3) uint8 RGB at config.fps, cropped to the centre square, averaged by area.

    Zeros in all channels up to the end are padding, where zero is no black but a grey that CLIP's mean gives. Raises
    BadClip for a clip that was never written, or holds values that are no picture.
    """
    numbers = frame_numbers(videos.num_frames, how.source_fps, config.fps, config.max_frames)
    side = min(videos.height, videos.width)
    top, left = (videos.height - side) // 2, (videos.width - side) // 2
    frames = {size: np.empty((len(numbers), size, size, 3), np.uint8) for size in config.frame_sizes}
    weights = {size: area_weights(side, size) for size in config.frame_sizes}
    step, written, length = videos.block_frames(), False, 0
    for start in range(0, numbers[-1] + 1, step):
        stop = min(start + step, numbers[-1] + 1)
        block = videos.read(row, slice(start, stop))
        low, high = _grey_range(block, how)
        if math.isnan(low) or math.isnan(high):
            raise BadClip(f"frames {start} to {stop - 1} hold values that are not finite (NaN)")
        if low < -_OVERSHOOT or high > 255 + _OVERSHOOT:
            raise BadClip(
                f"frames {start} to {stop - 1} hold grey levels from {low:.4g} to {high:.4g}, if values are "
                f"{VALUE_NAMES[how.values]}: no picture"
            )
        written = written or bool((block != block.flat[0]).any())
        pictures = np.flatnonzero((block != 0).any((1, 2, 3))) if how.values in _ZERO_IS_GREY else [stop - start - 1]
        length = start + int(pictures[-1]) + 1 if len(pictures) else length
        for k in (k for k, number in enumerate(numbers) if start <= number < stop):
            picture = block[numbers[k] - start, top : top + side, left : left + side]
            for size, pixels in frames.items():
                pixels[k] = _to_grey(picture, how, weights[size])
    if not written:
        raise BadClip("every value is the same: a row that was never written")
    count = len(numbers)
    if length <= numbers[-1]:
        count = len(frame_numbers(length, how.source_fps, config.fps, config.max_frames))
    return {size: pixels[:count] for size, pixels in frames.items()}


def _grey_range(block_thwc: np.ndarray, how: Conversion) -> tuple[float, float]:
    scale, offset = GREY_OF[how.values]
    limits = np.stack([block_thwc.min((0, 1, 2)), block_thwc.max((0, 1, 2))]).astype(np.float32) * scale + offset
    return float(limits[0].min()), float(limits[1].max())


def _to_grey(picture_hwc: np.ndarray, how: Conversion, weights: np.ndarray) -> np.ndarray:
    """Average, undo the normalisation (both are linear, so the smaller picture may come last) and round."""
    scale, offset = GREY_OF[how.values]
    side = picture_hwc.shape[0]
    values = np.asarray(picture_hwc, np.float32)
    if len(weights) != side:
        rows = rearrange(weights @ rearrange(values, "h w c -> h (w c)"), "h (w c) -> h w c", w=side)
        values = weights @ rows
    grey = np.clip(np.rint(values * scale + offset), 0, 255).astype(np.uint8)
    return grey[..., ::-1] if how.bgr else grey


def caption_files_fingerprint(root: Path, clip_ids: Sequence[str], config: DataConfig) -> str:
    """Return sha256 hex over kinds, ids and sizes of the clips' caption files. ValueError where no clip has any."""
    digest, found = hashlib.sha256(), 0
    for kind, folder in text_folders(root, config).items():
        for clip_id in clip_ids:
            path = folder / f"{clip_id}.txt"
            if path.is_file():
                found += 1
                digest.update(f"{kind}\0{clip_id}\0{path.stat().st_size}\n".encode())
    if not found:
        raise ValueError(
            f"--captions {root}: no caption file for any of {len(clip_ids)} clips, such as {clip_ids[0]}.txt; are the "
            "ids right? Give one id a line in the order of the videos: --ids LIST"
        )
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DecodedTokens:
    """`texts`: one caption a clip; `cut`: how many had been cut at the context, whose last word is left out."""

    texts: list[str]
    cut: int


def decode_tokens(tokens_nl: np.ndarray, tokenizer: Tokenizer) -> DecodedTokens:
    """Return the text of tokenised captions (n, context) of integer ids: start mark, text, end mark, padding.

    Raises ValueError, naming the row, where the ids are not this tokenizer's: no start mark, an unknown id, or text
    that encodes to other ids in more than one caption of twenty.
    """
    remedy = (
        "give the folder of the tokenizer that made them: --tokenizer DIR (or the caption files: --captions FOLDER)"
    )
    size = tokenizer.vocab_size
    strange = (tokens_nl[:, 0] != tokenizer.start) | (tokens_nl < 0).any(1) | (tokens_nl >= size).any(1)
    if strange.any():
        row = int(np.argmax(strange))
        raise ValueError(
            f"tokens of row {row} begin with {tokens_nl[row, 0]} and reach {tokens_nl[row].max()}, but the "
            f"tokenizer's start mark is {tokenizer.start} and its ids are below {size}; {remedy}"
        )
    suffix = getattr(tokenizer.backend.model, "end_of_word_suffix", None) or " "
    texts, cut, wrong = [], 0, []
    for n, ids_l in enumerate(tokens_nl):
        ends = np.flatnonzero(ids_l[1:] == tokenizer.end)
        ids = ids_l[1 : 1 + ends[0]].tolist() if len(ends) else ids_l[1:].tolist()
        text = tokenizer.backend.decode(ids, skip_special_tokens=False)
        text = " ".join(text.replace(suffix, " ").split())
        compared = len(ids)
        if len(ids) >= len(ids_l) - 2:
            cut += 1
            text = text.rpartition(" ")[0] or text
            compared = max(0, len(ids) - _CUT_WORD_TOKENS)
        if tokenizer.backend.encode(text, add_special_tokens=False).ids[:compared] != ids[:compared]:
            wrong.append(n)
        texts.append(text)
    if len(wrong) > len(texts) // 20:
        raise ValueError(
            f"{len(wrong)} of {len(texts)} captions do not survive the tokenizer, first in row {wrong[0]}: "
            f"{texts[wrong[0]][:60]!r}; {remedy}"
        )
    return DecodedTokens(texts=texts, cut=cut)
