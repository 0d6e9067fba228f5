"""What preprocessing costs over bare decoding, how it shares cores, and how it compares with the user's first version.

    python tools/bench/preprocess.py --json preprocess.json
    python tools/bench/preprocess.py --quick --clips data/CelebV-Text/videos/celebvtext_6

cpu_over_ffmpeg_64, _256, _64_256  CPU time of a preprocessing task (decode, scale, compress, write, checksum) over that
                                   of `ffmpeg -threads 1 -f null` on the same clips, its start taken off; recipes' rate
two_tasks_speedup                  two equal tasks one after the other over both at once on two cores, wall time;
                                   two_tasks_other_load: cores that others used meanwhile, which makes it meaningless
old_over_ours_time, _bytes         OpenCV + PIL + CLIP's transform + float32 h5 over ours: CPU time and bytes for the
                                   same first frames of each clip at 224 px, at the source's rate

Clips are in the page cache; stores go to a temporary folder (TMPDIR chooses the disk).
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import av
import numpy as np
import tyro
from einops import reduce

from dalle2_video.data import preprocess
from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import scan
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.video import decode_to_arrays
from dalle2_video.data_config import DataConfig
from experiments.recipes import celebv_text_64, celebv_text_256
from tools.bench import peers
from tools.bench.clips import CLIP_S, clips_in, encoded_clips, lay_out, source_frames
from tools.bench.timing import (
    BenchArguments,
    Goal,
    Results,
    children_cpu_seconds,
    interleaved,
    publish,
)

GOALS = {
    "cpu_over_ffmpeg_64": Goal(high=1.2),
    "cpu_over_ffmpeg_256": Goal(high=1.7),
    "two_tasks_speedup": Goal(low=1.8),
    "old_over_ours_time": Goal(low=5),
    "old_over_ours_bytes": Goal(low=10),
}
OLD_SIZE = 224
OLD_FRAMES = 150
SAME_FRAME = 3.0
"""Frame size and frames a clip of the user's first version; grey levels by which scaling may differ in a block."""


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """Measure preprocessing against bare decoding, two cores and the user's first version."""

    clips: Path | None = None
    """Folder of mp4 files to work on instead of free footage at CelebV-Text's rate; 4 of them, 2 with --quick."""


