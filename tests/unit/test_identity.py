"""Identity: the same science is the same run, other science another one, and nothing else counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments import identity
from experiments.identity import Parent, canonical_json, differences, run_id, without_defaults
from launch.arguments import load_recipe


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    rate: float = 0.5
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


@dataclass(frozen=True, kw_only=True)
class OuterWithNewField(Outer):
    added_later: str = "as before"


def identify(config: Any, /, **changes: Any) -> str:
    return run_id(**({"stage": "clip", "config": {"clip": config}, "source": None, "parents": {}} | changes))


def test_an_id_is_ten_hexadecimal_digits_and_stays_what_it_was_in_earlier_versions() -> None:
    # A change of this id orphans every run that users have: it must come with a new identity.SCHEMA.
    assert identify(Outer(size=3, inner=Inner(names=("a",)))) == "8b3c75b906"


def test_a_new_field_with_a_default_leaves_old_ids_alone() -> None:
    assert identify(OuterWithNewField(size=3)) == identify(Outer(size=3))
    assert identify(OuterWithNewField(size=3, added_later="new")) != identify(Outer(size=3))


def test_a_field_without_a_default_counts_whatever_its_value() -> None:
    assert without_defaults(Outer(size=0)) == {"size": 0}


@pytest.mark.parametrize(
    "changed",
    [
        Outer(size=4),
        Outer(size=3, rate=0.25),
        Outer(size=3, inner=Inner(width=5)),
        Outer(size=3, inner=Inner(names=("a",))),
        Outer(size=3, maybe=Inner()),
    ],
)
def test_every_changed_field_gives_another_id(changed: Outer) -> None:
    assert identify(changed) != identify(Outer(size=3))


def test_a_default_is_seen_inside_a_part_that_differs_elsewhere() -> None:
    assert without_defaults(Outer(size=3, inner=Inner(names=("a",)))) == {"size": 3, "inner": {"names": ["a"]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "prior"},
        {"source": "fingerprint"},
        {"parents": {"clip": Parent(stage="clip", id="a", digest="d")}},
        {"config": {"clip": Outer(size=3), "seed": 1}},
    ],
)
def test_stage_source_parents_and_seed_are_part_of_the_id(changes: dict[str, Any]) -> None:
    assert identify(Outer(size=3), **changes) != identify(Outer(size=3))


def test_a_parent_trained_again_to_other_weights_gives_another_id() -> None:
    first, second = (
        identify(Outer(size=3), parents={"clip": Parent(stage="clip", id="a", digest=d)}) for d in ("x", "y")
    )
    assert first != second


def test_the_order_of_fields_is_not_part_of_the_id() -> None:
    assert identify(None, config={"a": 1, "b": 2}) == identify(None, config={"b": 2, "a": 1})


def test_an_id_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from launch.arguments import load_recipe as r; from experiments.identity import run_id as i; "
    code += "print(i(stage='clip', config={'clip': r('tiny').clip}, source=None, parents={}))"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert answers == {identify(load_recipe("tiny").clip)}


def test_canonical_json_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"lr": float("nan")})


def test_differences_name_each_leaf_once_with_both_values() -> None:
    old = {"a": {"b": 1, "same": [1, 2]}, "gone": True}
    new = {"a": {"b": 2, "same": [1, 2]}, "come": {"x": 0}}
    assert list(map(str, differences(old, new))) == [
        "a.b: 1 -> 2",
        "come: (absent) -> {'x': 0}",
        "gone: True -> (absent)",
    ]
    assert differences(old, old) == []


def test_a_digest_is_that_of_the_value_not_of_its_type() -> None:
    assert identity.digest((1, 2)) == identity.digest([1, 2])
    assert identity.digest([1, 2]) != identity.digest([2, 1])
