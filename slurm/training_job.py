"""One rank of a training on a node: rendezvous, attempt, stage, loop, outcome."""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dalle2_video.config_io import from_dict
from dalle2_video.data_config import AugmentConfig, CaptionConfig
from dalle2_video.models.factory import CONFIG_TYPES
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.stages import STAGES, StageInputs
from dalle2_video.training import distributed
from dalle2_video.training.export import export_digest
from dalle2_video.training.loop import Trainer
from dalle2_video.training.stop import PREEMPT, StopSignals
from dalle2_video.training.watchdog import Hang, Watchdog, summary, suspect
from experiments import files
from experiments.milestones import Milestones
from experiments.plan import TEACHER
from experiments.run import Attempt, Run, Superseded
from slurm import leaving, logs, notify, rendezvous, tracking
from slurm.attempt import claim, parents_of, record_failure, supervised_attempt, try_end
from slurm.records import Records
from slurm.startup import EVENT, Startup, in_words
from slurm.tracking import Tracker

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
HANGS_HEARD_S = 3.0
"""Time that ranks give each other to say how they hang."""


def train(run: Run, intent: int, request: dict[str, Any], signals: StopSignals, startup: Startup) -> int:
    """Train the run's stage; return the process's exit code.

    signals: what this process was told since it started; startup: how long it took until here.
    """
    startup.begins("rendezvous")
    attempt: Attempt | None = None
    faulthandler.enable()  # a crash leaves the stacks of all threads in the log
    try:
        runtime = from_dict(RuntimeConfig, request["runtime"])
        stage = run.spec.stage
        batch_size = run.spec.config[stage]["optim"]["batch_size"]
        if not rendezvous.join(lambda ranks: runtime.shares(batch_size, ranks)):
            return 0
        watchdog = Watchdog(
            minimum_s=runtime.hang_min_s,
            factor=runtime.hang_factor,
            on_hang=lambda hang: _record_hang(attempt or supervised_attempt(run), hang),
            on_phase=startup.follow(lambda seconds: _record_startup(attempt, seconds)),
        )
        # what is computed again comes in many sizes
        thrifty = runtime.activation_checkpointing != "none"
        device = distributed.start(runtime.torch_threads, thrifty=thrifty)
        if told := distributed.highest(signals.value, device):
            # While imports ran: nothing was begun, so this is no attempt.
            log.info("%s: told to stop before it started", run.name)
            if distributed.rank() == 0 and (claimed := supervised_attempt(run)):
                try_end(claimed, "preempted" if told == PREEMPT else "stopped")
            job = distributed.from_rank_zero(leaving.job_facts)
            watchdog.stop()
            return leaving.leave(run, job, told=told == PREEMPT)
        startup.begins("claim")
        attempt = Attempt(run, distributed.from_rank_zero(lambda: claim(run, intent, request, 0)))
        if distributed.rank() == 0:
            attempt.remove_leftovers(run.folder / "checkpoints")
        tracker = _tracker(run, attempt, runtime)
        parents = parents_of(run)
        inputs = StageInputs(
            config=from_dict(CONFIG_TYPES[stage], run.spec.config[stage]),
            seed=run.spec.config["seed"],
            store=parents["preprocess"].folder / "store",
            # What a run has no part for, it took as is now the default.
            captions=from_dict(CaptionConfig, run.spec.config.get("captions", {})),
            augment=from_dict(AugmentConfig, run.spec.config.get("augment", {})),
            exports={name: parent.folder / "export" for name, parent in parents.items() if name in CONFIG_TYPES},
            teacher=parents[TEACHER].folder / "export" if TEACHER in parents else None,
            embeddings=(parents["embed"].done() or {})["embeddings"] if "embed" in parents else None,
            text_tower=Path(run.spec.inputs["text_tower"]) if "text_tower" in run.spec.inputs else None,
            activation_checkpointing=runtime.activation_checkpointing,
        )
        trainer = Trainer(
            STAGES[stage](inputs),
            name=stage.replace("_", "-"),
            seed=inputs.seed,
            runtime=runtime,
            control=Control(attempt, tracker, keep_every=runtime.keep_every),
            watchdog=watchdog,
            device=device,
            signals=signals,
        )
        outcome = trainer.run()
        job = distributed.from_rank_zero(leaving.job_facts) if outcome != "done" else None
        if distributed.rank() == 0:
            try_end(attempt, leaving.end_kind(outcome, job))
            log.info("%s: %s", run.name, outcome)
        watchdog.phase("leaving")
        distributed.end()
        watchdog.stop()
        code = 0
        if outcome != "done":
            code = leaving.leave(run, job, told=outcome == "preempted")
        elif os.environ["RANK"] == "0":
            notify.try_tell(run, "done")
        tracker.finish()  # last: it may wait, and a requeue shall not
        return code
    except BaseException as error:
        return record_failure(attempt or supervised_attempt(run), error)
    finally:
        _remove_caches()


def _remove_caches() -> None:
    """Remove this job's compile caches from the node; those of a job that is killed stay for its next start."""
    if os.environ.get("LOCAL_RANK") == "0" and "SLURM_JOB_ID" in os.environ:
        shutil.rmtree(rendezvous.caches_of_job(), ignore_errors=True)


