"""A run as a command line would make it: its identity, its tasks and how it is to be started. Nothing is written here
but by `create`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle2_video import given_files, text_tower
from dalle2_video.config import Recipe
from dalle2_video.config_io import from_dict
from dalle2_video.data_config import DataConfig
from dalle2_video.sampling_rates import strides_of
from dalle2_video.teaching import check_teacher
from experiments import files, identity
from experiments.identity import Parent
from experiments.plan import TEACHER
from experiments.registry import Registry
from experiments.run import Run, RunSpec
from launch import parents
from launch.arguments import Arguments, teachers_recipe, to_dict_or_value
from launch.stages import STAGES, StageInfo
from launch.start import Order

MANIFEST, NOTES = "manifest.json", "notes.json"
NO_PROMPTS = (
    "--sample.prompts is empty; give one or more: --sample.prompts 'a red circle moving left', or "
    "--sample.prompts-file FILE, or --sample.split val --sample.split-clips 16"
)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A run as it would be created."""

    spec: RunSpec
    num_tasks: int
    """Tasks of an array; 0 for a training."""
    num_clips: int
    """Clips that the tasks share out; 0 where their work is not clips."""
    manifest: list[list[Any]] | None
    """Preprocessing: every clip as `ClipFile.to_row` has it."""
    notes: list[str]
    """Preprocessing: what was odd about the input."""


def propose(
    registry: Registry,
    info: StageInfo,
    arguments: Arguments,
    taken: Mapping[str, tuple[Run, Parent]] | None = None,
) -> Proposal:
    """Return the run that a command line means; ValueError with the remedy where there can be none.

    taken: parents that are settled already, finished or not, with what is pinned of them, by role.
    """
    taken = taken or {}
    recipe = arguments.recipe
    manifest, source, inputs = None, None, inputs_of(recipe, info.name)
    notes: list[str] = []
    if info.name == "sample" and not recipe.sample.has_prompts:
        raise ValueError(NO_PROMPTS)
    if info.name == "sample":
        recipe.sample.check_length(recipe.decoder.window.num_frames)
    if info.name == "evaluate":
        recipe.evaluate.check_target("clip")
    if info.name == "preprocess":
        manifest, source, notes = _scan(arguments.data_root, recipe.data)
        inputs = {"data_root": str(Path(arguments.data_root).absolute())}

    def expected(role: str) -> dict[str, Any] | None:
        if role == TEACHER:
            of_teacher = teachers_recipe(recipe, info.name)
            return None if of_teacher is None else parts_of(of_teacher, info.name)
        parts = parts_of(recipe, role)
        return None if None in parts.values() else parts

    found = parents.resolve(registry, info, expected, arguments.parents, arguments.command, taken)
    check_students_teacher(info, recipe, found.get(TEACHER), arguments.parents)
    if info.name == "sample":
        _check_samplers(recipe, found)
        _check_data(registry, recipe, found)
    pinned: dict[str, Parent] = {
        role: taken[role][1] if role in taken else run.as_parent() for role, run in found.items()
    }
    parts = parts_of(recipe, info.name)
    if manifest is None and not info.training and info.name != "sample":
        manifest_rows = files.read_json(found["preprocess"].folder / MANIFEST)
        assert manifest_rows is not None
        num_clips = len(manifest_rows)
    else:
        num_clips = len(manifest or ())
    return Proposal(
        spec=RunSpec(
            stage=info.name,
            recipe=recipe.name,
            id=identity.run_id(stage=info.name, config=parts, source=source, parents=pinned),
            config=plain(parts),
            source=source,
            parents=pinned,
            inputs=inputs,
        ),
        num_tasks=num_tasks(info, recipe, num_clips),
        num_clips=num_clips,
        manifest=manifest,
        notes=notes,
    )


def check_students_teacher(info: StageInfo, recipe: Recipe, teacher: Run | None, named: Mapping[str, str]) -> None:
    """Raise ValueError with the remedy where a teacher does not fit its student, or one is named and nothing learns."""
    if TEACHER in named and teachers_recipe(recipe, info.name) is None:
        flag = f"--{info.name.replace('_', '-')}.distillation.steps"
        raise ValueError(f"--parents.teacher {named[TEACHER]}: nothing would learn from it; give {flag} too")
    if teacher is not None:
        config = getattr(recipe, info.name)
        check_teacher(config, from_dict(type(config), teacher.spec.config[info.name]), info.name)


