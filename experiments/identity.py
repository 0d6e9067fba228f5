"""What makes two runs the same run: canonical JSON of the science, hashed.

Fields at their default are left out of the hash, so that a new field with a default leaves old ids alone. The price is
that a changed default would give an old id a new meaning; the full config is therefore stored with the run, and
opening it compares (`drift`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
ID_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A finished run that another run builds on, pinned by the digest of what it produced."""

    stage: str
    id: str
    digest: str
    step: int | None = None
    """Of a checkpoint that is judged or sampled while the run goes on; the digest is then the checkpoint's."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def without_defaults(config: Any) -> Any:
    """Return a dataclass as nested dicts that hold only the fields which differ from their default."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        kept = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.default is not dataclasses.MISSING:
                default = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                default = dataclasses.MISSING
            if default is dataclasses.MISSING or value != default:
                kept[field.name] = without_defaults(value)
        return kept
    if isinstance(config, (list, tuple)):
        return [without_defaults(item) for item in config]
    if isinstance(config, dict):
        return {key: without_defaults(item) for key, item in config.items()}
    return config


def run_id(*, stage: str, config: dict[str, Any], source: str | None, parents: dict[str, Parent]) -> str:
    """Identity of a run.

    config: the recipe's parts that the stage learns from, as dataclasses or plain values; source: fingerprint of files
    outside the registry, if the stage reads any; parents: by role, which is their stage or, of a student's teacher,
    `plan.TEACHER`. The recipe's name is not part of it.
    """
    return digest(
        {
            "schema": SCHEMA,
            "stage": stage,
            "config": without_defaults(config),
            "source": source,
            "parents": {name: [parent.id, parent.digest] for name, parent in parents.items()},
        }
    )[:ID_LENGTH]


class Absent:
    """What a value is that is not there."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A leaf in which two configs differ."""

    path: str
    """Dotted, as on the command line but for dashes."""
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old!r} -> {self.new!r}"


def differences(old: Any, new: Any, path: str = "") -> list[Difference]:
    """Return every leaf in which two plain values differ, ABSENT standing for what one of them lacks."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in differences(
                old.get(key, ABSENT), new.get(key, ABSENT), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if old == new else [Difference(path=path, old=old, new=new)]


def drift(stored: Any, today: Any) -> list[Difference]:
    """Return where a stored config means something else than today's config of the same identity.

    What the stored one lacks is no difference: such a field came later, with a default that leaves older runs alone.
    """
    return [difference for difference in differences(stored, today) if difference.old is not ABSENT]