def _record_startup(attempt: Attempt | None, seconds: dict[str, float]) -> None:
    if attempt is not None and distributed.rank() == 0:
        attempt.append("events", {"event": EVENT, "seconds": seconds, "message": in_words(seconds)})


def _tracker(run: Run, attempt: Attempt, runtime: RuntimeConfig) -> Tracker:
    """Start the attempt's mirror beside rank 0."""
    if distributed.rank() != 0:
        return tracking.NoTracker()
    return tracking.start(
        run, attempt.number, mode=runtime.wandb, project=runtime.wandb_project, entity=runtime.wandb_entity
    )


def _record_hang(attempt: Attempt | None, hang: Hang) -> None:
    """Record the attempt's hang with what all ranks say of it; the first to do so wins.

    Ranks that hang cannot ask each other, so each leaves a report. Without a number yet there is only the log.
    """
    if attempt is None:
        return
    rank, world_size, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), attempt.run.folder
    reports = {other: logs.hang_report(folder, attempt.number, other) for other in range(world_size)}
    files.write_atomic(reports[rank], files.encode(asdict(hang) | {"host": socket.gethostname()}))
    names, deadline_s = {path.name for path in reports.values()}, time.monotonic() + HANGS_HEARD_S
    while names - set(files.names_in(logs.folder_of(folder))) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    heard = {other: report for other, path in reports.items() if (report := files.read_json(path)) is not None}
    hosts = {other: report.pop("host") for other, report in heard.items()}
    hangs = {other: Hang(**report) for other, report in heard.items()}
    first = suspect(hangs)
    details = {"rank": first, "traceback": hangs[first].stack, "step": hangs[first].step, "exit_code": 1}
    details["host"] = hosts[first]
    message = summary(hangs, world_size)
    try_end(attempt, "hang", message=message, seconds=hangs[first].seconds, **details)
    notify.try_tell(attempt.run, "hang", message, occasion=f"attempt-{attempt.number:04d}")
    notify.try_tell_poisoned(attempt.run)


class Control:
    """The run as training sees it; see `dalle2_video.training.run_control`."""

    def __init__(self, attempt: Attempt, tracker: Tracker, *, keep_every: int) -> None:
        """keep_every: checkpoints of steps that this divides are kept for good; 0: none is."""
        self.attempt, self.run = attempt, attempt.run
        self._milestones = Milestones(attempt.run, keep_every)
        self._tracker = tracker
        self._records = Records(attempt)
        self._damaged: set[Path] = set()

    def checkpoints(self) -> Sequence[tuple[int, Path]]:
        """Committed checkpoints, oldest first."""
        return [(commit.step, commit.path) for commit in self.run.commits()]

    def stage_commit(self) -> Path:
        """Return an empty hidden folder among the checkpoints."""
        return self.attempt.stage_commit()

    def commit_checkpoint(self, step: int, staged: Path) -> None:
        """Publish, then remove all but the newest two and the milestones.

        Children pin a parent by its export, which is no checkpoint, so none of them needs one kept.
        """
        self._records.flush()
        self.attempt.commit(step, staged)
        try:
            self.run.clear_save()
        except OSError as error:  # the checkpoint is there all the same
            log.warning("the request to save cannot be taken back: %s", error)
        commits = self.run.commits()
        sound = [commit for commit in commits if commit.path not in self._damaged]
        # After the commit: a reader must never see fewer than before. What is damaged counts for none.
        for commit in commits[: commits.index(sound[-KEPT_CHECKPOINTS:][0])]:
            if commit in self._milestones:
                continue
            try:
                files.remove_tree(commit.path)
            except OSError as error:  # the new one is there all the same; the next commit tries again
                log.warning("%s is no longer needed and cannot be removed: %s", commit.path, error)

    def skipped(self, folder: Path) -> None:
        """Note that a checkpoint is damaged: it does not count as one that is kept."""
        self._damaged.add(folder)

    def publish_export(self, staged: Path, record: dict[str, Any]) -> None:
        """Publish the weights, then record the run as done."""
        if self.attempt.superseded():
            raise Superseded(f"attempt {self.attempt.number} of {self.run.name}: a newer attempt owns the run")
        final = self.run.folder / "export"
        # Left by an attempt that died before it could record DONE, or that of the run that is done by now: it stays
        # where it is the same, since this process may be a zombie that was stopped here.
        if final.exists() and export_digest(final) != record["digest"]:
            files.remove_tree(final)
        if final.exists():
            files.remove_tree(staged)
        else:
            files.publish(staged, final)
        self.run.mark_done(record)

    def append(self, kind: Literal["metrics", "events"], record: dict[str, Any]) -> None:
        """Append to the attempt's metrics or events."""
        self._records.append(kind, record)
        if message := self._tracker.trouble():
            log.warning("%s", message)
            self._records.append("events", {"event": tracking.EVENT, "message": message})

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers, at most twice a second."""
        self._records.beat(status)

    def stop_requested(self) -> bool:
        """Whether the STOP switch is there."""
        return self.run.stop_requested()

    def save_requested(self) -> bool:
        """Whether the SAVE switch is there."""
        return self.run.save_requested()
