"""Checks of config fields: every message names the field, its value and the remedy."""

from __future__ import annotations

import math


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise ValueError `name=value remedy` unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} {remedy}")


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError unless the named fields are greater than 0 and finite."""
    for name in names:
        value = getattr(config, name)
        positive = value > 0 and math.isfinite(value)
        require(positive, f"{type(config).__name__}.{name}", value, "must be greater than 0 and finite")


def require_fraction(config: object, *names: str) -> None:
    """Raise ValueError unless the named fields lie in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value < 1.0, f"{type(config).__name__}.{name}", value, "must lie in [0, 1)")
