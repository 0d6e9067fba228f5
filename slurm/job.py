"""What runs on a node: one process a rank of a training, one a group of an array.

    main(run folder, intent, group)

reads the run and the intent, claims an attempt (or takes the one its supervisor claimed), runs the science and
records how it ended. Here the registry and the science meet; neither knows the other.

Stopping and requeueing are ours: PREEMPT (USR2) saves and asks Slurm for a requeue; STOP (TERM, the STOP switch) saves
and never requeues. An unfinished Slurm job then waits to be killed: to exit 0 would read COMPLETED.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from experiments import files, identity
from experiments.registry import Attempt, Registry, Run, Superseded

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
BEAT_S = 0.5
REQUEUE_TRIES = 5
WAIT_TO_BE_KILLED_S = 3600
PEER_FAILURE_DELAY_S = 2.0
USER_ERROR = 2
_PR_SET_PDEATHSIG = 1


def main(run_folder: str, intent: int, group: int = 0) -> None:
    """Run one rank of a training or one group of an array; raises nothing: the outcome is recorded."""
    _die_with_supervisor()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    run = Run(Path(run_folder))
    request = run.intent(intent).request
    if request["training"]:
        _rendezvous_from_slurm()
        code = _train(run, intent, request)
    else:
        code = _run_tasks(run, intent, request, group)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a collective that waits for a dead peer must not hold this process


def _die_with_supervisor() -> None:
    supervisor = os.environ.get("DALLE2_VIDEO_SUPERVISOR")
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):
        os._exit(1)  # it died before the request above


def _rendezvous_from_slurm() -> None:
    """Set the variables of the process group from Slurm's, unless a supervisor has set them."""
    if "RANK" in os.environ:
        return
    job_id, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    nodes = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    ).stdout.split()
    caches = Path(tempfile.gettempdir()) / f"dalle2_video-{os.getuid()}-{job_id}"
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(int(os.environ["SLURM_NTASKS"]) // len(nodes)),
        MASTER_ADDR=nodes[0],
        # Below the ephemeral range, and another one after a requeue: a zombie of the last attempt cannot join.
        MASTER_PORT=str(15000 + (int(job_id) * 31 + restarts * 7919) % 15000),
        TORCH_EXTENSIONS_DIR=str(caches / "torch_extensions"),
        TRITON_CACHE_DIR=str(caches / "triton"),
    )


class Control:
    """The run as the training loop sees it; see `dalle2_video.training.loop.RunControl`."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.run = attempt, attempt.run
        self._beat_s = 0.0

    def checkpoints(self) -> Sequence[tuple[int, Path]]:
        """Committed checkpoints, oldest first."""
        return [(commit.step, commit.path) for commit in self.run.commits()]

    def stage_commit(self) -> Path:
        """Return an empty hidden folder among the checkpoints."""
        return self.attempt.stage_commit()

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        """Publish, then remove all but the newest two."""
        self.attempt.commit(step, staged)
        # After the commit: a reader must never see fewer than before.
        for commit in self.run.commits()[:-KEPT_CHECKPOINTS]:
            files.remove_tree(commit.path)

    def publish_export(self, staged: Path, record: dict[str, Any]) -> None:
        """Publish the weights, then record the run as done."""
        if self.attempt.superseded():
            raise Superseded(f"attempt {self.attempt.number} of {self.run.name}: a newer attempt owns the run")
        final = self.run.folder / "export"
        files.remove_tree(final)  # left by an attempt that died before it could record DONE
        files.publish(staged, final)
        self.run.mark_done(record)

    def append(self, kind: Literal["metrics", "events"], record: dict[str, Any]) -> None:
        """Append to the attempt's metrics or events."""
        self.attempt.append(kind, record)

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers, at most twice a second."""
        if time.monotonic() - self._beat_s >= BEAT_S:
            self._beat_s = time.monotonic()
            self.attempt.beat(status)

    def stop_requested(self) -> bool:
        """Whether the STOP switch is there."""
        return self.run.stop_requested()


def _claim(run: Run, intent: int, request: dict[str, Any], group: int) -> int:
    supervised = os.environ.get("DALLE2_VIDEO_ATTEMPT")
    if supervised is not None:
        return int(supervised)
    job = {name: os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST")}
    return run.claim_attempt(
        {"intent": intent, "group": group, "world_size": request["world_size"], "slurm": job}
    ).number


def _train(run: Run, intent: int, request: dict[str, Any]) -> int:
    """Return the process's exit code."""
    from dalle2_video.config import RuntimeConfig, from_dict
    from dalle2_video.models.factory import CONFIG_TYPES
    from dalle2_video.stages import STAGES, StageInputs
    from dalle2_video.training import distributed
    from dalle2_video.training.loop import Trainer

    attempt: Attempt | None = None
    try:
        runtime = from_dict(RuntimeConfig, request["runtime"])
        device = distributed.start(runtime.torch_threads)
        attempt = Attempt(run, distributed.from_rank_zero(lambda: _claim(run, intent, request, 0)))
        parents = _parents(run)
        stage = run.spec.stage
        inputs = StageInputs(
            config=from_dict(CONFIG_TYPES[stage], run.spec.config[stage]),
            seed=run.spec.config["seed"],
            store=parents["preprocess"].folder / "store",
            exports={name: parent.folder / "export" for name, parent in parents.items() if name in CONFIG_TYPES},
            embeddings=(parents["embed"].done() or {})["embeddings"] if "embed" in parents else None,
            activation_checkpointing=runtime.activation_checkpointing,
        )
        trainer = Trainer(
            STAGES[stage](inputs), seed=inputs.seed, runtime=runtime, control=Control(attempt), device=device
        )
        outcome = trainer.run()
        if distributed.rank() == 0:
            attempt.end(outcome)
            log.info("%s: %s", run.name, outcome)
        distributed.end()
        if outcome != "done" and "SLURM_JOB_ID" in os.environ:
            _leave_slurm(requeue=outcome == "preempted")
        return 0
    except BaseException as error:
        return _record_failure(attempt or _supervised_attempt(run), error)


