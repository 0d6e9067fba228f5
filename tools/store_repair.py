"""Forget what is damaged, so that the launchers make it again: the writing half of `tools/verify_store.py`.

Invariant: records go before DONE. Killed in between, the run still counts as done, and verification finds the missing
records; the other way round the last step would join records whose files are damaged and call the store finished.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from dalle2_video.config_io import from_dict
from dalle2_video.data.celebv_text import fingerprint, scan
from dalle2_video.data.verification_tables import Damage
from dalle2_video.data_config import DataConfig
from experiments import files
from experiments.registry import HOME_VARIABLE, Registry, default_home
from experiments.run import Run
from launch.arguments import load_recipe, override_flags
from launch.parents import IMPORT_COMMAND, needed_parts
from launch.stages import STAGES
from slurm import run_state


def task_file(run: Run, task: int) -> Path:
    """Return where an array run records a task."""
    return run.task_file(task)


def children_of(run: Run, stage: str | None = None) -> list[Run]:
    """Return the runs, of one stage or of all, that have this preprocess run as a parent."""
    return [
        child
        for child in _registry_of(run).runs(stage)
        if (parent := child.spec.parents.get("preprocess")) is not None and parent.id == run.spec.id
    ]


def finished_embeddings(run: Run) -> dict[str, Run]:
    """Return the finished embed runs of a preprocess run by the name of their embeddings."""
    return {done["embeddings"]: child for child in children_of(run, "embed") if (done := child.done()) is not None}


def _registry_of(run: Run) -> Registry:
    return Registry(run.folder.parents[2])


def repair(run: Run, damages: Sequence[Damage], data_root: Path | None = None) -> list[str]:
    """Remove the records of what is damaged; return the commands that make it again, in order.

    data_root: where the data set lies today; None: where it lay when the run was created. Raises ValueError, before
    anything is removed, where nothing can make it again.
    """
    damages = [damage for damage in damages if damage.redo != "nothing"]
    if not damages:
        raise ValueError("no repair helps: every file of the store is sound; make the runs named above again")
    makers = {"": run} | finished_embeddings(run)
    by_maker: dict[str, list[Damage]] = {}
    for damage in damages:
        if damage.embeddings not in makers:
            raise ValueError(
                f"{damage.file}: no finished embed run in the registry made these embeddings; remove their folder, or "
                "finish that run: python launch/embed.py"
            )
        by_maker.setdefault(damage.embeddings, []).append(damage)
    if "" in by_maker:
        _check_data_is_there(run, data_root)
    affected = [makers[name] for name in sorted(by_maker)]
    commands = [_command(maker, data_root) for maker in affected]
    for name, of_maker in by_maker.items():
        _forget(makers[name], of_maker)
    return [_with_retry(maker, command) for maker, command in zip(affected, commands, strict=True)]


def _check_data_is_there(run: Run, data_root: Path | None) -> None:
    """Raise ValueError unless the files that the run was made of are still there."""
    if IMPORT_COMMAND in run.spec.inputs:
        from tools import import_h5  # loads HDF5, which no other repair needs

        try:
            makes = import_h5.spec_of(run.spec.inputs[IMPORT_COMMAND])
        except (OSError, ValueError) as error:
            raise ValueError(f"{run.name} cannot be imported again, so it cannot be repaired: {error}") from error
        if makes.id != run.spec.id:
            raise ValueError(
                f"{run.spec.inputs['videos']} or its text has changed since {run.name} was made of it, so it cannot be "
                "repaired; bring the old files back, or import anew: python tools/import_h5.py"
            )
        return
    root = data_root or Path(run.spec.inputs["data_root"])
    if fingerprint(scan(root, from_dict(DataConfig, run.spec.config["data"]))) != run.spec.source:
        raise ValueError(
            f"{root} no longer holds the clips that {run.name} was made of, so it cannot be repaired; bring them "
            "back, or preprocess anew: python launch/preprocess.py"
        )


def _forget(maker: Run, damages: Sequence[Damage]) -> None:
    for file in sorted({damage.file for damage in damages if damage.redo == "remove"}):
        if file.exists():
            file.unlink()
            files.fsync_folder(file.parent)
    tasks = [damage.task for damage in damages if damage.redo == "task" and damage.task is not None]
    maker.forget_tasks(tasks, preparation=any(damage.redo == "prepare" for damage in damages))


def _command(maker: Run, data_root: Path | None) -> str:
    """Return the command that goes on with a run, with all that differs from its recipe."""
    home = _registry_of(maker).home
    prefix = "" if home == default_home() else f"{HOME_VARIABLE}={shlex.quote(os.fspath(home))} "
    spec, info = maker.spec, STAGES[maker.spec.stage]
    if IMPORT_COMMAND in spec.inputs:
        return prefix + spec.inputs[IMPORT_COMMAND]
    recipe = load_recipe(spec.recipe)
    config = dict(spec.config)
    for parent in spec.parents.values():
        config |= _registry_of(maker).find(parent.id, parent.stage).spec.config
    parts = {part: config[part] for part in needed_parts(info)}
    changed = dataclasses.replace(
        recipe,
        **{
            part: from_dict(type(getattr(recipe, part)), value) if isinstance(value, dict) else value
            for part, value in parts.items()
        },
    )
    words = ["python", f"launch/{spec.stage}.py", "--recipe", spec.recipe]
    words += override_flags(recipe, changed, needed_parts(info))
    if "data_root" in spec.inputs:
        words += ["--data-root", str(data_root.absolute()) if data_root else spec.inputs["data_root"]]
    for stage, parent in spec.parents.items():
        words += [f"--parents.{stage.replace('_', '-')}", parent.id]
    return prefix + shlex.join(words)


def _with_retry(maker: Run, command: str) -> str:
    """Add --retry where a launch without it would refuse: the job that made the run cannot be asked about from here.

    An import never refuses.
    """
    if IMPORT_COMMAND in maker.spec.inputs:
        return command
    refused = run_state.decision(maker, maker.intents(), retry=False).action in ("unknown", "poisoned")
    return f"{command} --retry" if refused else command
