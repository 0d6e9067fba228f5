"""CelebV-Text on disk (Yu et al. 2023): one mp4 a clip, six caption folders with `<clip id>.txt`, one caption a line.

Clips and caption files lie in folders, in .tar or .zip archives, or some here and some there; `celebvtext_info.json` is
read where it is found. Invariant: what a clip is and which split it belongs to depend on the clip alone, never on the
other clips present; all clips of one identity are in the same split. Preprocessing starts here; any data set laid out
this way can be used.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dalle2_video import json_file
from dalle2_video.data.archives import SUFFIXES, Source, members, refuse_packed
from dalle2_video.data.caption_folders import KindOfFolder, find_folder, holds_texts
from dalle2_video.data.celebv_info import examples, expected_seconds
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

log = logging.getLogger(__name__)

IDENTITY_CHARACTERS = 11
MAX_CAPTION_BYTES = 1 << 20
_OTHER_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Ends of names, in lower case, of what looks like a clip and is none unless its name ends in .mp4."""
_ARCHIVE_LEVELS = 3
"""Folders below the root that are searched for archives."""

_SAMPLE_REMEDY = "put the .tar or .zip archives there, or make sample data: python tools/make_sample_data.py"


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """One clip; `clip_id` is the name of its video file without the extension."""

    clip_id: str
    source: Source
    """The video."""
    texts: Mapping[str, Source] = field(default_factory=dict)
    """Caption files in archives, by kind; other kinds are looked for in the caption folders."""
    expected_seconds: float | None = None
    """How long the clip is by celebvtext_info.json."""

    def to_row(self, root: Path) -> list[Any]:
        """Return the clip as plain JSON types, paths relative to the data root."""
        texts = {kind: _to_plain(source, root) for kind, source in self.texts.items()}
        return [self.clip_id, _to_plain(self.source, root), texts, self.expected_seconds]

    @classmethod
    def from_row(cls, row: Sequence[Any], root: Path) -> ClipFile:
        """Return the clip that `to_row` wrote, below a data root that may have moved since."""
        clip_id, source, texts, expected = row
        return cls(
            clip_id=clip_id,
            source=_from_plain(source, root),
            texts={kind: _from_plain(plain, root) for kind, plain in texts.items()},
            expected_seconds=expected,
        )


def _to_plain(source: Source, root: Path) -> list[Any]:
    plain = [source.path.relative_to(root).as_posix(), source.size, source.offset, source.packed_size, source.crc32]
    while plain[-1] is None:
        del plain[-1]  # 500,000 files make a long manifest
    return plain


def _from_plain(plain: Sequence[Any], root: Path) -> Source:
    path, size, offset, packed_size, crc32 = (*plain, None, None, None)[:5]
    return Source(path=root / path, size=size, offset=offset, packed_size=packed_size, crc32=crc32)


def read_manifest(path: Path, root: Path) -> list[ClipFile]:
    """Return the clips of a file of `ClipFile.to_row`. Raises ValueError naming it where it holds anything else."""
    rows = json_file.read(path)
    try:
        return [ClipFile.from_row(row, root) for row in rows]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it holds rows that are no clips ({error!r})") from error


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One line of one caption file; `kind` is one of CAPTION_KINDS."""

    kind: str
    text: str


def identity_of(clip_id: str) -> str:
    """Return who is in the clip: the YouTube id that CelebV-Text puts first, 11 characters which may hold - and _."""
    return clip_id[:IDENTITY_CHARACTERS]


def is_validation(identity: str, fraction: float) -> bool:
    """Whether an identity is held out. Depends on the identity and the fraction (in [0, 1)) only."""
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little")
    return number < fraction * 2.0**64


def scan(root: Path, config: DataConfig) -> list[ClipFile]:
    """Return the data set's clips, sorted by id; logs what `scan_with_notes` notes and raises as it does."""
    clips, notes = scan_with_notes(root, config)
    for note in notes:
        log.warning("%s", note)
    return clips


