"""Which finished runs make a chain, and what the index of its folder says of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from dalle2_video.chain_folder import FORMAT, STAGES, VERSION
from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.digests import folder_digest
from dalle2_video.sample_config import SampleConfig
from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Run

NEEDED = ("clip", "prior", "decoder")
OF_ONE_RUN = frozenset(
    [
        "prompts",
        "prompts_file",
        "split",
        "split_clips",
        "samples_per_prompt",
        "seeds",
        "interpolate",
        "start",
        "also",
        "batches_per_task",
    ]
)
"""Fields of a sample run that are not how the chain samples."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The runs of a chain."""

    runs: dict[str, Run]
    """By stage, in the order in which they work."""
    sample: SampleConfig
    """How it samples."""

    @property
    def recipe(self) -> str:
        """Name of the recipe of its last stage."""
        return next(reversed(self.runs.values())).spec.recipe

    @property
    def store(self) -> Parent:
        """The preprocess run that CLIP, and with it all, was trained on."""
        return self.runs["clip"].spec.parents["preprocess"]


def chain_of(registry: Registry, ids: Sequence[str]) -> Chain:
    """Return the chain of a sample run, or of the stages' runs that are named; ValueError with the remedy."""
    named = [registry.find(given) for given in ids]
    sample = SampleConfig()
    if len(named) == 1 and named[0].spec.stage == "sample":
        spec = named[0].spec
        stored = from_dict(SampleConfig, spec.config["sample"])
        kept = {one.name: getattr(stored, one.name) for one in fields(stored) if one.name not in OF_ONE_RUN}
        sample = SampleConfig(**kept)
        pins = dict(spec.parents)
        for stage, pin in pins.items():
            if pin.step is not None:
                raise ValueError(
                    f"{named[0].name} sampled step {pin.step} of {stage} {pin.id}, whose weights were not kept; "
                    "give a sample run of finished ones"
                )
    else:
        pins = {}
        for run in named:
            if run.spec.stage not in STAGES:
                raise ValueError(f"{run.name} is of no such stage: give a sample run, or runs of {', '.join(STAGES)}")
            if run.spec.stage in pins:
                raise ValueError(f"{run.name}: a second run of stage {run.spec.stage}; give one a stage")
            if run.done() is None:
                raise ValueError(f"{run.name} is not finished; see: python tools/runs.py why {run.spec.id}")
            clip = {"clip": run.spec.parents["clip"]} if "clip" in run.spec.parents else {}
            for stage, pin in (clip | {run.spec.stage: run.as_parent()}).items():
                if pins.setdefault(stage, pin) != pin:
                    raise ValueError(f"{run.name} was made from {stage} {pin.id}, the others from {pins[stage].id}")
    missing = [stage for stage in NEEDED if stage not in pins]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} run among {', '.join(ids)}; name a sample run, or these too")
    runs = {stage: registry.find(pins[stage].id, stage) for stage in STAGES if stage in pins}
    for stage, run in runs.items():
        if folder_digest(run.folder / "export") != pins[stage].digest:
            raise ValueError(f"{run.folder / 'export'} is damaged or was changed: not the digest that was pinned")
    return Chain(runs=runs, sample=sample)


def index(chain: Chain) -> dict[str, Any]:
    """Return the content of model_index.json."""
    store = chain.store
    return {
        "_class_name": "VideoPipeline",
        "format": FORMAT,
        "version": VERSION,
        "recipe": chain.recipe,
        "stages": {
            stage: {
                "run": run.spec.id,
                "digest": (run.done() or {})["digest"],
                "parents": {role: {"run": pin.id, "digest": pin.digest} for role, pin in run.spec.parents.items()},
            }
            for stage, run in chain.runs.items()
        },
        "data": {"run": store.id, "digest": store.digest},
        "sample": {name: value for name, value in to_dict(chain.sample).items() if name not in OF_ONE_RUN},
    }