class Workload:
    """One data root and what is done with it; every method does its work once and returns what it cost."""

    def __init__(self, clips: Sequence[Path], scratch: Path, old_frames: int) -> None:
        self.clips, self.scratch = list(clips), scratch
        self.root = lay_out(scratch / "data", clips)
        self.frames = source_frames(clips)
        self.old_frames = old_frames
        self.bytes = {"ours": 0, "old": 0}

    def config(self, base: DataConfig, **changes: object) -> DataConfig:
        """Return the recipe's settings with all clips in one task."""
        return replace(base, clips_per_shard=len(self.clips), min_frames=1, **changes)  # type: ignore[arg-type]

    def ours(self, config: DataConfig) -> float:
        """Return our CPU time in microseconds a source frame. Raises ValueError if a clip is bad."""
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="task-") as staging:
            return 1e6 * run_one_task(0, self.root, config, Path(staging)) / self.frames

    def ffmpeg(self, binary: str) -> float:
        """Return the CPU time of bare decoding in microseconds a source frame.

        The cost of starting ffmpeg, seen on one frame, is taken off: a task starts once for its many clips.
        """

        def decode(*limit: str) -> None:
            for clip in self.clips:
                source = [binary, "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(clip), "-map", "0:v:0"]
                subprocess.run([*source, *limit, "-f", "null", "-"], check=True)

        start_s = children_cpu_seconds(lambda: decode("-frames:v", "1"))
        return 1e6 * (children_cpu_seconds(decode) - start_s) / (self.frames - len(self.clips))

    def ours_like_old(self) -> float:
        """Return our CPU time in microseconds a stored frame for just the frames of the first version."""
        total = 0.0
        self.bytes["ours"] = 0
        for clip, config in self.like_old():
            with tempfile.TemporaryDirectory(dir=self.scratch, prefix="task-") as staging:
                total += run_one_task(clip, self.root, config, Path(staging))
                shards = Path(staging).glob(f"frames_{OLD_SIZE}/c.*")
                self.bytes["ours"] += sum(path.stat().st_size for path in shards)
        return 1e6 * total / (self.old_frames * len(self.clips))

    def like_old(self) -> list[tuple[int, DataConfig]]:
        """Return (task, settings) for each clip: every source frame up to `old_frames`, at its own rate, at 224 px."""
        base = replace(celebv_text_256.recipe().data, frame_sizes=(OLD_SIZE,), clips_per_shard=1, min_frames=1)
        return [
            (number, replace(base, fps=_rate(clip), max_frames=self.old_frames))
            for number, clip in enumerate(self.clips)
        ]

    @cached_property
    def ends(self) -> np.ndarray:
        """Return 4 x 4 block means of each clip's first and last compared frame: (clips, 2, 3, 4, 4) in [0, 255]."""
        ends = []
        for task, config in self.like_old():
            frames = decode_to_arrays(Source.of_file(self.clips[task]), config)[1][OLD_SIZE]
            ends.append(reduce(frames[[0, -1]].astype(float), "t (y h) (x w) c -> t c y x", "mean", y=4, x=4))
        return np.stack(ends)

    def old(self, child: peers.Peers) -> float:
        """Return the first version's CPU time in microseconds a stored frame."""
        out = self.scratch / "old.h5"
        names = [str(clip) for clip in self.clips]
        answer = child.call("old_preprocess", clips=names, frames=self.old_frames, size=OLD_SIZE, out=str(out))
        difference = np.abs(np.array(answer["ends"]) - self.ends).max()
        if difference > SAME_FRAME:
            raise RuntimeError(f"the first version read other frames: a block differs by {difference:.1f} of 255")
        self.bytes["old"] = answer["bytes"]
        out.unlink()
        return 1e6 * answer["cpu_s"] / (self.old_frames * len(self.clips))


def _rate(path: Path) -> float:
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
    assert rate is not None, path
    return float(rate)


def run_one_task(task: int, root: Path, config: DataConfig, staging: Path) -> float:
    """Do what an array task does with one shard; return the CPU time of it and of the decoding process in seconds.

    The start of the decoding process is not counted: a task starts it once for its many clips. Raises ValueError if a
    clip is bad: it would count as fast.
    """
    with DecodeProcess(config) as decoder:
        start_s = time.process_time()
        record = preprocess.run_task(task, scan(root, config), root, config, staging, decoder).record
        spent_s = time.process_time() - start_s + decoder.cpu_s
    bad = [f"{clip['clip_id']}: {clip['bad']}" for clip in record["clips"] if clip["bad"] is not None]
    if bad:
        raise ValueError(f"clips that cannot be measured: {'; '.join(bad)}")
    return spent_s


class TwoTasks:
    """The same clips twice, as two equal tasks: one after the other, or each in a process of its own."""

    def __init__(self, workload: Workload) -> None:
        self.root = lay_out(workload.scratch / "twice", workload.clips, copies=2)
        self.config = workload.config(celebv_text_64.recipe().data)
        self.scratch = workload.scratch
        self.other_load: list[float] = []
        # Started and warmed here: an array's processes start once and then work for hours.
        self.pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
        for ready in [self.pool.submit(os.getpid) for _ in range(2)]:
            ready.result()

    def one_after_the_other(self) -> float:
        """Return the wall time of both tasks in one process."""
        return self._wall_s(lambda staging: self.pool.submit(_both_tasks, self.root, self.config, staging).result())

    def at_once(self) -> float:
        """Return the wall time of both tasks in two processes."""

        own_s: list[float] = []

        def work(staging: Path) -> None:
            tasks = [
                self.pool.submit(run_one_task, task, self.root, self.config, staging / str(task)) for task in (0, 1)
            ]
            own_s.append(sum(task.result() for task in tasks))

        busy_s = _machine_busy_s()
        wall_s = self._wall_s(work)
        self.other_load.append((_machine_busy_s() - busy_s - own_s[0]) / wall_s)
        return wall_s

    def _wall_s(self, work: Callable[[Path], object]) -> float:
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="tasks-") as staging:
            start = time.perf_counter()
            work(Path(staging))
            return time.perf_counter() - start

    def close(self) -> None:
        """End both processes."""
        self.pool.shutdown()


