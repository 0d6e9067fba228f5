"""Damaged files for the fuzzing of parsers: arbitrary bytes and JSON, and valid files of which a little was changed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
DEEP = b"[" * 100_000
"""Nested deeper than Python's parser goes."""
EXTREME = st.sampled_from([10**400, -(10**30), 1e308, functools.reduce(lambda inner, _: [inner], range(400), 0)])
"""Numbers that no fixed size holds, and JSON that is nested nearly as deep as Python's stack goes."""
NO_JSON = st.binary(max_size=40) | st.just(DEEP)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a file with up to four bytes changed, cut at its end, or something else altogether."""
    edits = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def edited(changes: list[tuple[int, int]]) -> bytes:
        content = bytearray(whole)
        for place, value in changes:
            content[place] = value
        return bytes(content)

    return edits.map(edited) | st.integers(0, len(whole) - 1).map(lambda end: whole[:end]) | st.binary(max_size=600)


def replaced(whole: Any) -> st.SearchStrategy[Any]:
    """Return JSON of which one value, at any depth, is another one or is not there."""

    def at(place: tuple[Any, ...], value: Any, *, gone: bool) -> Any:
        content = json.loads(json.dumps(whole))
        if not place:
            return value
        holder = functools.reduce(lambda inner, key: inner[key], place[:-1], content)
        if gone:
            del holder[place[-1]]
        else:
            holder[place[-1]] = value
        return content

    return st.builds(at, st.sampled_from(list(_places(whole))), JSON | EXTREME, gone=st.booleans())


def _places(content: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [here, *(place for key, value in items for place in _places(value, (*here, key)))]


def holds(read: Callable[[], object], *named: str, errors: tuple[type[Exception], ...] = (ValueError,)) -> None:
    """Read; the error that may come is one of `errors` and names what it is about."""
    try:
        read()
    except errors as error:
        assert not isinstance(error, json.JSONDecodeError | UnicodeError) and all(name in str(error) for name in named)


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()
