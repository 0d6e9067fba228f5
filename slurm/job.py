"""What runs on a node: one process a rank of a training, one a group of an array.

    python -m slurm.job RUN_FOLDER INTENT GROUP

reads the run and the intent and hands over to `training_job` or `array_job`, where the registry and the science meet.
GROUP is the group of an array, on Slurm the first one of a job array. Nothing is raised: the outcome is on record, and
the exit code tells a supervisor or srun to end the other ranks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from dalle2_video.training.stop import StopSignals
from experiments.run import Run
from slurm import logs, masked_output
from slurm.attempt import ATTEMPT_VARIABLE, SUPERVISOR_VARIABLE
from slurm.startup import Startup

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def main(run_folder: str, intent: int, group: int = 0) -> None:
    """Run one rank of a training or one group of an array."""
    signals = StopSignals()  # before the imports below, which take long
    startup = Startup()
    _die_with_supervisor()
    if ATTEMPT_VARIABLE not in os.environ:
        logs.try_print_start()  # first: whatever follows belongs to this start
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    run = Run(Path(run_folder))
    request = run.intent(intent).request
    code = 0 if _leaves(run, intent) else _work(run, intent, request, group, signals, startup)
    # The outcome is on record. A failed rank must not be held by a collective that waits for a dead peer, and a
    # finished one must not be failed by gloo, which now and then aborts while the interpreter winds down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _work(run: Run, intent: int, request: dict[str, Any], group: int, signals: StopSignals, startup: Startup) -> int:
    """Do the work; return the exit code."""
    # Imported here: an array of preprocessing tasks needs no torch.
    if request["training"]:
        startup.begins("imports")
        from slurm import training_job

        return training_job.train(run, intent, request, signals, startup)
    from slurm import array_job

    return array_job.run_tasks(run, intent, request, group, signals)


def _leaves(run: Run, intent: int) -> bool:
    """Prepare a Slurm job; return whether there is nothing for it to do.

    So a second job of a launch, or one of a launch that a later one replaced, does no harm. Of a supervised process its
    supervisor has seen to all this.
    """
    if ATTEMPT_VARIABLE in os.environ:
        return False
    if scratch := os.environ.get("TMPDIR"):
        Path(scratch).mkdir(mode=0o700, parents=True, exist_ok=True)  # a profile names it, each node makes it
    if run.intent(intent).job is None:
        # Its launcher was killed after Slurm had taken the job and before it could say so.
        job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
        run.resolve_intent(intent, {"executor": "slurm", "ids": [job]})
    if run.is_done():
        log.info("%s is done already: nothing to do", run.name)
        return True
    if (newest := run.newest_intent()) > intent:
        log.warning("launch %d of %s has replaced launch %d, of which this job is: it leaves", newest, run.name, intent)
        return True
    return False


def _die_with_supervisor() -> None:
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):
        os._exit(1)  # it died before the request above


def group_of(first: str) -> int:
    """Group of this process: on Slurm the index in the job array counts on from its first group."""
    supervised = ATTEMPT_VARIABLE in os.environ
    return int(first) + (0 if supervised else int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))


if __name__ == "__main__":
    masked_output.mask_secrets()
    main(sys.argv[1], int(sys.argv[2]), group_of(sys.argv[3]))
