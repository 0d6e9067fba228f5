"""Weights of an array's parents: what a finished run exported, or the EMA of the checkpoint that the array keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

from dalle2_video.config_io import from_dict
from experiments import files, kept_checkpoint
from experiments.run import Attempt, Run
from slurm.attempt import parents_of


def export_of(attempt: Attempt, role: str, parent: Run) -> Path:
    """Return the export folder of a parent of the attempt's run, by its role.

    Of a checkpoint the first group to need it makes it. Raises ValueError where the checkpoint was not kept.
    """
    if attempt.run.spec.parents[role].step is None:
        return parent.folder / "export"
    return _export_of_checkpoint(attempt, role, parent)


def _export_of_checkpoint(attempt: Attempt, role: str, trained: Run) -> Path:
    from dalle2_video.models.factory import CONFIG_TYPES, export_files
    from dalle2_video.stages import StageInputs
    from dalle2_video.stages.clip import ClipStage
    from dalle2_video.stages.frozen_clip import FrozenClip
    from dalle2_video.training.commit_export import export_commit

    run = attempt.run
    kept, final = run.folder / kept_checkpoint.CHECKPOINT, run.folder / kept_checkpoint.EXPORT
    if final.exists():
        return final
    if not kept.exists():
        step = run.spec.parents[role].step
        raise ValueError(f"{kept} is not there: the checkpoint of step {step} of {trained.name} was removed meanwhile")
    spec, above = trained.spec, parents_of(trained)
    config = from_dict(CONFIG_TYPES[trained.stage], spec.config[trained.stage])
    if trained.stage == "clip":
        tower = Path(spec.inputs["text_tower"]) if "text_tower" in spec.inputs else None
        store = above["preprocess"].folder / "store"
        inputs = StageInputs(config=config, seed=spec.config["seed"], store=store, text_tower=tower)
        texts = ClipStage(inputs).export_files()
    else:
        clip = FrozenClip(above["clip"].folder / "export")
        texts = export_files(trained.stage, config, clip.dims, fps=clip.fps)
    staged = attempt.stage(run.folder)
    try:
        export_commit(kept, staged, texts)
        files.publish(staged, final)
    except OSError:
        if not final.exists():  # else another group was quicker, with the same bytes
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return final
