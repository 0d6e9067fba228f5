"""A clip that makes the decoder hang, crash or use up the memory is a bad clip; the next one decodes as if alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from video_fixtures import KINDS, encode, footage_frames, source_of

from dalle2_video.data.archives import Source
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.video import BadClip, decode_to_arrays
from dalle2_video.data_config import DataConfig, DecodeConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = DataConfig(frame_sizes=(8, 32), size_frames=(50, 10), min_frames=1, max_frames=50)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    return source_of(encode(path, footage_frames(), KINDS["h264"]))


@pytest.fixture
def process() -> Iterator[DecodeProcess]:
    with DecodeProcess(CONFIG) as running:
        yield running


@pytest.fixture
def impatient() -> Iterator[DecodeProcess]:
    with DecodeProcess(replace(CONFIG, decode=DecodeConfig(timeout_s=2.0))) as running:
        yield running


@pytest.fixture
def hanging(tmp_path: Path) -> Source:
    """A pipe in which nobody writes: to open it takes for ever."""
    os.mkfifo(tmp_path / "x.mp4")
    return Source(path=tmp_path / "x.mp4", size=1000)


def assert_decodes(process: DecodeProcess, clip: Source) -> None:
    facts, expected = decode_to_arrays(clip, CONFIG)
    for frames in process.frames.values():
        frames[:] = 0
    assert process.decode(clip) == facts and facts.num_frames == 24
    for size, frames in expected.items():
        assert frames.any() and len(frames) == min(24, CONFIG.frames_at(size))
        np.testing.assert_array_equal(process.frames[size][: len(frames)], frames)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_while_it_decodes(process: DecodeProcess, hanging: Source, number: int, times: int) -> threading.Thread:
    """Signal the child once it reads the pipe, and those that take its place, `times` in all."""

    def kill() -> None:
        pid = 0
        for _ in range(times):
            while process.pid == pid:
                time.sleep(0.005)
            while True:
                try:
                    writer = os.open(hanging.path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError as error:
                    assert error.errno == errno.ENXIO  # nobody reads yet
                    time.sleep(0.005)
                else:
                    break
            pid = process.pid
            os.kill(pid, number)
            os.close(writer)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_frames_and_facts_are_those_of_decoding_here(process: DecodeProcess, clip: Source) -> None:
    pid = process.pid
    for _ in range(3):
        assert_decodes(process, clip)
    assert process.pid == pid


def test_verdicts_and_errors_of_the_file_system_come_through(
    process: DecodeProcess, clip: Source, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("a caption\n" * 100)
    with pytest.raises(BadClip, match="holds text, no video: 'a caption a"):
        process.decode(source_of(tmp_path / "text.mp4"))
    with pytest.raises(FileNotFoundError) as caught:
        process.decode(Source(path=tmp_path / "gone.mp4", size=1))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "gone.mp4"))
    assert_decodes(process, clip)


def test_a_clip_that_hangs_is_bad_and_the_next_decodes(impatient: DecodeProcess, hanging: Source, clip: Source) -> None:
    pid = impatient.pid
    with pytest.raises(BadClip, match=r"^decoding did not end within 2 s, twice$"):
        impatient.decode(hanging)
    assert not alive(pid)
    assert_decodes(impatient, clip)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, r"the decoder crashed \(SIGSEGV\), twice"),
        (signal.SIGABRT, r"the decoder crashed \(SIGABRT\), twice"),
        (signal.SIGKILL, "the decoding process was killed, most likely for want of memory, twice"),
    ],
)
def test_a_decoder_that_dies_twice_means_a_bad_clip(
    impatient: DecodeProcess, hanging: Source, clip: Source, number: int, reason: str
) -> None:
    killer = kill_while_it_decodes(impatient, hanging, number, times=2)
    with pytest.raises(BadClip, match=f"^{reason}$"):
        impatient.decode(hanging)
    killer.join()
    assert_decodes(impatient, clip)


def test_a_decoder_that_dies_once_is_tried_again(impatient: DecodeProcess, hanging: Source, clip: Source) -> None:
    killer = kill_while_it_decodes(impatient, hanging, signal.SIGSEGV, times=1)
    reason = r"^the decoder crashed \(SIGSEGV\); tried again, decoding did not end within 2 s$"
    with pytest.raises(BadClip, match=reason):
        impatient.decode(hanging)
    killer.join()
    assert_decodes(impatient, clip)


def test_a_decoder_that_died_between_two_clips_is_replaced(process: DecodeProcess, clip: Source) -> None:
    assert_decodes(process, clip)
    pid = process.pid
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.005)
    assert_decodes(process, clip)


def test_a_clip_that_needs_too_much_memory_is_bad(clip: Source, tmp_path: Path) -> None:
    # Pictures of 8000 x 8000 with all chroma: about 200 MB each, and the decoder keeps several.
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "x264-params": "ref=4:bframes=0:threads=1:rc-lookahead=0:sync-lookahead=0"}
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 8000, 8000, "yuv444p"
        frame = av.VideoFrame(8000, 8000, "yuv444p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(8):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with DecodeProcess(replace(CONFIG, decode=DecodeConfig(memory_gb=1.0))) as process:
        with pytest.raises(BadClip, match="needs more than 1 GiB to decode"):
            process.decode(source_of(path))
        assert_decodes(process, clip)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_meant_for_the_task_are_left_to_it(process: DecodeProcess, clip: Source, number: int) -> None:
    pid = process.pid
    os.kill(pid, number)  # perhaps before it has done anything
    assert_decodes(process, clip)
    os.kill(pid, number)
    assert_decodes(process, clip)
    assert process.pid == pid
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


PARENT = """
import sys, threading
from pathlib import Path
from dalle2_video.data.archives import Source
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data_config import DataConfig

if __name__ == "__main__":
    process = DecodeProcess(DataConfig())
    {before}
    print(process.pid, flush=True)
    process.decode(Source(path=Path(sys.argv[1]), size=1000))
"""


def run_parent(path: Path, *, before: str = "") -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(before=before), str(path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("idle", [True, False], ids=["between clips", "while it hangs"])
def test_the_child_dies_with_its_parent(hanging: Source, idle: bool) -> None:
    parent, child = run_parent(hanging.path, before="print(process.pid, flush=True); input()" if idle else "")
    assert alive(child)
    time.sleep(0.5)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_child_outlives_the_thread_that_started_it(clip: Source) -> None:
    made: list[DecodeProcess] = []
    thread = threading.Thread(target=lambda: made.append(DecodeProcess(CONFIG)))
    thread.start()
    thread.join()
    (process,) = made
    with process:
        pid = process.pid
        assert_decodes(process, clip)
        assert process.pid == pid


def test_the_child_imports_nothing_of_the_task(process: DecodeProcess, clip: Source) -> None:
    assert_decodes(process, clip)
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    code = "import sys, dalle2_video.data.decode_process; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_close_ends_the_child_and_can_be_repeated(clip: Source) -> None:
    process = DecodeProcess(CONFIG)
    process.decode(clip)
    pid = process.pid
    process.close()
    process.close()
    assert not alive(pid)


def test_an_interrupted_decode_does_not_answer_the_next_one(
    impatient: DecodeProcess, hanging: Source, clip: Source
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.6)
        with pytest.raises(StopError):
            impatient.decode(hanging)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert_decodes(impatient, clip)
