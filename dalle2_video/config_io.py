"""Configs as plain JSON types and back."""

from __future__ import annotations

from typing import TypeVar

import cattrs
from cattrs.v import format_exception


def to_dict(config: object) -> dict:
    """Return a config dataclass as plain JSON types."""
    return cattrs.Converter(unstruct_collection_overrides={tuple: list}).unstructure(config)


ConfigT = TypeVar("ConfigT")


def from_dict(cls: type[ConfigT], values: dict) -> ConfigT:
    """Build a config from what `to_dict` gave. Raises ValueError naming fields that are unknown or missing."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    if not isinstance(values, dict):
        raise ValueError(f"stored {cls.__name__}: wanted named fields, got {type(values).__name__}")
    try:
        return converter.structure(values, cls)
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, format_exception=_explain)
        raise ValueError(f"stored {cls.__name__}: " + "; ".join(reasons)) from error


def _explain(error: BaseException, kind: type | None) -> str:
    # cattrs says "invalid value" of all ValueErrors; those of the dataclasses above say what is wrong and what to do.
    return str(error) if type(error) is ValueError else format_exception(error, kind)
