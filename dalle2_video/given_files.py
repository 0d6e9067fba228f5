"""The files that a sample run's command line names: what lies in them is part of the run, their names are not.

A file of prompts becomes these prompts as soon as the command line is read. The file that videos begin with is named by
its digest in what a run is made from, and its path is an input of the run. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dalle2_video import prompts
from dalle2_video.config import Recipe
from dalle2_video.digests import file_digest

DIGEST_MARK = "sha256:"
START = "start"
"""Name of the input of a run."""


def with_prompts(recipe: Recipe) -> Recipe:
    """Return the recipe with the prompts of its file in place of the file; ValueError with the line and the remedy."""
    sample = recipe.sample
    if not sample.prompts_file:
        return recipe
    found = prompts.read(Path(sample.prompts_file).expanduser(), "--sample.prompts-file")
    return replace(recipe, sample=replace(sample, prompts=found, prompts_file=""))


def check_words(words: Sequence[str]) -> None:
    """Raise ValueError with the remedy where a command line has a prompt that looks like an option."""
    for word in words:
        option, _, rest = word.partition(" ")
        looks = word.startswith("-") and (bool(rest) or not word.startswith("--"))
        if looks and "=" not in option and word != "-h" and not _is_number(word):
            raise ValueError(
                f"{word[:60]!a} is no option; a prompt that begins with - is given as --sample.prompts='-...', several "
                "prompts in a file, one a line: --sample.prompts-file FILE"
            )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def start_of(recipe: Recipe) -> Path | None:
    """Return the file that videos begin with, absolute; None without one."""
    named = recipe.sample.start
    return Path(named).expanduser().absolute() if named else None


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with the digest of that file in its place; ValueError where it cannot be read."""
    path = start_of(recipe)
    if path is None:
        return recipe
    try:
        digest = file_digest(path)
    except OSError as error:
        raise ValueError(
            f"--sample.start {path}: cannot be read ({error.strerror}); give an image or a video"
        ) from error
    return replace(recipe, sample=replace(recipe.sample, start=DIGEST_MARK + digest))
