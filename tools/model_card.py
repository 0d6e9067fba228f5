"""The model card of an exported chain: what it is, on what it was trained, its figures, its lineage, its limits.

Hugging Face reads the block at its beginning. What people give, the title and the licence, cannot become markup.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors import safe_open

from experiments import files
from experiments.judged import judgements
from experiments.registry import Registry
from experiments.run import Run
from tools.shared_chain import Chain, index

_WHAT = {
    "clip": "text and video to one embedding",
    "prior": "text to a video's embedding",
    "decoder": "embedding and text to a small video",
    "temporal_sr": "more frames",
    "spatial_sr": "more pixels",
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_USE = """```python
from dalle2_video.generation import VideoPipeline
pipeline = VideoPipeline.from_export("this folder")
pipeline.save("video.mp4", pipeline.generate(["a text as in the training data"])[0])
```"""


def card(registry: Registry, chain: Chain, *, license: str, title: str) -> str:
    """Return the text of README.md. Raises ValueError where the licence is no identifier."""
    if not _LICENSE.fullmatch(license):
        raise ValueError(f"--license {license!r}: write it as Hugging Face names it, such as cc-by-nc-4.0 or other")
    head = ["---", f"license: {license}", "library_name: dalle2-video", "pipeline_tag: text-to-video"]
    head += ["tags: [text-to-video, diffusion, dalle2-video]", "---"]
    store = registry.find(chain.store.id, "preprocess")
    figures = list(_figures(registry, chain))
    parts = [
        "\n".join(head),
        f"# {plain(title)}",
        "Text to video by a CLIP for videos, a diffusion prior, a video decoder and super-resolution, trained and "
        "exported with DALLE2-video. Weights are safetensors; nothing in this folder is executed or unpickled.",
        _USE,
        f"Licence of the weights: {license}. The terms of the training data hold too.",
        "## Stages",
        _table(("stage", "does", "parameters", "steps", "run", "digest"), _stages(chain)),
        "## Data",
        "\n".join(f"* {line}" for line in _data(store)),
        "## Figures",
        _table(("of", "figure", "value", "95 % interval"), figures) if figures else "None are on record.",
        "## Lineage",
        _table(("run", "made from", "digest of that"), _lineage(chain)),
        "## Sampling",
        "Unless `generate` is given other options:",
        f"```json\n{json.dumps(index(chain)['sample'], indent=1)}\n```",
        "## Limits",
        "It makes what its data show, with what these favour or leave out. Its videos are synthetic; the tags of each "
        "mp4 file of a sample run say by what it was made.",
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return a text as one line of Markdown without markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~$-])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;")


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _stages(chain: Chain) -> Iterator[tuple[object, ...]]:
    for stage, run in chain.runs.items():
        parameters = _parameters(run.folder / "export" / "model.safetensors")
        steps = run.spec.config[stage]["optim"]["steps"]
        digest = (run.done() or {})["digest"][:16]
        yield stage, _WHAT[stage], f"{parameters:,}", f"{steps:,}", run.spec.id, digest


def _parameters(weights: Path) -> int:
    """Count the numbers in a safetensors file by its header alone."""
    with safe_open(weights, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping


def _data(store: Run) -> Iterator[str]:
    found = files.read_json(store.folder / "store" / "statistics.json") or {}
    data = store.spec.config["data"]
    yield f"Run `{store.spec.id}` of `{store.spec.recipe}`, digest `{(store.done() or {})['digest'][:16]}`."
    if found:
        yield (
            f"{found['train_clips']:,} clips to train on, {found['val_clips']:,} held out, {found['bad']:,} unusable; "
            f"{found['source_hours']:.2f} hours."
        )
        yield f"Captions: {', '.join(f'{kind} {number:,}' for kind, number in found['captions'].items()) or 'none'}."
    yield f"Frames of {', '.join(map(str, data['frame_sizes']))} px at {data['fps']:g} a second."
    yield "No clip and no caption is in this folder. CLIP's tokenizer was made from the captions and holds their words."


def _figures(registry: Registry, chain: Chain) -> Iterator[tuple[object, ...]]:
    """Yield the newest validation's figures and what evaluations of the finished runs found."""
    for stage, run in chain.runs.items():
        newest = {
            name: value for record in run.metrics() if record.get("split") == "val" for name, value in record.items()
        }
        for name in sorted(newest.keys() - {"split", "time", "step"}):
            yield f"{stage} `{run.spec.id}`, validation", name, f"{newest[name]:.4g}", ""
        for judged in judgements(registry, run):
            for name, figure in judged.figures() if judged.step is None else ():
                interval = f"{figure['low']:.4g} to {figure['high']:.4g}" if "low" in figure else ""
                yield f"{stage}, evaluation `{judged.evaluation.spec.id}`", name, f"{figure['value']:.4g}", interval


def _lineage(chain: Chain) -> Iterator[tuple[object, ...]]:
    for stage, run in chain.runs.items():
        for role, pin in run.spec.parents.items():
            yield f"{stage} `{run.spec.id}`", f"{role} `{pin.id}`", f"`{pin.digest[:16]}`"