def scan_with_notes(root: Path, config: DataConfig) -> tuple[list[ClipFile], list[str]]:
    """Return the clips, sorted by id, and what was odd about the input, in sentences.

    Raises ValueError naming the folder, archive or file that is missing, empty or damaged, with the remedy.
    """
    if not root.is_dir():
        raise ValueError(f"data root {root} is not a folder; set --data-root, {_SAMPLE_REMEDY}")
    notes: list[str] = []
    folders = {kind: find_folder(root, kind, config) for kind in CAPTION_KINDS}
    videos, texts = _archived(root, config, [folder for folder in folders.values() if folder is not None], notes)
    extracted = _extracted(root / config.video_folder, notes)
    clips = _readable_names({**videos, **extracted}, notes)
    if not clips:
        found = "holds no .mp4 file" if (root / config.video_folder).is_dir() else "does not exist"
        raise ValueError(
            f"video folder {root / config.video_folder} {found}; set --data.video-folder relative to "
            f"--data-root {root}, {_SAMPLE_REMEDY}"
        )
    both = videos.keys() & extracted.keys()
    if both:
        notes.append(f"{len(both)} clips lie both extracted and in an archive; the extracted ones are used")
    if missing := [kind for kind, folder in folders.items() if folder is None and not texts[kind]]:
        raise _no_text_folders(root, missing, config)
    for kind, folder in folders.items():
        configured = getattr(config.text_folders, kind)
        if folder is not None:
            _prefer_extracted(texts[kind], folder, kind, notes)
            if folder != root / configured:
                notes.append(f"captions {kind}: {configured} is missing, {folder.relative_to(root)} is used")
    identities = {clip_id: identity_of(clip_id) for clip_id in clips}
    _note_one_sided_split({*identities.values()}, config.val_fraction, notes)
    seconds = expected_seconds(root, identities, notes)
    return [
        ClipFile(
            clip_id=clip_id,
            source=clips[clip_id],
            texts={kind: texts[kind][clip_id] for kind in CAPTION_KINDS if clip_id in texts[kind]},
            expected_seconds=seconds.get(clip_id),
        )
        for clip_id in sorted(clips)
    ], notes


