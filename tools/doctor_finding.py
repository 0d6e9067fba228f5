"""What a check of `tools/doctor.py` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    check: str
    """What was looked at, in a word or two."""
    level: Level
    says: str
    remedy: str = ""
    """What to do about it; of what is not ok."""


def ok(check: str, says: str) -> Finding:
    """Return that all is well."""
    return Finding(check=check, level="ok", says=says)


def warning(check: str, says: str, remedy: str) -> Finding:
    """Return what may do harm."""
    return Finding(check=check, level="warning", says=says, remedy=remedy)


def problem(check: str, says: str, remedy: str) -> Finding:
    """Return what will do harm."""
    return Finding(check=check, level="problem", says=says, remedy=remedy)
