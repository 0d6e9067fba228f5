"""The evaluation of a run that is named: `launch/evaluate.py --of ID`, and of a checkpoint for `--watch`.

What it takes beside the run (store, CLIP, captions) is what that run was made with, so that no recipe has to be given.
"""

from __future__ import annotations

import shlex
from typing import Any

from dalle2_video.config_io import from_dict
from dalle2_video.data_config import CaptionConfig, DataConfig
from dalle2_video.evaluation import feature_files
from experiments import files, identity, judged, kept_checkpoint
from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Commit, Run, RunSpec
from launch.arguments import Arguments
from launch.proposal import MANIFEST, Proposal, plain

_NOT_READ = ("--captions.", "--data.", "--clip.", "--augment.", "--no-captions.")


def propose(registry: Registry, arguments: Arguments, target: Run, commit: Commit | None = None) -> Proposal:
    """Return the evaluation of a run, or of a checkpoint of one that is not finished.

    Raises ValueError with the remedy where there can be none, FileNotFoundError where the checkpoint is gone.
    """
    if target.stage not in judged.JUDGED:
        raise ValueError(f"{target.name} cannot be judged; of these stages runs can: {', '.join(judged.JUDGED)}")
    config = arguments.recipe.evaluate
    config.check_target(target.stage)
    if words := [word for word in shlex.split(arguments.typed) if word.startswith(_NOT_READ)]:
        raise ValueError(f"{words[0]}: a run that is named is judged with what it was made with; leave this out")
    if commit is None and not target.is_done():
        raise ValueError(f"{target.name} is not finished; --watch {target.id} judges its checkpoints")
    pins = _measured_with(registry, arguments, target)
    pins[target.stage] = target.as_parent() if commit is None else kept_checkpoint.as_parent(target, commit)
    store = registry.find(pins["preprocess"].id, "preprocess")
    clip = registry.find(pins["clip"].id, "clip")
    parts: dict[str, Any] = {
        "seed": arguments.recipe.seed,
        "captions": from_dict(CaptionConfig, clip.spec.config["captions"]),
        "evaluate": feature_files.resolved(config),
    }
    num_clips = len(files.read_json(store.folder / MANIFEST) or ())
    pins = {stage: pins[stage] for stage in ("preprocess", "clip", *judged.JUDGED) if stage in pins}
    return Proposal(
        spec=RunSpec(
            stage=judged.STAGE,
            recipe=target.spec.recipe,
            id=identity.run_id(stage=judged.STAGE, config=parts, source=None, parents=pins),
            config=plain(parts),
            source=None,
            parents=pins,
            inputs=feature_files.files_of(config),
        ),
        num_tasks=-(-num_clips // from_dict(DataConfig, store.spec.config["data"]).clips_per_shard),
        num_clips=num_clips,
        manifest=None,
        notes=[],
    )


def _measured_with(registry: Registry, arguments: Arguments, target: Run) -> dict[str, Parent]:
    """Return the store and the CLIP that a run is judged with, pinned."""
    named = arguments.parents
    if "preprocess" in named:
        raise ValueError(f"--parents.preprocess {named['preprocess']}: the store is that of the CLIP; leave it out")
    if target.stage == "clip":
        if "clip" in named:
            raise ValueError(f"--parents.clip {named['clip']}: {target.name} is a CLIP itself; leave it out")
        return {"preprocess": target.spec.parents["preprocess"]}
    clip = registry.find(target.spec.parents["clip"].id, "clip")
    if "clip" in named and target.stage != "sample":
        raise ValueError(f"--parents.clip {named['clip']}: {target.name} knows its own CLIP alone; leave it out")
    # Videos may be judged by a CLIP that had no part in making them.
    judge = registry.find(named["clip"], "clip") if "clip" in named else clip
    if judge.spec.parents["preprocess"] != clip.spec.parents["preprocess"]:
        raise ValueError(f"--parents.clip {named['clip']}: {judge.name} was trained on another store than {clip.name}")
    if not judge.is_done():
        raise ValueError(f"{judge.name} is not finished; go on with it first")
    return {"preprocess": judge.spec.parents["preprocess"], "clip": judge.as_parent()}
