"""What launching costs over bare sbatch, and how long it takes to a first step, on a sandbox of Slurm.

    python tools/bench/launcher.py [--quick] [--json FILE] [--scratch FOLDER]

Starts `tools/slurm_sandbox` (root and its packages are needed). Every contestant is a command as a user types it, wall
time: interpreter, imports, reading the data set or the parents, the registry, the copy of the code, sbatch. Jobs are
submitted held and cancelled. Keys of the JSON:

    submit_extra_s        one training job, over bare sbatch in the same round
    array_1000_extra_s    an array of 1,000 preprocessing tasks, over a bare array of 1,000
    list_10000_s          tools/runs.py list with 10,000 runs
    first_step_s          from the start of a rank's process to the end of its first step; startup_*: the parts
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)

from experiments.registry import HOME_VARIABLE, Registry
from slurm.startup import EVENT
from tools.bench.many_runs import write_runs
from tools.bench.timing import ROUNDS, BenchArguments, Goal, Results, interleaved, publish

GOALS = {
    "submit_extra_s": Goal(high=1.5),
    "array_1000_extra_s": Goal(high=1.5),
    "list_10000_s": Goal(high=1.5),
}
SPLIT = ("--data.val-fraction", "0.4")
"""So that a few clips have some on both sides."""
QUICK_STARTS = 2
"""First steps that `--quick` waits for; each takes ten seconds."""


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """What this bench takes."""

    scratch: Path | None = None
    """Folder for data, registries and the sandbox, with a short path; default: the system's."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is done."""

    tasks: int = 1000
    runs: int = 10_000
    rounds: int = ROUNDS
    starts: int = ROUNDS


