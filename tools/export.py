"""Make one folder of a whole chain, to share it: weights, configs, how it samples, and a model card.

    python tools/export.py SAMPLE_RUN --out exported
    python tools/export.py PRIOR DECODER [TEMPORAL_SR] [SPATIAL_SR] --out exported     # runs of one CLIP
    python tools/export.py SAMPLE_RUN --out exported --license cc-by-nc-4.0 --title "Faces 64"

The folder is laid out as Hugging Face's are (README.md with metadata, model_index.json, a folder a stage) and is all
that `dalle2_video.generation.VideoPipeline.from_export` needs. It holds no clip and no caption; CLIP's tokenizer was
trained on the captions and holds their words.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from dalle2_video.chain_folder import INDEX
from experiments import files
from experiments.registry import Registry, default_home
from launch.submit import guarded
from tools.model_card import card
from tools.shared_chain import Chain, chain_of, index


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export a finished chain."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A sample run, or the chain's own runs: prior, decoder and super-resolution."""
    out: Path
    """Folder to make; must not exist."""
    license: str = "unknown"
    """Licence of the weights, as Hugging Face names it (cc-by-nc-4.0, apache-2.0, other). Whoever trained on data has
    to know what its terms allow."""
    title: str = ""
    """Name of the model; default: the recipe's."""


def main(arguments: Arguments) -> int:
    """Make the folder; return the exit code."""
    registry = Registry(default_home())
    chain = chain_of(registry, arguments.ids)
    out = arguments.out.absolute()
    if out.exists():
        raise ValueError(f"--out {out} exists; give another folder, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it")
    staged = files.staging_folder(out.parent)
    try:
        _write(staged, registry, chain, arguments)
        files.publish(staged, out)  # whole or not at all
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    print(f"{out}: {', '.join(chain.runs)}")
    print(f"from dalle2_video.generation import VideoPipeline; VideoPipeline.from_export({str(out)!r})")
    return 0


def _write(folder: Path, registry: Registry, chain: Chain, arguments: Arguments) -> None:
    for stage, run in chain.runs.items():
        shutil.copytree(run.folder / "export", folder / stage)
    (folder / INDEX).write_bytes(files.encode(index(chain)))
    text = card(registry, chain, license=arguments.license, title=arguments.title or chain.recipe)
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Arguments, description=__doc__))))
