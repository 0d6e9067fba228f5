"""What runs on a node: one process a rank of a training, one a group of an array.

    main(run folder, intent, group)

reads the run and the intent and hands over to `training_job` or `array_job`, where the registry and the science meet.
Nothing is raised: the outcome is on record, and the exit code tells a supervisor or srun to end the other ranks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from experiments.run import Run
from slurm.attempt import SUPERVISOR_VARIABLE

_PR_SET_PDEATHSIG = 1


def main(run_folder: str, intent: int, group: int = 0) -> None:
    """Run one rank of a training or one group of an array."""
    _die_with_supervisor()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    run = Run(Path(run_folder))
    request = run.intent(intent).request
    # Imported here: an array of preprocessing tasks needs no torch.
    if request["training"]:
        from slurm import training_job

        code = training_job.train(run, intent, request)
    else:
        from slurm import array_job

        code = array_job.run_tasks(run, intent, request, group)
    # The outcome is on record. A failed rank must not be held by a collective that waits for a dead peer, and a
    # finished one must not be failed by gloo, which now and then aborts while the interpreter winds down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with_supervisor() -> None:
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):
        os._exit(1)  # it died before the request above


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
