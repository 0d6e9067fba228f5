"""What an evaluation needs to know of that which is judged: how a task measures, and what the figures are.

The judges: `clip_judge` (retrieval), `prior_judge` (cosines), `decoder_judge` (bits a dimension), `sample_judge` (CLIP
score, distances of distributions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dalle2_video.evaluation.intervals import Figure
from dalle2_video.evaluation.split_clips import SplitClips
from dalle2_video.task_array import OnProgress

Rows = dict[str, np.ndarray]
"""Arrays by name, whose first axis is that of clips or videos."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of an evaluation."""

    figures: Mapping[str, Mapping[str, Figure]]
    """By group and name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What they were measured on, beside the clips; JSON types."""
    words: dict[str, str] = field(default_factory=dict)
    """For people; a line each."""
    files: list[str] = field(default_factory=list)
    """Further files that were staged, relative to the root."""


class Judge(Protocol):
    """Judges one run."""

    clips: SplitClips

    def measure(self, task: int, on_progress: OnProgress) -> Rows:
        """Return what one task finds, which follows from the task alone; on_progress: takes the share done."""

    def verdict(self, found: Rows, staging: Path) -> Verdict:
        """Return the figures of what all tasks found, in their order."""


Lazy = Callable[[], Path]
"""An export folder that is looked for, or made, when it is first needed."""


def told(on_progress: OnProgress, before: int, of: int) -> Callable[[float], None]:
    """Return what turns a number of clips read, of a batch that has so many before it, into the share done."""
    # One more: until the last batch is computed a task may be stopped.
    return lambda read: on_progress((before + read) / (of + 1))


def in_words(figures: Mapping[str, Figure]) -> str:
    """Return figures for people: `cosine_text 0.31 (0.28 to 0.35), ...`."""
    return ", ".join(f"{name} {figure.words()}" for name, figure in figures.items())
