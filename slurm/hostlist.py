"""Slurm's short form of a list of nodes, `n[1-3,7],login`, as names: pure text, where there is no Slurm to ask too."""

from __future__ import annotations

import itertools
import re

MOST = 10_000
_NUMBER = re.compile(r"[0-9]{1,18}")
_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def expand(text: str) -> list[str]:
    """Return the names in their order: `n[1-3,7],m` → n1, n2, n3, n7, m. What is no list of nodes is one name.

    Leading zeros count (`n[08-10]`), several brackets multiply (`rack[0-1]n[0-3]`), at most 10,000 names are made.
    """
    names: list[str] = []
    for part in _PART.findall(text):
        pieces = _BRACKETS.split(part)  # literal, range, literal, range, ..., literal
        choices = [[piece] if place % 2 == 0 else _numbers(piece) for place, piece in enumerate(pieces)]
        names += ["".join(chosen) for chosen in itertools.islice(itertools.product(*choices), MOST - len(names))]
    return names


def _numbers(ranges: str) -> list[str]:
    """`1-3,07` → 1, 2, 3, 07."""
    found: list[str] = []
    for one in ranges.split(","):
        first, dash, last = one.partition("-")
        if dash and _NUMBER.fullmatch(first) and _NUMBER.fullmatch(last):
            end = min(int(last), int(first) + MOST)
            found += [str(number).zfill(len(first)) for number in range(int(first), end + 1)]
        else:
            found.append(one)
    return found
