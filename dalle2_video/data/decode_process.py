"""Decode in a child process, so that a clip that makes the decoder hang, crash or use up the memory is only a bad clip.

The child lives from clip to clip. Its frames are in memory that both processes map; requests and answers go through a
socket, whose closing also ends the child when this process dies. Invariant: `decode` returns, or raises what
`video.decode` raises, whatever is in the file, and at the latest after twice the configured time and a restart.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair

import av
import numpy as np

from dalle2_video.data.archives import Source
from dalle2_video.data.video import BadClip, ClipFacts, decode, frame_shapes
from dalle2_video.data_config import DataConfig

_START_S = 120.0
"""Importing from a busy file system can take long."""
_DEATH_S = 30.0
"""A killed process is gone at once, unless it waits for a file system that does not answer."""
# Slurm signals every process of a step, a terminal every process of a job: whether to stop is for the parent to decide.
_LEFT_TO_THE_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}


class DecodeProcess:
    """A context manager; not for several threads at a time."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        # Not a file in /dev/shm, which is small in containers. Pages that nobody writes cost nothing.
        self._memory = os.memfd_create("frames")
        self.frames = _map_frames(self._memory, config)
        """What the last `decode` wrote, as described there: (frames, size, size, 3) uint8 for each size."""
        self.cpu_s = 0.0
        """CPU time that decoding has taken so far, starts of the child not counted."""
        self._start()

    def __enter__(self) -> DecodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the child; another one after a child had to be replaced."""
        return self._child.pid

    def decode(self, source: Source) -> ClipFacts:
        """Decode a clip into `frames`, where it stays until the next call.

        A clip at which the child hangs or dies is tried once more in a new one. Raises BadClip and OSError as
        `video.decode` does, and BadClip for clips that end two children or need more memory than the settings allow;
        RuntimeError if no child can be started.
        """
        found = self._attempt(source)
        if isinstance(found, ClipFacts):
            return found
        again = self._attempt(source)
        if isinstance(again, ClipFacts):
            return again
        raise BadClip(f"{found}, twice" if found == again else f"{found}; tried again, {again}")

    def close(self) -> None:
        """End the child and give up the memory, which is free once the views of `frames` are gone."""
        self._stop()
        self.frames = {}
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _attempt(self, source: Source) -> ClipFacts | str:
        """Return what the child found; or, with a new child in its place, what became of it."""
        try:
            answer = self._ask(source)
        except (EOFError, ConnectionError):
            return _ending(self._replace(source))
        except BaseException:
            self._replace(source)  # the answer, when it comes, must not be taken for that of the next clip
            raise
        if answer is None:
            self._replace(source)
            return f"decoding did not end within {self.config.decode.timeout_s:g} s"
        if isinstance(answer, MemoryError):
            self._replace(source)  # something may still hold the memory
            raise BadClip(f"needs more than {self.config.decode.memory_gb:g} GiB to decode")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, source: Source) -> ClipFacts | Exception | None:
        """Return the child's answer, None if none came in time."""
        if not self._ready:
            self._await_start()
        began_s = _cpu_s(self._child.pid)
        self._connection.send(source)
        if not self._connection.poll(self.config.decode.timeout_s):
            return None
        answer = self._connection.recv()
        self.cpu_s += _cpu_s(self._child.pid) - began_s
        return answer

    def _start(self) -> None:
        ours, theirs = socketpair()
        # -P: modules in the working folder must not come before libraries of the same name.
        command = [sys.executable, "-P", "-m", "dalle2_video.data.decode_process"]
        # Blocked signals stay blocked in a new process.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
        try:
            with theirs:
                self._child = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(self._memory)],
                    pass_fds=(theirs.fileno(), self._memory),
                    stdin=subprocess.DEVNULL,
                    env=_environment(),
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        self._connection = Connection(ours.detach())
        self._connection.send(self.config)
        self._ready = False

    def _await_start(self) -> None:
        try:
            if not self._connection.poll(_START_S):
                raise RuntimeError(f"the decoding process did not start within {_START_S:g} s")
            self._ready = self._connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("the decoding process did not start; it wrote the reason above") from None

    def _replace(self, source: Source) -> int:
        """End the child if it has not ended, start another, and return the exit code of the old."""
        code = self._stop()
        if code is None:
            raise TimeoutError(errno.ETIMEDOUT, "the file system does not answer", str(source.path))
        self._start()
        return code

    def _stop(self) -> int | None:
        """End the child and return its exit code, None if it does not even die."""
        self._connection.close()
        self._child.kill()  # without effect on one that has ended
        try:
            return self._child.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return None


def _cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used; Linux makes the number of its clock from the pid."""
    return time.clock_gettime(~pid << 3 | 2)


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the decoding process was killed, most likely for want of memory"
    if code < 0:
        return f"the decoder crashed ({signal.Signals(-code).name})"
    return f"the decoding process ended with exit code {code}"


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    inherited = os.environ.get("PYTHONPATH")
    # One thread, and no memory set aside for more.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else str(root)}


def _map_frames(memory: int, config: DataConfig) -> dict[int, np.ndarray]:
    shapes = frame_shapes(config)
    os.ftruncate(memory, sum(int(np.prod(shape)) for shape in shapes.values()))
    mapped = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
    frames, begin = {}, 0
    for size, shape in shapes.items():
        end = begin + int(np.prod(shape))
        frames[size] = mapped[begin:end].reshape(shape)
        begin = end
    return frames


def _serve(connection: Connection, memory: int) -> None:
    """Be the child: decode what is asked for until the parent is gone."""
    threading.Thread(target=_exit_with_parent, args=(connection.fileno(),), daemon=True).start()
    config: DataConfig = connection.recv()
    frames = _map_frames(memory, config)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, int(config.decode.memory_gb * 2**30))
    av.logging.set_level(av.logging.ERROR)  # captured below; nothing is printed
    connection.send(True)
    while True:
        try:
            source: Source = connection.recv()
        except EOFError:
            return
        answer: ClipFacts | Exception
        with av.logging.Capture(local=False) as log:
            try:
                answer = decode(source, config, frames)
            except (BadClip, OSError, MemoryError) as error:
                # Decoders report a picture that they cannot allocate as damage, and the cause in the log only.
                starved = any(message.startswith("get_buffer() failed") for _, _, message in log)
                answer = MemoryError() if starved else error
            except Exception as error:
                # A fault of ours that one clip in many brings out must not end the task. Here it can be seen.
                traceback.print_exc()
                answer = BadClip(f"decoding failed with {error!r}")
        connection.send(answer)


def _exit_with_parent(socket: int) -> None:
    # The parent may die while a decoder hangs. Asked for no event, poll waits until the other end is closed.
    ended = select.poll()
    ended.register(socket, 0)
    ended.poll()
    os._exit(0)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
