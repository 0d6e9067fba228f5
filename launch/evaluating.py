"""The flow of `launch/evaluate.py`: an evaluation of a recipe's CLIP, of a run that is named, or of each checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.registry import Registry, default_home
from launch import submit, watching
from launch.arguments import Arguments, parse
from launch.stages import STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    return submit.guarded(lambda: _run(parse(STAGES["evaluate"], typed)))


def _run(arguments: Arguments) -> int:
    if not arguments.judged.watch:
        return submit.launch(STAGES["evaluate"], arguments)
    if arguments.options.dry_run:
        raise ValueError("--watch has no dry run; --of ID --dry-run shows an evaluation of a finished run")
    try:
        return watching.watch(Registry(default_home()), arguments)
    except KeyboardInterrupt:
        return submit.INTERRUPTED