def _extracted(folder: Path, notes: list[str]) -> dict[str, Source]:
    if not folder.is_dir():
        return {}
    found, odd, others = {}, [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_clip(entry.name):
                others += [entry.name] if _is_other_video(entry.name) else []
                continue
            if entry.is_file():
                found[entry.name.removesuffix(".mp4")] = Source(path=folder / entry.name, size=entry.stat().st_size)
            else:
                odd.append(entry.name)
    if odd:
        notes.append(f"{len(odd)} names in {folder} are no files, or links to nothing: {examples(odd)}")
    _note_other_videos(others, notes)
    return found


def _is_clip(name: str) -> bool:
    return name.endswith(".mp4") and not name.startswith(".")


def _is_other_video(name: str) -> bool:
    return name.lower().endswith(_OTHER_VIDEOS) and not name.startswith(".")


def _note_other_videos(names: list[str], notes: list[str]) -> None:
    if names:
        notes.append(f"{len(names)} videos have names that do not end in .mp4 and are left out: {examples(names)}")


def _readable_names(clips: dict[str, Source], notes: list[str]) -> dict[str, Source]:
    """Leave out clips whose name is not UTF-8: neither the manifest nor the store could hold it."""
    odd = {clip_id for clip_id in clips if any("\ud800" <= character <= "\udfff" for character in clip_id)}
    if odd:
        names = examples([ascii(clip_id) for clip_id in odd])
        notes.append(f"{len(odd)} clips have names that are not UTF-8 and are left out: {names}")
    return {clip_id: source for clip_id, source in clips.items() if clip_id not in odd}


def _note_one_sided_split(identities: set[str], fraction: float, notes: list[str]) -> None:
    held = sum(is_validation(identity, fraction) for identity in identities)
    if 0 < held < len(identities):
        return
    notes.append(
        f"by the first {IDENTITY_CHARACTERS} characters of their names, which say who is in them, the clips are of "
        f"{len(identities)} identities, and {'all' if held else 'none'} would be held out for validation; a training "
        f"needs both kinds: {'lower' if held else 'raise'} --data.val-fraction (now {fraction}), or name clips "
        f"<{IDENTITY_CHARACTERS} characters for who>_<number>.mp4"
    )


def _archived(
    root: Path, config: DataConfig, text_folders: Sequence[Path], notes: list[str]
) -> tuple[dict[str, Source], dict[str, dict[str, Source]]]:
    """Return the clips, and by kind the caption files, that lie in archives, both by clip id."""
    kind_of = KindOfFolder(config)
    videos: dict[str, Source] = {}
    texts: dict[str, dict[int, dict[str, Source]]] = {kind: {} for kind in CAPTION_KINDS}
    repeated, strays, others = 0, [], []
    skipped = {folder for folder in text_folders if holds_texts(folder)}
    for archive in sorted(_archives(root, _ARCHIVE_LEVELS, skipped, notes)):
        for name, source in members(archive, notes.append):
            if _is_clip(name.name):
                repeated += _add(videos, name.name.removesuffix(".mp4"), source)
            elif _is_other_video(name.name):
                others.append(f"{name} in {archive}")
            elif name.suffix == ".txt" and not name.name.startswith("."):
                # An archive stands for a folder of its name: emotion.zip may hold <clip id>.txt with no folder.
                kind = kind_of(PurePosixPath(archive.relative_to(root).with_suffix(""), name.parent))
                if kind is None:
                    strays.append(f"{name} in {archive}")
                else:
                    repeated += _add(texts[kind[0]].setdefault(kind[1], {}), name.stem, source)
    if repeated:
        notes.append(f"{repeated} files lie in the archives more than once, with the same size; the first is used")
    if strays:
        notes.append(f"{len(strays)} .txt files in archives lie in no caption folder, unused: {examples(strays)}")
    _note_other_videos(others, notes)
    # As with folders on disk, the configured name goes before other spellings of it.
    best_last = {kind: [ranked[rank] for rank in sorted(ranked, reverse=True)] for kind, ranked in texts.items()}
    return videos, {kind: {k: v for files in ranked for k, v in files.items()} for kind, ranked in best_last.items()}


def _add(found: dict[str, Source], clip_id: str, source: Source) -> bool:
    """Add a file; return whether it was there already."""
    there = found.setdefault(clip_id, source)
    if there.size != source.size:
        raise ValueError(
            f"{clip_id} lies in archives twice with different content: {there} has {there.size} bytes, {source} has "
            f"{source.size}; move one of the archives away, or extract the clip that you want"
        )
    return there is not source


def _archives(folder: Path, levels: int, skipped: set[Path], notes: list[str]) -> list[Path]:
    """Return the archives in a folder and up to `levels` levels below it; does not look into `skipped` folders."""
    try:
        with os.scandir(folder) as entries:
            names = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        notes.append(f"{folder} cannot be read and was not searched for archives")
        return []
    found = []
    for name, is_folder in names:
        path = folder / name
        if is_folder:
            if levels > 0 and path not in skipped:
                found += _archives(path, levels - 1, skipped, notes)
        elif name.lower().endswith(SUFFIXES):
            found.append(path)
        else:
            refuse_packed(path)
    return found


def _prefer_extracted(archived: dict[str, Source], folder: Path, kind: str, notes: list[str]) -> None:
    """Forget the caption files in archives that lie in the folder too."""
    if not archived:
        return
    with os.scandir(folder) as entries:
        both = archived.keys() & {entry.name.removesuffix(".txt") for entry in entries if entry.name.endswith(".txt")}
    for clip_id in both:
        del archived[clip_id]
    if both:
        notes.append(
            f"{len(both)} files with captions {kind} lie both extracted and in an archive; the extracted are used"
        )


def fingerprint(clips: Iterable[ClipFile]) -> str:
    """Return sha256 hex over the clips' ids and sizes: changes when a clip comes, goes or grows, not when it moves."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.clip_id}\0{clip.source.size}\n".encode())
    return digest.hexdigest()


def text_folders(root: Path, config: DataConfig, clips: Sequence[ClipFile] = ()) -> dict[str, Path]:
    """Return the folder of each kind of caption that has one: the configured one, else a spelling known from copies.

    Looked up once for all clips: on a network file system each look costs. Raises ValueError for a kind that has no
    folder, unless some of `clips` have it in an archive.
    """
    found, missing = {}, []
    for kind in CAPTION_KINDS:
        folder = find_folder(root, kind, config)
        if folder is not None:
            found[kind] = folder
        elif not any(kind in clip.texts for clip in clips):
            missing.append(kind)
    if missing:
        raise _no_text_folders(root, missing, config)
    return found


def _no_text_folders(root: Path, kinds: Sequence[str], config: DataConfig) -> ValueError:
    folders = [str(root / getattr(config.text_folders, kind)) for kind in kinds]
    options = ", ".join(f"--data.text-folders.{kind.replace('_', '-')}" for kind in kinds)
    return ValueError(
        f"no caption folder {', '.join(folders)}; set {options} relative to {root}, {_SAMPLE_REMEDY}; "
        f"to go without captions of a kind make an empty folder: {shlex.join(['mkdir', '-p', *folders])}"
    )


def read_captions(clip_id: str, texts: Mapping[str, Source], folders: Mapping[str, Path]) -> list[Caption]:
    """Return every non-empty line of the clip's caption files, in the order of CAPTION_KINDS and of the lines.

    texts: caption files in archives, as ClipFile has them; folders: as `text_folders` returns them. A kind without a
    file is fine. Raises ValueError, which concerns this clip only, for a file that is no text and for a clip that has
    no caption at all; OSError as the file system does, also for a folder that is gone.
    """
    captions = []
    for kind in CAPTION_KINDS:
        source = texts.get(kind) or _in_folder(clip_id, folders.get(kind))
        if source is None:
            continue
        if source.size > MAX_CAPTION_BYTES:
            raise ValueError(
                f"caption file {source} has {source.size} bytes, more than {MAX_CAPTION_BYTES}: no captions"
            )
        captions += [Caption(kind=kind, text=line) for line in caption_lines(source.read(), source)]
    if not captions:
        raise ValueError(f"no caption for {clip_id} in any of the {len(CAPTION_KINDS)} kinds")
    return captions


def _in_folder(clip_id: str, folder: Path | None) -> Source | None:
    if folder is None:
        return None
    try:
        return Source.of_file(folder / f"{clip_id}.txt")
    except FileNotFoundError:
        if not folder.is_dir():
            # A file system that went away must not turn into clips without captions.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None
        return None


def caption_lines(data: bytes, where: object) -> list[str]:
    """Return the non-empty lines of a caption file: UTF-8 with or without mark, or UTF-16 with one.

    Only CR, LF and CRLF end a line. Raises ValueError naming `where` and the byte that is no text.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"caption file {where} is not {'UTF-16' if wide else 'UTF-8'}: {error.reason} at byte {error.start}"
        ) from error
    if "\0" in text:
        before = text[: text.index("\0")]
        byte = 2 + len(before.encode("utf-16-le")) if wide else data.index(0)
        raise ValueError(
            f"caption file {where} is no text: a zero at byte {byte}; if it is UTF-16 without a mark, convert it: "
            "iconv -f UTF-16LE -t UTF-8"
        )
    # A CRLF becomes an empty line more, and empty lines do not count.
    return [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
