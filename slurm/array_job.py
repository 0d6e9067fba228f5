"""One group of an array on a node: its tasks that are not done yet, each published whole and recorded.

Killed anywhere, a rerun computes only what is missing: a task counts as done once its record exists, and the record is
written after its files. Whichever group finds all tasks done joins them; two that do so at once write the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle2_video.config_io import from_dict
from dalle2_video.data_config import CaptionConfig, DataConfig, WindowConfig
from dalle2_video.evaluate_config import EvaluateConfig
from dalle2_video.sample_config import SampleConfig
from dalle2_video.task_array import Published, TaskArray
from dalle2_video.training.stop import PREEMPT, StopFlag, StopSignals
from experiments import files, identity, judged, kept_checkpoint
from experiments.run import Attempt, Run
from experiments.task_facts import event_of
from slurm import leaving, notify
from slurm.attempt import claim, parents_of, record_failure
from slurm.parent_exports import export_of

if TYPE_CHECKING:
    import torch

    from dalle2_video.evaluation.judge import Judge


class Stopped(Exception):  # noqa: N818 - a state, not a defect of the task
    """A task was told to stop in its middle."""


def run_tasks(run: Run, intent: int, request: dict[str, Any], group: int, signals: StopSignals) -> int:
    """Do a group's tasks that are not done yet; return the process's exit code.

    signals: what this process was told since it started.
    """
    flag = StopFlag(run.stop_requested, signals)
    attempt = Attempt(run, claim(run, intent, request, group))
    worker: Worker | None = None
    try:
        worker = Worker(run, attempt, _task_array(attempt, request, group), group)
        if worker.work(request["groups"][group], stop=lambda: flag.poll() > 0):
            attempt.end("done", progress=worker.finished)
            if run.is_done():
                kept_checkpoint.release(run)
                notify.try_tell(run, "done")
            return 0
        told = flag.poll() == PREEMPT
        job = leaving.job_facts()
        attempt.end(leaving.end_kind("preempted" if told else "stopped", job), progress=worker.finished)
        return leaving.leave(run, job, told=told)
    except BaseException as error:
        return record_failure(attempt, error, progress=worker.finished if worker else 0)


class Worker:
    """Does tasks of one array run in one attempt."""

    def __init__(self, run: Run, attempt: Attempt, array: TaskArray, group: int) -> None:
        self.run, self.attempt, self.array, self.group = run, attempt, array, group
        self.finished = 0
        """Tasks that this attempt finished."""

    def work(
        self, tasks: Sequence[int], stop: Callable[[], bool], on_task: Callable[[int, float], None] | None = None
    ) -> bool:
        """Do those of `tasks` that are not done yet and, if then all of the run's are, the last step.

        stop: asked before each task and whenever one tells its progress, what it did is then lost; on_task: told a task
        and the share of it done. Returns False where it was stopped.
        """
        run, array = self.run, self.array
        self.attempt.remove_leftovers(array.root, group=self.group)
        if not run.prepared():
            with self._staging() as staging:
                _publish(array.prepare(staging), array.root)
            run.mark_prepared()
        done = run.tasks_done()
        mine = [task for task in tasks if task not in done]
        for task in mine:
            if stop():
                return False
            try:
                with self._staging() as staging:
                    on_progress = functools.partial(self._progress, task, stop, on_task)
                    published, record = array.run_task(task, staging, on_progress)
                    _publish(published, array.root)
            except Stopped:
                return False
            # Before the record: whoever finds the task finished finds its sum.
            self.attempt.append("events", event_of(task, record))
            run.finish_task(task, record)
            self.finished += 1
        if len(run.tasks_done()) == array.num_tasks and run.done() is None:
            records = run.task_records()
            with self._staging() as staging:
                published, summary = array.finish(records, staging)
                _publish(published, array.root)
            run.mark_done(summary | {"digest": identity.digest([records[task] for task in sorted(records)])})
        return True

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A hidden folder on the file system of what is published, gone at the end."""
        folder = self.attempt.stage(self.array.root)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _progress(
        self, task: int, stop: Callable[[], bool], on_task: Callable[[int, float], None] | None, share: float
    ) -> None:
        if share < 1 and stop():
            raise Stopped
        self.attempt.beat({"task": task, "share": share})
        if on_task is not None:
            on_task(task, share)


def _publish(published: Published, root: Path) -> None:
    for staged, relative in published:
        files.publish(staged, root / relative)


