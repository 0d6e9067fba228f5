"""Is this machine fit for runs, and the registry's home fit to keep them? One line a check, and the remedy.

    python tools/doctor.py [--json]

Ends with exit code 1 where there is a problem; a warning is no problem. A check that fails by itself is one too, and
hides none of the others. Makes and removes a hidden folder in the home, changes nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.markup import escape

from experiments.registry import default_home
from launch.console import Console
from tools import doctor_machine, doctor_registry
from tools.doctor_finding import Finding, Level, problem

_COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}
Check = Callable[[], Finding | Iterator[Finding]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/doctor.py", description="Check this machine and the registry's home.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)
    home = default_home()
    of_home: list[Check] = [functools.partial(check, home) for check in doctor_registry.CHECKS]
    findings = examine(functools.partial(doctor_registry.writable, home))
    if not home.is_dir():
        of_home = []  # said already
    findings += [finding for check in [*of_home, *doctor_machine.CHECKS] for finding in examine(check)]
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def examine(check: Check) -> list[Finding]:
    """Return a check's findings; where the check itself fails, that."""
    name = getattr(check, "func", check).__name__.replace("_", " ")
    found: list[Finding] = []
    try:
        answer = check()
        for finding in [answer] if isinstance(answer, Finding) else answer:
            found.append(finding)
    except Exception as error:  # whatever it is, the other checks shall be seen
        found.append(problem(name, f"could not be checked: {type(error).__name__}: {error}", "mend that first"))
    return found


def _show(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level:<7}[/]"
        console.print(f"{level}  {finding.check:<{width}}  {escape(finding.says)}")
        if finding.remedy:
            console.print(f"{'':{9 + width}}  -> {escape(finding.remedy)}")


if __name__ == "__main__":
    sys.exit(main())
