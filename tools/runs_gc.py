"""`tools/runs.py gc`: removes what nobody needs, or says what it would remove."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from experiments.registry import Registry
from tools import registry_garbage

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gc`."""
    parser.add_argument("--dry-run", action="store_true", help="say what would go and how large it is; change nothing")
    parser.add_argument(
        "--older-than", type=float, default=0.0, metavar="DAYS", help="leave what changed since alone (default: 0)"
    )
    parser.add_argument(
        "--runs",
        action="store_true",
        help="also whole runs that failed or were never launched and have no checkpoint, no finished task, no child",
    )


def collect(console: Console, registry: Registry, options: argparse.Namespace) -> int:
    """Remove garbage and say what; return 1 where something of it could not be removed."""
    if options.older_than < 0:
        raise ValueError(f"--older-than {options.older_than} must be 0 or more days")
    older_than_s = options.older_than * registry_garbage.DAY_S
    found = registry_garbage.find(registry, older_than_s=older_than_s, whole_runs=options.runs)
    total = failures = 0
    for garbage in found:
        shown = f"{garbage.path.relative_to(registry.home)}: {garbage.why}, {size(garbage.bytes)}"
        if options.dry_run:
            console.print(f"would remove {shown}", soft_wrap=True, markup=False)
            total += garbage.bytes
            continue
        try:
            removed = registry_garbage.remove(garbage)
        except OSError as error:
            failures += 1
            print(f"could not remove {shown}: {error.strerror} (its owner can)", file=sys.stderr)
            continue
        console.print(f"{'removed' if removed else 'launched meanwhile, kept'} {shown}", soft_wrap=True, markup=False)
        total += garbage.bytes if removed else 0
    console.print(f"{'would free' if options.dry_run else 'freed'} {size(total)}")
    return 1 if failures else 0


def size(number: float) -> str:
    """Return a number of bytes in the unit that a person would choose."""
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {_UNITS[-1]}"
