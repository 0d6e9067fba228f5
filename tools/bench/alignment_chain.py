"""Train a chain on captioned motion and sample it in several ways, through the launchers that a user types.

One folder holds the data set and the registry; the same call again does only what is missing, so a killed
one goes on. Training data lacks one colour of each object (`combinations="trained"`), and half of the prompts ask for
just these.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.registry import Registry
from tools.sample_data.captions import Combinations, prompts

REPOSITORY = Path(__file__).resolve().parents[2]
SETS: tuple[Combinations, ...] = ("trained", "held_out")
PROMPT_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to sample the trained chain."""

    name: str
    flags: tuple[str, ...] = ()
    """Of `launch/sample.py`."""


FULL = Variant(name="full")
VARIANTS = (
    FULL,
    Variant(name="best_of_8", flags=("--sample.candidates", "8")),
    Variant(name="without_prior", flags=("--sample.embedding", "text")),
    Variant(name="without_guidance", flags=("--sample.decoder-guidance", "1")),
    Variant(name="fixed_variance", flags=("--sample.decoder.method", "ddpm", "--sample.decoder.variance", "small")),
    Variant(name="learned_variance", flags=("--sample.decoder.method", "ddpm", "--sample.decoder.variance", "learned")),
)
"""The system as it is, with the best of 8 by its own CLIP, and with one part of it taken away or exchanged."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain in a folder."""

    folder: Path
    recipe: str
    clips: int
    flags: tuple[str, ...] = ()
    """More options of `launch/pipeline.py`: how it runs, such as --ranks-per-node 2."""

    @property
    def data(self) -> Path:
        """The data set."""
        return self.folder / "data"

    @property
    def home(self) -> Path:
        """The registry."""
        return self.folder / "home"

    def train(self) -> None:
        """Make the data and train all stages. Raises ValueError where a command fails."""
        data = ["--out", str(self.data), "--clips", str(self.clips), "--combinations", "trained"]
        self._call("tools/make_sample_data.py", *data)
        place = ["--recipe", self.recipe, "--data-root", str(self.data), "--wait", "yes"]
        self._call("launch/pipeline.py", *place, "--also", "evaluate", *self.flags)

    def sample(self, variant: Variant, texts: Sequence[str]) -> Path:
        """Make a video of each prompt; return the folder of its run."""
        said = self._call(
            "launch/sample.py", "--recipe", self.recipe, "--wait", "yes", *variant.flags, "--sample.prompts", *texts
        )
        name = re.findall(r"\bsample/(\S+-[0-9a-f]{10})\b", said)
        if not name:
            raise ValueError(f"launch/sample.py named no run: {said[-300:]!r}")
        return self.home / "runs" / "sample" / name[-1]

    def figures(self) -> dict[str, float]:
        """Return retrieval of CLIP on clips it has not seen, and the prior's cosines at its last validation."""
        registry = Registry(self.home)
        evaluated = max(registry.runs("evaluate"), key=lambda run: run.spec.created)
        found = json.loads((evaluated.folder / "evaluation" / "evaluation.json").read_text())
        result = {"retrieval_top1": found["text_to_video"]["top1"]["value"]}
        prior = max((run for run in registry.runs("prior") if run.is_done()), key=lambda run: run.spec.created)
        judged = [record for record in prior.metrics() if "cosine_true" in record]
        return result | {f"prior_{name}": value for name, value in judged[-1].items() if name.startswith("cosine_")}

    def _call(self, script: str, *arguments: str) -> str:
        """Run one of the repository's commands; return what it printed, which is shown as it comes too."""
        print(f"$ {script} {' '.join(arguments)}"[:160], file=sys.stderr, flush=True)
        command = [sys.executable, script, *arguments]
        environment = os.environ | {"DALLE2_VIDEO_HOME": str(self.home)}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(line, end="", file=sys.stderr, flush=True)
        if process.wait():
            raise ValueError(
                f"{script} ended with code {process.returncode}; mend it, then give the same command again"
            )
        return "".join(lines)


def all_prompts(count: int) -> dict[Combinations, list[str]]:
    """Return `count` prompts of each of SETS."""
    return {combinations: prompts(count, PROMPT_SEED, combinations) for combinations in SETS}