class Bench:
    """Commands on one sandbox."""

    def __init__(self, scratch: Path, listed: Path, amounts: Amounts) -> None:
        """listed: empty folder for the registry of many runs."""
        self.scratch, self.listed, self.amounts = scratch, listed, amounts
        self.environment = dict(os.environ)
        self._seed = 0

    @contextlib.contextmanager
    def sandbox(self) -> Iterator[None]:
        """Run the sandbox meanwhile."""
        folder = self.scratch / "s"
        self.environment |= {"DALLE2_SANDBOX_DIR": str(folder), "SLURM_CONF": str(folder / "etc/slurm.conf")}
        self.call(str(REPOSITORY / "tools/slurm_sandbox"), "start", "--nodes", "2")
        try:
            yield
        finally:
            self.call(str(REPOSITORY / "tools/slurm_sandbox"), "stop")

    def call(self, *command: str, home: Path | None = None) -> float:
        """Run a command; return the seconds it took. Raises RuntimeError with its words where it fails."""
        started_s = time.perf_counter()
        answer = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment | {HOME_VARIABLE: str(home or self.scratch / "home")},
            capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started_s
        if answer.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{answer.stdout}\n{answer.stderr}")
        return seconds

    def launch(self, stage: str, *flags: str) -> float:
        """Launch a stage on the sandbox, or on this machine where the flags say so."""
        cluster = [] if "--cluster" in flags else ["--cluster", "sandbox"]
        return self.call(sys.executable, f"launch/{stage}.py", *cluster, *flags)

    def prepare(self) -> None:
        """Make a small data set with its store, one of many clips, and a registry of many runs."""
        few, many = self.scratch / "few", self.scratch / "many"
        self.call(sys.executable, "tools/make_sample_data.py", "--out", str(few), "--clips", "12", "--workers", "2")
        self.launch("preprocess", "--cluster", "local", "--data-root", str(few), *SPLIT)
        (video, *_) = sorted((few / "videos/celebvtext_6").glob("*.mp4"))
        texts = sorted((few / "texts").glob(f"*/{video.stem}.txt"))
        for number in range(self.amounts.tasks):
            clip = f"{number:011d}_0_0"
            for path in (video, *texts):
                copy = many / path.relative_to(few).with_name(clip + path.suffix)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.hardlink_to(path)
        write_runs(Registry(self.listed), self.amounts.runs)

    # --- contestants: each returns seconds ---

    def bare_job(self) -> float:
        """Submit one job with sbatch."""
        return self._cancelled(self.call("sbatch", "--hold", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"))

    def launched_job(self) -> float:
        """Launch a training that was never launched before: another seed each time."""
        self._seed += 1
        return self._cancelled(
            self.launch("clip", "--nodes", "2", "--seed", str(self._seed), *SPLIT, "--sbatch", "hold")
        )

    def bare_array(self) -> float:
        """Submit an array with sbatch."""
        last = self.amounts.tasks - 1
        return self._cancelled(
            self.call("sbatch", "--hold", f"--array=0-{last}", "--output=/dev/null", "--wrap=sleep 1")
        )

    def launched_array(self) -> float:
        """Launch a preprocessing that was never launched before."""
        self._seed += 1
        fraction = f"0.4{self._seed:04d}"
        flags = [
            "--data-root",
            str(self.scratch / "many"),
            "--data.clips-per-shard",
            "1",
            "--data.val-fraction",
            fraction,
        ]
        return self._cancelled(
            self.launch("preprocess", *flags, "--tasks", str(self.amounts.tasks), "--sbatch", "hold")
        )

    def list_runs(self) -> float:
        """List the newest of many runs."""
        return self.call(sys.executable, "tools/runs.py", "list", home=self.listed)

    def _cancelled(self, seconds: float) -> float:
        self.call("scancel", f"--user={os.getuid()}")
        return seconds

    def startups(self) -> list[dict[str, float]]:
        """Start trainings one after another; return the parts of each start."""
        found = []
        for number in range(self.amounts.starts):
            flags = ["--seed", str(10_000 + number), "--clip.optim.steps", "2", "--clip.optim.batch-size", "2"]
            self.launch("clip", *flags, *SPLIT, "--wait", "yes")
            run = max(Registry(self.scratch / "home").runs("clip"), key=lambda run: run.created)
            found += [event["seconds"] for event in run.events() if event["event"] == EVENT]
        return found


def measure(scratch: Path, listed: Path, amounts: Amounts) -> Results:
    """Measure all.

    scratch: folder with a short path, since Unix sockets lie below it; listed: folder for the registry of many runs.
    """
    results = Results(unit="seconds")
    bench = Bench(scratch, listed, amounts)
    bench.prepare()
    with bench.sandbox():
        results.rounds = interleaved(
            {
                "sbatch, one job": bench.bare_job,
                "launch/clip.py": bench.launched_job,
                f"sbatch, array of {amounts.tasks}": bench.bare_array,
                f"launch/preprocess.py --tasks {amounts.tasks}": bench.launched_array,
                f"runs.py list, {amounts.runs} runs": bench.list_runs,
            },
            amounts.rounds,
        )
        bare, launched, bare_array, launched_array, lists = results.rounds.values()
        starts = bench.startups()
    results.figures["submit_extra_s"] = _median_extra(launched, bare)
    results.figures["array_1000_extra_s"] = _median_extra(launched_array, bare_array)
    results.figures["list_10000_s"] = statistics.median(lists)
    results.figures["first_step_s"] = statistics.median(sum(parts.values()) for parts in starts)
    for part in starts[0]:
        key = f"startup_{part.replace(' ', '_')}_s"
        results.figures[key] = statistics.median(parts[part] for parts in starts)
    return results


def _median_extra(ours: list[float], bare: list[float]) -> float:
    return statistics.median(one - other for one, other in zip(ours, bare, strict=True))


def main(arguments: Arguments) -> None:
    """Measure and publish."""
    # In memory, where there is little time: to write 10,000 runs to a disk and remove them takes 90 s.
    memory = Path("/dev/shm") if arguments.quick else arguments.scratch
    with (
        tempfile.TemporaryDirectory(prefix="bench", dir=arguments.scratch) as scratch,
        tempfile.TemporaryDirectory(prefix="bench", dir=memory) as listed,
    ):
        Path(scratch).chmod(0o755)
        amounts = Amounts(starts=QUICK_STARTS) if arguments.quick else Amounts()
        publish(measure(Path(scratch), Path(listed), amounts), GOALS, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
