"""Which folder holds which kind of caption: the configured one, or a spelling met in published copies.

The same spellings are looked for on disk and in the names of archives' members, so that a data set reads the same
extracted and packed.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from dalle2_video.data_config import CAPTION_KINDS, DataConfig

_PARENTS = ("texts", "texts/descripitions", "texts/descriptions", "descripitions", "descriptions")
_NAMES: dict[str, tuple[str, ...]] = {
    "appearance": ("face40_details/face40_details_new", "face40_details_new", "face40_details"),
    "light_color": ("light_color_temp", "light_colot_temp"),
}


def spellings(kind: str, config: DataConfig) -> list[PurePosixPath]:
    """Return where captions of a kind are looked for, relative to the data root, the configured folder first."""
    configured = PurePosixPath(getattr(config.text_folders, kind))
    names = (configured.name, *_NAMES.get(kind, ()))
    parents = (configured.parent, *map(PurePosixPath, _PARENTS))
    return list(dict.fromkeys([configured, *(parent / name for name in names for parent in parents)]))


def find_folder(root: Path, kind: str, config: DataConfig) -> Path | None:
    """Return the first folder that holds caption files, else the first that is there at all, else None.

    Upper and lower case are alike where the exact spelling is missing, and a folder within one of the same name is
    looked into: emotion/emotion/<clip id>.txt.
    """
    there = [folder for name in spellings(kind, config) if (folder := _descend(root, name)) is not None]
    for folder in there:
        if holds_texts(folder):
            return folder
        nested = _descend(folder, PurePosixPath(folder.name))
        if nested is not None and holds_texts(nested):
            return nested
    return there[0] if there else None


def holds_texts(folder: Path) -> bool:
    """Whether any .txt file lies in a folder; looks no further than the first."""
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".txt") and not entry.name.startswith(".") for entry in entries)


def _descend(folder: Path, name: PurePosixPath) -> Path | None:
    for part in name.parts:
        exact = folder / part
        if not exact.is_dir():
            try:
                alike = sorted(entry.name for entry in folder.iterdir() if entry.name.lower() == part.lower())
            except OSError:
                return None
            exact = next((folder / other for other in alike if (folder / other).is_dir()), exact)
            if not exact.is_dir():
                return None
        folder = exact
    return folder


class KindOfFolder:
    """Tells the kind of caption by the name of the folder of a .txt file in an archive."""

    def __init__(self, config: DataConfig) -> None:
        self._spellings = {kind: [_lower(name) for name in spellings(kind, config)] for kind in CAPTION_KINDS}
        self._known: dict[PurePosixPath, tuple[str, int] | None] = {}

    def __call__(self, folder: PurePosixPath) -> tuple[str, int] | None:
        """Return the kind, and how far down the list of spellings the folder's name is; None if it is no kind's.

        Raises ValueError for a name that is configured for several kinds and that the folders above do not tell apart.
        """
        if folder not in self._known:
            self._known[folder] = self._find(folder)
        return self._known[folder]

    def _find(self, folder: PurePosixPath) -> tuple[str, int] | None:
        parts = _lower(folder)
        alike = {kind: max(_shared_end(parts, name) for name in names) for kind, names in self._spellings.items()}
        most = max(alike.values())
        if most == 0:
            return None
        kinds = [kind for kind in CAPTION_KINDS if alike[kind] == most]
        if len(kinds) > 1:
            raise ValueError(
                f"captions in {folder} may be of kind {' or '.join(kinds)}; give --data.text-folders names that differ"
            )
        names = list(dict.fromkeys(name[-1] for name in self._spellings[kinds[0]]))
        return kinds[0], names.index(parts[-1])


def _lower(folder: PurePosixPath) -> tuple[str, ...]:
    return tuple(part.lower() for part in folder.parts)


def _shared_end(some: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Number of last parts that two paths share."""
    count = 0
    while count < min(len(some), len(other)) and some[-1 - count] == other[-1 - count]:
        count += 1
    return count
