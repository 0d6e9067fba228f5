"""CelebV-Text on disk (Yu et al. 2023): one mp4 a clip, six caption folders with `<clip id>.txt`, one caption a line.

Invariant: what a clip is and which split it belongs to depend on the clip alone, never on the other clips present; all
clips of one identity are in the same split. Preprocessing starts here; any data set laid out this way can be used.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from dalle2_video.data_config import CAPTION_KINDS, DataConfig

log = logging.getLogger(__name__)

IDENTITY_CHARACTERS = 11

# Spellings met in published copies, accepted where the configured folder is missing.
_FOLDERS_IN_THE_WILD: dict[str, tuple[str, ...]] = {
    "appearance": ("texts/face40_details/face40_details_new", "texts/face40_details"),
    "emotion": ("texts/descripitions/emotion", "texts/descriptions/emotion"),
    "light_color": ("texts/light_colot_temp",),
}
_SAMPLE_REMEDY = "or make sample data: python tools/make_sample_data.py"


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """One video file; `clip_id` is its name without the extension."""

    clip_id: str
    path: Path
    size_bytes: int


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
    """Return the data set's clips, sorted by id. Raises ValueError naming the folder that is missing or empty."""
    if not root.is_dir():
        raise ValueError(f"data root {root} is not a folder; set --data-root, {_SAMPLE_REMEDY}")
    videos = root / config.video_folder
    if not videos.is_dir():
        raise ValueError(
            f"video folder {videos} does not exist; set --data.video-folder relative to --data-root {root}, "
            f"{_SAMPLE_REMEDY}"
        )
    for kind in CAPTION_KINDS:
        folder = text_folder(root, kind, config)
        if folder != root / getattr(config.text_folders, kind):
            log.warning("captions %s: %s is missing, using %s", kind, getattr(config.text_folders, kind), folder)
    files = sorted(path for path in videos.glob("*.mp4") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise ValueError(f"video folder {videos} holds no .mp4 file; set --data.video-folder, {_SAMPLE_REMEDY}")
    clips = [ClipFile(clip_id=path.stem, path=path, size_bytes=path.stat().st_size) for path in files]
    return sorted(clips, key=lambda clip: clip.clip_id)


def fingerprint(clips: list[ClipFile]) -> str:
    """Return sha256 hex over the clips' ids and sizes: changes when a clip comes, goes or grows."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.clip_id}\0{clip.size_bytes}\n".encode())
    return digest.hexdigest()


def text_folder(root: Path, kind: str, config: DataConfig) -> Path:
    """Return the folder of one kind of caption: the configured one, else a spelling known from published copies.

    Raises ValueError naming the configured folder if there is none.
    """
    configured = root / getattr(config.text_folders, kind)
    for folder in (configured, *(root / name for name in _FOLDERS_IN_THE_WILD.get(kind, ()))):
        if folder.is_dir():
            return folder
    option = f"--data.text-folders.{kind.replace('_', '-')}"
    raise ValueError(f"caption folder {configured} does not exist; set {option} relative to {root}, {_SAMPLE_REMEDY}")


def read_captions(root: Path, clip_id: str, config: DataConfig) -> list[Caption]:
    """Return every non-empty line of the clip's caption files, in the order of CAPTION_KINDS and of the lines.

    A kind without a file is fine. Raises ValueError, which concerns this clip only, for a file that is not UTF-8 and
    for a clip that has no caption at all.
    """
    captions = []
    for kind in CAPTION_KINDS:
        path = text_folder(root, kind, config) / f"{clip_id}.txt"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"caption file {path} is not UTF-8: {error.reason} at byte {error.start}") from error
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        captions += [Caption(kind=kind, text=line.strip()) for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"no caption for {clip_id} in any of the {len(CAPTION_KINDS)} caption folders below {root}")
    return captions
