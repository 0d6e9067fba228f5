"""Do generated videos show what their prompts say? Colour, shape or digit, and direction of motion.

    python tools/bench/alignment.py --samples runs/sample/tiny-1a2b3c4d5e --data data/sample --json alignment.json
    python tools/bench/alignment.py --train /tmp/motion --json alignment.json

The first judges videos that are there: a folder with mp4 files and a `samples.json`, a list of {"file": "0000.mp4",
"prompt": "...", "seed": 0}. The second trains a chain on captioned motion first (recipe `motion`: 90 minutes on two
cores), samples it with prompts of combinations of colour and object that it was trained on and of some that it never
saw, whole, by the best of 8 and with parts taken away, and judges all of that (13 minutes more). Stop it anywhere and
call it again: it goes on.
How videos are judged: `alignment_judges`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from tools.bench.alignment_judges import (
    FIGURES,
    Score,
    generated_scores,
    identities_of,
    read_clip,
    read_samples,
    read_truth,
    real_scores,
)

_QUICK_CLIPS = 96
_SHEET_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure whether generated clips show the colour, object and direction that their prompts state."""

    samples: Path | None = None
    """Run folder of the generation, or any folder with samples.json and its mp4 files."""
    data: Path | None = None
    """Root of the sample data that the system learnt from; with samples."""
    train: Path | None = None
    """Instead of samples: folder for data and runs of a chain that is trained first."""
    recipe: str = "motion"
    """Recipe to train."""
    clips: int = 8000
    """Clips to train on; 1 or more."""
    prompts: int = 48
    """Prompts of combinations trained on, and so many more of combinations held out; 1 or more."""
    pipeline: str = "--ranks-per-node 2 --zero-stage 1"
    """Further options of launch/pipeline.py for the training: how it runs on this machine."""
    size: int = 16
    """Side in pixels at which clips are judged; 8 or more."""
    frames: int = 16
    """Frames judged from the start of each clip; 2 or more."""
    fps: float = 8.0
    """Rate that the real clips are brought to: the generated clips' own; greater than 0."""
    quick: bool = False
    """Use only the first 96 real clips."""
    json: Path | None = None
    """File for the flat object of figures."""
    sheet: Path | None = None
    """With train: picture of the first videos of both kinds of prompts."""


class Judge:
    """Judges videos at one size and rate, by what the real clips of a data set are."""

    def __init__(self, arguments: Arguments, data: Path, console: Console) -> None:
        """data: root of sample data."""
        paths, facts = read_truth(data)
        if arguments.quick:
            paths, facts = paths[:_QUICK_CLIPS], facts[:_QUICK_CLIPS]
        self.size, self.frames, self.console = arguments.size, arguments.frames, console
        videos = [
            read_clip(path, size=self.size, frames=self.frames, fps=arguments.fps)
            for path in track(paths, "real clips", console=console)
        ]
        self.real: dict[str, Score]
        self.classifier: LogisticRegression
        self.real, self.classifier = real_scores(videos, facts, identities_of(paths))

    def read(self, paths: Sequence[Path]) -> list[np.ndarray]:
        """Read generated videos."""
        return [
            read_clip(path, size=self.size, frames=self.frames)
            for path in track(paths, "generated", console=self.console)
        ]


def main(arguments: Arguments) -> None:
    """Measure and print. Raises ValueError with a remedy if the input is not what it should be."""
    if arguments.size < 8 or arguments.frames < 2 or arguments.fps <= 0:
        raise ValueError("--size must be 8 or more, --frames 2 or more, --fps greater than 0")
    if (arguments.train is None) == (arguments.samples is None):
        raise ValueError("give one of: --samples FOLDER --data ROOT, --train FOLDER")
    figures = judge_samples(arguments) if arguments.train is None else train_and_judge(arguments, arguments.train)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def judge_samples(arguments: Arguments) -> dict[str, float]:
    """Judge a folder of samples; return the flat object."""
    if arguments.data is None:
        raise ValueError("--samples needs the sample data that the system learnt from: --data ROOT")
    assert arguments.samples is not None
    samples = read_samples(arguments.samples)
    judge = Judge(arguments, arguments.data, Console(stderr=True))
    made = judge.read([path for path, _ in samples])
    generated = generated_scores(made, [wanted for _, wanted in samples], judge.classifier)
    Console().print(_table(judge.real, {"generated": generated}))
    return flat(judge.real, generated)


def train_and_judge(arguments: Arguments, folder: Path) -> dict[str, float]:
    """Train a chain where it is not trained yet, sample it in all ways and judge; return the flat object.

    `colour`, `shape` and `direction` are the whole system's for the combinations it was trained on.
    """
    # what follows imports the suite, which judging a folder of samples can do without
    from dalle2_video.generation.video_file import contact_sheet, read_mp4
    from tools.bench.alignment_chain import FULL, SETS, VARIANTS, Chain, all_prompts

    chain = Chain(
        folder=folder.resolve(),
        recipe=arguments.recipe,
        clips=arguments.clips,
        flags=tuple(arguments.pipeline.split()),
    )
    chain.train()
    texts = all_prompts(arguments.prompts)
    runs = {variant: chain.sample(variant, [text for name in SETS for text in texts[name]]) for variant in VARIANTS}
    judge = Judge(arguments, chain.data, Console(stderr=True))
    rows, figures = {}, chain.figures()
    for variant, run in runs.items():
        samples = read_samples(run)
        made = judge.read([path for path, _ in samples])
        for place, name in enumerate(SETS):
            mine = slice(place * arguments.prompts, (place + 1) * arguments.prompts)
            scores = generated_scores(made[mine], [wanted for _, wanted in samples[mine]], judge.classifier)
            rows[f"{variant.name}, {name}".replace("_", " ")] = scores
            if variant == FULL and name == "trained":
                figures |= flat(judge.real, scores)
            else:
                figures |= {f"{variant.name}_{name}_{figure}": scores[figure].share for figure in FIGURES}
    Console().print(_table(judge.real, rows))
    Console().print({name: round(value, 3) for name, value in figures.items() if name[:5] in ("prior", "retri")})
    if arguments.sheet is not None:
        shown = [place * arguments.prompts + row for place in range(len(SETS)) for row in range(_SHEET_ROWS)]
        paths = [read_samples(runs[FULL])[row][0] for row in shown]
        captions = [text for name in SETS for text in texts[name][:_SHEET_ROWS]]
        contact_sheet(arguments.sheet, [read_mp4(path) for path in paths], captions, side=48)
    return figures


def flat(real: dict[str, Score], generated: dict[str, Score]) -> dict[str, float]:
    """Return the flat object of `--json`: per figure the share, its interval, n, chance and the real clips' share."""
    result: dict[str, float] = {}
    for name in FIGURES:
        low, high = generated[name].interval()
        result |= {
            name: generated[name].share,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_n": generated[name].count,
            f"{name}_chance": generated[name].chance,
            f"{name}_real": real[name].share,
        }
    return result


def _table(real: dict[str, Score], generated: dict[str, dict[str, Score]]) -> Table:
    table = Table("videos", "figure", "real clips", "generated", "95 % interval", "chance", "n")
    for row, scores in generated.items():
        for name in FIGURES:
            low, high = scores[name].interval()
            table.add_row(
                row,
                name,
                f"{real[name].share:.1%}",
                f"{scores[name].share:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{scores[name].chance:.1%}",
                str(scores[name].count),
            )
    return table


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
