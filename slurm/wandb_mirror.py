"""The mirror of a run's metrics at Weights & Biases; also a process of its own that follows an attempt (`tracking`).

One W&B run an experiment, over any number of attempts, under the id that the run got at its creation. The run's own
step is the axis of all curves, wandb's internal one is never looked at. A record goes out if its step lies beyond what
W&B has, which W&B itself is asked for; so nothing is sent twice by whoever sends, whenever, and after a rewind the
steps that are done again, with the same result, are not drawn again. Offline there is nobody to ask: each attempt
writes all records anew, in place of what earlier ones wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import files
from experiments.run import Run
from slurm import masked_output
from slurm.tracking import FINISH_S, REASON

POLL_S = 1.0
STUCK_S = 900
"""Time after which whatever wandb is at is given up; connecting takes its default of 90 s at most."""
_METRICS = re.compile(r"metrics\.\d+\.jsonl")
_SENT = {"train": "mirrored/train", "val": "mirrored/val"}
"""Where W&B itself keeps the newest step it has, by split: an attempt may validate more often than the one before."""
_EXIT_CODES = {"done": 0, "stopped": 255}
"""How W&B shows an end: finished, killed; 1 is failed, or preempted where that was said before."""

Record = dict[str, Any]


class NewRecords:
    """Reads a run's metrics files, each line once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        """Bytes read of each file."""

    def read(self) -> list[Record]:
        """Return what was written since, by step; where a step was done twice the later attempt's record counts."""
        found: dict[tuple[int, str], Record] = {}
        for name in filter(_METRICS.fullmatch, files.names_in(self._folder)):
            with (self._folder / name).open("rb") as file:
                file.seek(self._read.get(name, 0))
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]  # a line may be half written
            self._read[name] = self._read.get(name, 0) + len(whole)
            for line in whole.splitlines():
                record = json.loads(line)
                found[record["step"], record["split"]] = record
        return [found[key] for key in sorted(found)]


class Mirror:
    """An open W&B run that takes a run's records."""

    def __init__(
        self,
        run: Run,
        *,
        mode: str,
        project: str,
        entity: str | None,
        folder: Path,
        **settings: Any,
    ) -> None:
        """Open the W&B run, or make it. Raises what wandb raises, a subclass of wandb.Error where it foresaw it.

        mode: offline or online; folder: where wandb keeps its files, in `wandb/`; settings: more of wandb.Settings.
        """
        import wandb  # here alone: a run that is not mirrored never loads it

        spec = run.spec
        self._run = wandb.init(
            mode="online" if mode == "online" else "offline",
            project=project,
            entity=entity,
            id=spec.tracking_id or run.id,
            resume="allow" if mode == "online" else None,
            name=run.name,
            group=spec.recipe,
            job_type=spec.stage,
            tags=[spec.stage, spec.recipe],
            config=spec.config | {"parents": {name: parent.id for name, parent in spec.parents.items()}},
            dir=folder,
            settings=wandb.Settings(
                # Nothing of the machine's: no code, no git remote (which may hold a password), no console.
                console="off", disable_git=True, disable_code=True, save_code=False, silent=True,
                x_save_requirements=False, **settings,
            ),
        )  # fmt: skip
        for hidden in ("train/step", *_SENT.values()):
            self._run.define_metric(hidden, hidden=True)
        for split in _SENT:
            self._run.define_metric(f"{split}/*", step_metric="train/step")
        # The newest values of a run that is resumed, as W&B has them.
        self._sent = {split: int(self._run.summary.get(key, -1)) for split, key in _SENT.items()}
        self._records = NewRecords(run.folder)

    @property
    def url(self) -> str | None:
        """Where the W&B run is to be seen."""
        return self._run.url

    def pending(self) -> list[Record]:
        """Return new records that W&B does not have, by step."""
        return [record for record in self._records.read() if record["step"] > self._sent[record["split"]]]

    def send(self, record: Record) -> None:
        """Hand one pending record over; wandb sends it in the background."""
        step, split = record["step"], record["split"]
        values = {f"{split}/{name}": value for name, value in record.items() if name not in ("split", "step", "time")}
        self._run.log(values | {"train/step": step, _SENT[split]: step, "_timestamp": record["time"]})
        self._sent[split] = step

    def finish(self, end: str | None) -> None:
        """Wait until all is sent, and tell W&B how the attempt ended; None: without a word."""
        if end == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES.get(end or "", 1))


def follow(run: Run, attempt: int, trainer: int, mirror: Mirror) -> None:
    """Mirror what an attempt writes until it has ended or its process is gone.

    trainer: pid of rank 0, this process's parent.
    """
    while True:
        signal.alarm(STUCK_S)
        if run.newest_attempt() > attempt:
            return  # its own mirror has taken over
        end = run.attempt(attempt).end
        over = end is not None or os.getppid() != trainer
        for record in mirror.pending():
            mirror.send(record)
        if over:
            signal.alarm(2 * FINISH_S)
            mirror.finish(end["kind"] if end else None)
            return
        time.sleep(POLL_S)


@contextlib.contextmanager
def _folder_for(run: Run, mode: str) -> Iterator[Path]:
    """Yield a folder for wandb's files: offline they are the mirror and lie in the run's, online nobody needs them."""
    if mode == "offline":
        files.remove_tree(run.folder / "wandb")
        yield run.folder
        return
    folder = Path(tempfile.mkdtemp(prefix="dalle2_video-wandb-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Mirror one attempt; return the process's exit code.

    arguments: run folder, attempt, mode, project, entity or nothing, pid of rank 0.
    """
    folder_text, attempt, mode, project, entity, trainer = arguments
    # What tells a training to save and stop goes to all processes of a job: this one outlives it by a little.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.alarm(STUCK_S)
    os.nice(10)
    run = Run(Path(folder_text))
    try:
        with _folder_for(run, mode) as folder:
            mirror = Mirror(
                run,
                mode=mode,
                project=project,
                entity=entity or None,
                folder=folder,
                x_stats_pid=int(trainer),
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
            )
            follow(run, int(attempt), int(trainer), mirror)
    # Whatever it is: wandb may raise anything, and nobody is there to raise it to.
    except Exception as error:
        traceback.print_exc()
        print(f"{REASON}{in_short(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


def in_short(error: Exception) -> str:
    """Return what kind of error it is and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


if __name__ == "__main__":
    masked_output.mask_secrets()
    # Past wandb's exit hooks, which may wait for a server that does not answer.
    os._exit(main(sys.argv[1:]))
