"""One rank of a training on a node: rendezvous, attempt, stage, loop, outcome."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dalle2_video.config_io import from_dict
from dalle2_video.data_config import AugmentConfig, CaptionConfig
from dalle2_video.models.factory import CONFIG_TYPES
from dalle2_video.runtime import RuntimeConfig
from dalle2_video.stages import STAGES, StageInputs
from dalle2_video.training import distributed
from dalle2_video.training.loop import Trainer
from experiments import files
from experiments.registry import Attempt, Run, Superseded
from slurm.attempt import claim, leave_slurm, parents_of, record_failure, supervised_attempt

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
BEAT_S = 0.5


def train(run: Run, intent: int, request: dict[str, Any]) -> int:
    """Train the run's stage; return the process's exit code."""
    attempt: Attempt | None = None
    try:
        _rendezvous_from_slurm()
        runtime = from_dict(RuntimeConfig, request["runtime"])
        device = distributed.start(runtime.torch_threads)
        attempt = Attempt(run, distributed.from_rank_zero(lambda: claim(run, intent, request, 0)))
        if distributed.rank() == 0:
            attempt.remove_leftovers(run.folder / "checkpoints")
        parents = parents_of(run)
        stage = run.spec.stage
        inputs = StageInputs(
            config=from_dict(CONFIG_TYPES[stage], run.spec.config[stage]),
            seed=run.spec.config["seed"],
            store=parents["preprocess"].folder / "store",
            # What a run has no part for, it took as is now the default.
            captions=from_dict(CaptionConfig, run.spec.config.get("captions", {})),
            augment=from_dict(AugmentConfig, run.spec.config.get("augment", {})),
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
        if outcome != "done":
            leave_slurm(run, preempted=outcome == "preempted")
        return 0
    except BaseException as error:
        return record_failure(attempt or supervised_attempt(run), error)


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