def _supervised_attempt(run: Run) -> Attempt | None:
    number = os.environ.get("DALLE2_VIDEO_ATTEMPT")
    return Attempt(run, int(number)) if number is not None else None


def _record_failure(attempt: Attempt | None, error: BaseException) -> int:
    """Record why the attempt ended; return the exit code: 2 where the user must mend something, else 1."""
    trace = traceback.format_exc()
    log.error("%s", trace)
    message = f"{type(error).__name__}: {error}"
    code = USER_ERROR if isinstance(error, ValueError) else 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, code = f"disk full: {error}; free space, then run the same command again", USER_ERROR
    if "Connection closed by peer" in trace or "Connection reset" in trace:
        time.sleep(PEER_FAILURE_DELAY_S)  # a peer died first; its own reason shall stand in the record
    if attempt is not None and not isinstance(error, Superseded):
        try:
            rank = int(os.environ.get("RANK", "0"))
            attempt.end("error", message=message, traceback=trace, rank=rank, exit_code=code)
        except OSError as failure:
            log.error("the end of the attempt could not be recorded: %s", failure)
    return code


def _parents(run: Run) -> dict[str, Run]:
    """Open the pinned parents; ValueError where one is gone or holds something else than was pinned."""
    registry = Registry(run.folder.parents[2])
    parents = {}
    for name, pinned in run.spec.parents.items():
        parent = registry.find(pinned.id, name)
        record = parent.done()
        if record is None or record["digest"] != pinned.digest:
            raise ValueError(
                f"{parent.name}, parent of {run.name}, is not what was pinned at creation ({pinned.digest})"
            )
        parents[name] = parent
    return parents


def _run_tasks(run: Run, intent: int, request: dict[str, Any], group: int) -> int:
    """Do the group's tasks that are not done yet, and the last step if all tasks are; return the exit code."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda caught, _: stopping.append(caught))
    attempt = Attempt(run, _claim(run, intent, request, group))
    progress = 0
    try:
        array = _task_array(run)
        if not (run.folder / "prepared.json").exists():
            with _Staging(array.root) as staging:
                _publish(array.prepare(staging), array.root)
            files.create_exclusive(run.folder / "prepared.json", files.encode({}))
        mine = [task for task in request["groups"][group] if task not in run.tasks_done()]
        for done, task in enumerate(mine):
            if stopping or run.stop_requested():
                kind: Literal["preempted", "stopped"] = "preempted" if signal.SIGUSR2 in stopping else "stopped"
                attempt.end(kind, progress=progress)
                if "SLURM_JOB_ID" in os.environ:
                    _leave_slurm(requeue=kind == "preempted")
                return 0
            with _Staging(array.root) as staging:
                published, record = array.run_task(
                    task,
                    staging,
                    lambda share, done=done: attempt.beat({"group": group, "tasks": done + share, "of": len(mine)}),
                )
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
        return _record_failure(attempt, error)


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


def _task_array(run: Run) -> Any:
    """Return the array's work as a `dalle2_video.task_array.TaskArray`."""
    from dalle2_video import config

    if run.spec.stage == "preprocess":
        from dalle2_video.data.celebv_text import ClipFile
        from dalle2_video.data.preprocess_array import PreprocessArray

        data = config.from_dict(config.DataConfig, run.spec.config["data"])
        data_root = Path(run.spec.inputs["data_root"])
        manifest = files.read_json(run.folder / "manifest.json")
        assert manifest is not None
        clips = [ClipFile(clip_id=clip_id, path=data_root / path, size_bytes=size) for clip_id, path, size in manifest]
        return PreprocessArray(root=run.folder / "store", data_root=data_root, clips=clips, config=data)

    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parents = _parents(run)
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


def _leave_slurm(*, requeue: bool) -> None:
    """Ask for a requeue where due, then wait to be killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if requeue and int(os.environ.get("SLURM_PROCID", "0")) == 0:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
        for attempt in range(REQUEUE_TRIES):
            answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                break
            log.warning("scontrol requeue %s: %s", job, answer.stderr.strip())
            time.sleep(2**attempt)
    time.sleep(WAIT_TO_BE_KILLED_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