def _check_samplers(recipe: Recipe, found: Mapping[str, Run]) -> None:
    """Raise ValueError with the remedy where a stage that was distilled cannot sample as is asked for."""
    for stage, run in found.items():
        if STAGES[stage].distillable:
            made = from_dict(type(getattr(recipe, stage)), run.spec.config[stage])
            guidance = recipe.sample.decoder_guidance if stage == "decoder" else None
            made.distillation.check_sampler(f"sample.{stage}", getattr(recipe.sample, stage), guidance)


def _check_data(registry: Registry, recipe: Recipe, found: Mapping[str, Run]) -> None:
    """Raise ValueError with the remedy where the data set has fewer clips, or the stages no such rate, as is asked."""
    sample = recipe.sample
    if sample.split == "none" and sample.fps == 0:
        return  # the data set need not be here any more
    store = registry.find(found["clip"].spec.parents["preprocess"].id, "preprocess")
    if sample.split != "none":
        from dalle2_video.data.store import Store

        sample.check_split(len(Store(store.folder / "store").usable(sample.split)))
    made = [stage for stage in ("decoder", "temporal_sr", "spatial_sr") if stage in found]
    configs = {stage: from_dict(type(getattr(recipe, stage)), found[stage].spec.config[stage]) for stage in made}
    strides_of(configs, store.spec.config["data"]["fps"], sample.fps)


def create(registry: Registry, proposal: Proposal, note: Callable[[str], None]) -> Run:
    """Make the run, or open the one that has this identity; note: told what was odd about the input."""
    run = registry.create(proposal.spec)
    if proposal.manifest is not None:
        for text in proposal.notes:
            note(text)
        files.create_exclusive(run.folder / NOTES, files.encode(proposal.notes))
        files.create_exclusive(run.folder / MANIFEST, files.encode_rows(proposal.manifest))
    return run


def order(info: StageInfo, arguments: Arguments, *, tasks: int, clips: int, dependency: str = "") -> Order:
    """Return how a run with so many tasks and clips is to be started."""
    return Order(
        training=info.training,
        placement=arguments.placement,
        runtime=to_dict_or_value(arguments.runtime),
        tasks=arguments.array.tasks,
        parallel=arguments.array.parallel,
        num_tasks=tasks,
        num_clips=clips,
        data_root=str(Path(arguments.data_root).absolute()) if arguments.data_root else None,
        retry=arguments.options.retry,
        dependency=dependency,
    )


def check_batch(info: StageInfo, arguments: Arguments) -> None:
    """Raise ValueError where the ranks cannot share a training's batch."""
    if not info.training:
        return
    optim, placement = getattr(arguments.recipe, info.name).optim, arguments.placement
    for nodes in {placement.nodes, placement.min_nodes or placement.nodes}:
        micro, accumulation = arguments.runtime.accumulation(optim.batch_size, nodes * placement.ranks)
        if info.whole_batch and accumulation > 1:
            raise ValueError(
                f"--micro-batch {micro}: the contrastive loss of {info.name} compares all {optim.batch_size} samples "
                f"of a batch and cannot be accumulated; leave --micro-batch out, or use more ranks"
            )


def num_tasks(info: StageInfo, recipe: Recipe, num_clips: int) -> int:
    """Tasks of an array over so many clips; 0 for a training."""
    if info.training:
        return 0
    return recipe.sample.num_tasks if info.name == "sample" else -(-num_clips // recipe.data.clips_per_shard)


def parts_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return the recipe's parts that a stage's run is made from; of a folder that it names, what lies in it."""
    if "clip" in STAGES[stage].parts:
        recipe = text_tower.resolved(recipe)
    if stage == "sample":
        recipe = given_files.resolved(recipe)
    return {part: getattr(recipe, part) for part in STAGES[stage].parts}


def inputs_of(recipe: Recipe, stage: str) -> dict[str, str]:
    """Return where that lies which a stage's run is made from, beside its parents; no part of the identity."""
    if stage == "sample":
        start = given_files.start_of(recipe)
        return {given_files.START: str(start)} if start is not None else {}
    folder = text_tower.folder_of(recipe) if "clip" in STAGES[stage].parts else None
    return {"text_tower": str(folder)} if folder is not None else {}


def plain(parts: dict[str, Any]) -> dict[str, Any]:
    """Return parts of a recipe as plain types."""
    return {part: to_dict_or_value(value) for part, value in parts.items()}


def _scan(data_root: str, data: DataConfig) -> tuple[list[list[Any]], str, list[str]]:
    from dalle2_video.data.celebv_text import fingerprint, scan_with_notes

    if not data_root:
        raise ValueError(
            "--data-root is missing: the folder that holds videos/ and texts/ as CelebV-Text lays them out, or the "
            "archives of them"
        )
    clips, notes = scan_with_notes(Path(data_root), data)
    return [clip.to_row(Path(data_root)) for clip in clips], fingerprint(clips), notes
