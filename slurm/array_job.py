"""One group of an array on a node: its tasks that are not done yet, each published whole and recorded.

Killed anywhere, a rerun computes only what is missing: a task counts as done once its record exists, and the record is
written after its files. Whichever group finds all tasks done joins them; two that do so at once write the same bytes.
"""

from __future__ import annotations

import functools
import shutil
import signal
from pathlib import Path
from typing import Any, Literal

from dalle2_video import config
from dalle2_video.task_array import TaskArray
from experiments import files, identity
from experiments.registry import Attempt, Run
from slurm.attempt import claim, leave_slurm, parents_of, record_failure


def run_tasks(run: Run, intent: int, request: dict[str, Any], group: int) -> int:
    """Do the group's tasks that are not done yet, and the last step if all tasks are; return the exit code."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda caught, _: stopping.append(caught))
    attempt = Attempt(run, claim(run, intent, request, group))
    progress = 0
    try:
        array = _task_array(run, request, group)
        if not (run.folder / "prepared.json").exists():
            with _Staging(array.root) as staging:
                _publish(array.prepare(staging), array.root)
            files.create_exclusive(run.folder / "prepared.json", files.encode({}))
        mine = [task for task in request["groups"][group] if task not in run.tasks_done()]
        for done, task in enumerate(mine):
            if stopping or run.stop_requested():
                kind: Literal["preempted", "stopped"] = "preempted" if signal.SIGUSR2 in stopping else "stopped"
                attempt.end(kind, progress=progress)
                leave_slurm(run, preempted=kind == "preempted")
                return 0
            with _Staging(array.root) as staging:
                beat = functools.partial(_beat, attempt, group, done, len(mine))
                published, record = array.run_task(task, staging, beat)
                _publish(published, array.root)
            run.finish_task(task, record)
            progress += 1
        if len(run.tasks_done()) == array.num_tasks and run.done() is None:
            records = run.task_records()
            with _Staging(array.root) as staging:
                published, summary = array.finish(records, staging)
                _publish(published, array.root)
            run.mark_done(summary | {"digest": identity.digest([records[task] for task in sorted(records)])})
        attempt.end("done", progress=progress)
        return 0
    except BaseException as error:
        return record_failure(attempt, error)


def _beat(attempt: Attempt, group: int, done: int, tasks: int, share: float) -> None:
    attempt.beat({"group": group, "tasks": done + share, "of": tasks})


def _publish(published: list[tuple[Path, str]], root: Path) -> None:
    for staged, relative in published:
        files.publish(staged, root / relative)


class _Staging:
    """A hidden folder on the file system of `root`, gone at the end."""

    def __init__(self, root: Path) -> None:
        self.folder = files.staging_folder(root)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _task_array(run: Run, request: dict[str, Any], group: int) -> TaskArray:
    """Return the array's work."""
    if run.spec.stage == "preprocess":
        from dalle2_video.data.celebv_text import ClipFile
        from dalle2_video.data.preprocess_array import PreprocessArray

        data = config.from_dict(config.DataConfig, run.spec.config["data"])
        data_root = Path(request["data_root"])
        manifest = files.read_json(run.folder / "manifest.json")
        assert manifest is not None
        clips = [ClipFile(clip_id=clip_id, path=data_root / path, size_bytes=size) for clip_id, path, size in manifest]
        return PreprocessArray(root=run.folder / "store", data_root=data_root, clips=clips, config=data)

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
    from dalle2_video.generation.sample import SampleArray

    assert run.spec.stage == "sample", run.spec.stage
    return SampleArray(
        root=run.folder / "samples",
        exports={name: parent.folder / "export" for name, parent in parents.items()},
        config=config.from_dict(config.SampleConfig, run.spec.config["sample"]),
        seed=run.spec.config["seed"],
        device=device,
    )