def _machine_busy_s() -> float:
    """Return the CPU time that all processes of this machine have used, and what a hypervisor took from it."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _both_tasks(root: Path, config: DataConfig, staging: Path) -> None:
    for task in (0, 1):
        run_one_task(task, root, config, staging / str(task))


def measure(clips: Sequence[Path], scratch: Path, old_frames: int, *, both_sizes: bool) -> Results:
    """Measure everything that this machine allows on these clips."""
    results = Results(unit="µs CPU a frame (source frames; like_old and old: stored frames; two tasks: s)")
    workload = Workload(clips, scratch, old_frames)
    small = workload.config(celebv_text_64.recipe().data)
    both = workload.config(celebv_text_256.recipe().data)
    contestants: dict[str, Callable[[], float]] = {
        "ours 64 px": lambda: workload.ours(small),
        "ours 256 px": lambda: workload.ours(replace(both, frame_sizes=(256,))),
        f"ours like old ({OLD_SIZE} px)": workload.ours_like_old,
    }
    if both_sizes:
        contestants["ours 64 and 256 px"] = lambda: workload.ours(both)
    with ExitStack() as stack:
        binary = shutil.which("ffmpeg")
        try:
            child = stack.enter_context(peers.running())
        except peers.PeersMissing as error:
            results.absent |= {"old": str(error), "old_over_ours_bytes": str(error)}
            if binary is None:
                results.absent["ffmpeg"] = f"no ffmpeg on this machine, and {error}"
        else:
            binary = child.ffmpeg()
            contestants["old"] = lambda: workload.old(child)
        if binary is not None:
            decoder = binary
            contestants["ffmpeg"] = lambda: workload.ffmpeg(decoder)
        if len(os.sched_getaffinity(0)) >= 2:
            two = TwoTasks(workload)
            stack.callback(two.close)
            contestants |= {"one after the other": two.one_after_the_other, "at once": two.at_once}
        else:
            results.absent["at once"] = "this process may use one core only"
        results.rounds = interleaved(contestants)
        if "at once" in contestants:
            results.figures["two_tasks_other_load"] = statistics.median(two.other_load)
    results.ratio("cpu_over_ffmpeg_64", "ours 64 px", "ffmpeg")
    results.ratio("cpu_over_ffmpeg_256", "ours 256 px", "ffmpeg")
    if both_sizes:
        results.ratio("cpu_over_ffmpeg_64_256", "ours 64 and 256 px", "ffmpeg")
    results.ratio("two_tasks_speedup", "one after the other", "at once")
    results.ratio("old_over_ours_time", "old", f"ours like old ({OLD_SIZE} px)")
    if "old" in results.rounds:
        results.figures["old_over_ours_bytes"] = workload.bytes["old"] / workload.bytes["ours"]
    return results


def main(arguments: Arguments) -> None:
    """Measure and print. Raises ValueError with a remedy if there are no clips to work on."""
    count = 2 if arguments.quick else 4
    if arguments.clips is not None:
        clips = clips_in(arguments.clips)[:count]
    else:
        clips = encoded_clips(count, 4.0 if arguments.quick else CLIP_S)
    shortest = min(source_frames([clip]) for clip in clips)
    old_frames = min(shortest, OLD_FRAMES // 5 if arguments.quick else OLD_FRAMES)
    with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as scratch:
        results = measure(clips, Path(scratch), old_frames, both_sizes=not arguments.quick)
    publish(results, GOALS, arguments)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
