"""The peers' own environment, made once from requirements.txt in the user's cache, and a child process that runs there.

The product never imports a peer: `peer_work.py` runs under the peers' Python and answers one JSON line for each JSON
line. Invariant: without the environment there is a PeersMissing with the reason, from which a bench makes an absent
figure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

_HERE = Path(__file__).resolve().parent
_INSTALL_LIMIT_S = 300


class PeersMissing(Exception):  # noqa: N818 - a fact about the machine, not a failure of the bench
    """The peers' environment cannot be made here; the message says why."""


def cache() -> Path:
    """Return the benches' folder in the user's cache, made if need be. Anything in it may be deleted at any time."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "dalle2_video" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def peers_python(requirements_file: str = "requirements.txt", *, beside_product: bool = False) -> Path:
    """Return the peers' Python, installing them on the first call. Raises PeersMissing.

    requirements_file: of this folder; each has an environment of its own. beside_product: nothing but what the file
    names is installed; all else, torch first, is found among the product's packages.
    """
    requirements = _HERE / requirements_file
    packages = sysconfig.get_path("purelib") if beside_product else ""
    key = hashlib.sha256(requirements.read_bytes() + f"{sys.version}{packages}".encode()).hexdigest()[:10]
    environment = cache() / f"peers-{key}"
    if not environment.is_dir():
        Console(stderr=True).print(f"installing the peers into {environment}, once", highlight=False)
        _install(requirements, environment, packages)
    return environment / "bin" / "python"


def _install(requirements: Path, environment: Path, packages: str) -> None:
    with tempfile.TemporaryDirectory(dir=environment.parent, prefix=".peers-") as scratch:
        made = Path(scratch) / "environment"
        venv.create(made, with_pip=False, symlinks=True)
        command = [sys.executable, "-m", "pip", "--python", str(made / "bin" / "python"), "install", "--quiet"]
        command += ["--disable-pip-version-check", "--no-compile", "--only-binary=:all:", "-r", str(requirements)]
        if packages:
            command.append("--no-deps")
            (site,) = made.glob("lib/python*/site-packages")
            (site / "product.pth").write_text(packages + "\n")
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()] or [f"exit code {error.returncode}"]
            raise PeersMissing(f"pip cannot install {requirements.name}: {lines[-1]}") from error
        except subprocess.TimeoutExpired as error:
            raise PeersMissing(f"pip did not install {requirements.name} within {_INSTALL_LIMIT_S} s") from error
        try:
            made.rename(environment)
        except OSError:
            if not environment.is_dir():  # otherwise another bench was faster, and its environment is as good
                raise


class Peers:
    """A running child in the peers' environment."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a function of `peer_work` there and return its answer. Raises RuntimeError if the child fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError(f"the peers' process died before {task}; its message is above") from error
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process died in {task}; its message is above")
        return json.loads(line)

    def ffmpeg(self) -> str:
        """Return the path of an ffmpeg binary: the machine's own, else that of the package imageio-ffmpeg."""
        return shutil.which("ffmpeg") or self.call("ffmpeg")["path"]


@contextmanager
def running(command: Sequence[str] | None = None) -> Iterator[Peers]:
    """Run the peers' child as long as the block lasts; command: another one than `peer_work`. Raises PeersMissing."""
    command = command or [str(peers_python()), str(_HERE / "peer_work.py")]
    # One thread each, as a preprocessing task or a loader worker has.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    single["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | single
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Peers(process)
        finally:
            process.kill()