def _task_array(attempt: Attempt, request: dict[str, Any], group: int) -> TaskArray:
    """Return the array's work."""
    run = attempt.run
    if run.spec.stage == "preprocess":
        from dalle2_video.data.celebv_text import read_manifest
        from dalle2_video.data.preprocess_array import PreprocessArray

        data = from_dict(DataConfig, run.spec.config["data"])
        data_root = Path(request["data_root"])
        clips = read_manifest(run.folder / "manifest.json", data_root)
        notes = files.read_json(run.folder / "notes.json") or []
        return PreprocessArray(root=run.folder / "store", data_root=data_root, clips=clips, config=data, notes=notes)

    import torch

    gpus = torch.cuda.device_count()
    device = torch.device("cuda", group % gpus) if gpus else torch.device("cpu")
    parents = parents_of(run)
    if run.spec.stage == "embed":
        from dalle2_video.generation.embed import EmbedArray, embeddings_name

        hop = run.spec.config["embed"]["hop"]
        return EmbedArray(
            store=parents["preprocess"].folder / "store",
            clip_export=parents["clip"].folder / "export",
            name=embeddings_name(parents["clip"].spec.id, hop),
            hop=hop,
            device=device,
        )
    if run.spec.stage == "evaluate":
        from dalle2_video.evaluation.evaluate import EvaluateArray

        config = from_dict(EvaluateConfig, run.spec.config["evaluate"])
        return EvaluateArray(
            root=run.folder / "evaluation",
            judge=_judge(attempt, parents, config, device),
            made_from=_pinned(run),
            config=config,
            seed=run.spec.config["seed"],
        )
    from dalle2_video.generation.sample import SampleArray

    assert run.spec.stage == "sample", run.spec.stage
    root, spec = run.folder / "samples", run.spec
    sample = from_dict(SampleConfig, spec.config["sample"])

    def captions() -> list[str]:
        from dalle2_video.data.store import Store
        from dalle2_video.generation.split_prompts import prompts_of_split

        clip = parents["clip"]
        store = Store(parents_of(clip)["preprocess"].folder / "store")
        return prompts_of_split(
            store, sample, from_dict(CaptionConfig, clip.spec.config["captions"]), spec.config["seed"]
        )

    return SampleArray(
        root=root,
        exports=lambda: {role: export_of(attempt, role, parent) for role, parent in parents.items()},
        config=sample,
        seed=spec.config["seed"],
        device=device,
        publish=lambda staged, relative: files.publish(staged, root / relative),
        prompts=captions if sample.split != "none" else None,
        start=Path(spec.inputs["start"]) if sample.start else None,
        made_by={"run": spec.id, "parents": _pinned(run)},
        code=request["code"],
    )


def _pinned(run: Run) -> dict[str, dict[str, Any]]:
    """Return id, digest and, of a checkpoint, step of each parent, for the record."""
    return {
        role: {"id": pin.id, "digest": pin.digest} | ({} if pin.step is None else {"step": pin.step})
        for role, pin in run.spec.parents.items()
    }


def _judge(attempt: Attempt, parents: dict[str, Run], config: EvaluateConfig, device: torch.device) -> Judge:
    """Return the judge of what an evaluation judges."""
    from dalle2_video.evaluation.clip_judge import ClipJudge
    from dalle2_video.evaluation.decoder_judge import DecoderJudge
    from dalle2_video.evaluation.prior_judge import PriorJudge
    from dalle2_video.evaluation.sample_judge import SampleJudge
    from dalle2_video.evaluation.split_clips import SplitClips

    run = attempt.run
    spec, stage = run.spec, judged.stage_of(run.spec.parents)

    def clips(**limits: int) -> SplitClips:
        captions = from_dict(CaptionConfig, spec.config["captions"])
        return SplitClips(parents["preprocess"].folder / "store", config, captions, spec.config["seed"], **limits)

    clip, mine = (functools.partial(export_of, attempt, name, parents[name]) for name in ("clip", stage))
    if stage == "clip":
        return ClipJudge(clips(), clip, device)
    if stage == "prior":
        return PriorJudge(clips(), clip, mine, device)
    if stage == "decoder":
        spans = (_window(parents[name]).span for name in ("clip", "decoder"))
        limited = clips(most=config.bound_clips, span=max(spans))
        return DecoderJudge(limited, clip, mine, config.bound_steps, device)
    makers = parents_of(parents["sample"])
    window = _window(next(makers[name] for name in ("spatial_sr", "temporal_sr", "decoder") if name in makers))
    if fps := parents["sample"].spec.config["sample"].get("fps"):  # another rate than the last stage's own
        stored = parents["preprocess"].spec.config["data"]["fps"]
        window = dataclasses.replace(window, stride=round(stored / fps))
    files_of = {name: (path, getattr(config, name)) for name, path in spec.inputs.items()}
    samples = parents["sample"].folder / "samples"
    return SampleJudge(clips(span=window.span), samples, window, clip, files_of, device)


def _window(trained: Run) -> WindowConfig:
    """Return the frames that a trained stage reads or makes."""
    return from_dict(WindowConfig, trained.spec.config[trained.stage]["window"])
