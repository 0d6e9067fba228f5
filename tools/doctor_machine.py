"""Checks of this machine: versions, GPUs, caches, limits, Slurm, codecs."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from slurm import job_state
from tools import doctor_cluster
from tools.doctor_finding import Finding, ok, problem, warning

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL = "python -m pip install -e ."
TIMEOUT_S = 120
OPEN_FILES = 4096
SHARED_MEMORY = 1 << 30
STALE_LOCK_S = 3600.0
NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "pvfs", "wekafs", "9p", "fuse.sshfs")


def versions() -> Iterator[Finding]:
    """Compare what is installed with pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    here = ".".join(map(str, sys.version_info[:3]))
    wanted = project["requires-python"]
    if _fits(here, wanted):
        yield ok("python", here)
    else:
        yield problem("python", f"{here}, and {wanted} is needed", "make an environment with such a Python")
    fitting = []
    for requirement in project["dependencies"]:
        name, wanted = _split(requirement)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield problem(name, "is not installed", INSTALL)
            continue
        if _fits(found, wanted):
            fitting.append(f"{name} {found}" if name in ("torch", "deepspeed", "zarr") else name)
        else:
            yield warning(name, f"{found}, and the tests ran with {wanted}", INSTALL)
    if fitting:
        yield ok("packages", f"{len(fitting)} fit, among them {', '.join(one for one in fitting if ' ' in one)}")


def _split(requirement: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", requirement)
    assert match is not None, requirement
    return match[1], match[2]


def _fits(version: str, wanted: str) -> bool:
    """Tell whether a version satisfies `>=3.11,<3.13` or `==1.2`; a local part such as +cu128 does not matter."""
    found = _numbers(version)
    for condition in filter(None, wanted.split(",")):
        match = re.fullmatch(r"(==|>=|<)(.+)", condition.strip())
        assert match is not None, wanted
        other = _numbers(match[2])
        if not {"==": found == other, ">=": found >= other, "<": found < other}[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def gpus() -> Finding:
    """Check that torch sees the GPUs that there are."""
    listed = _ask(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if not listed:
        return ok("GPU", "none on this machine (a login node needs none)")
    names = listed.strip().splitlines()
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count())"
    answer = (_ask([sys.executable, "-c", code]) or "? None 0").split()
    if int(answer[-1]) == 0:
        return problem(
            "GPU",
            f"{len(names)} x {names[0]}, and torch {answer[0]} (CUDA {answer[1]}) sees none",
            "install the CUDA build of torch that fits the driver; see whether CUDA_VISIBLE_DEVICES hides them",
        )
    return ok("GPU", f"torch {answer[0]} (CUDA {answer[1]}) sees {answer[-1]} x {names[0]}")


def caches() -> Iterator[Finding]:
    """Check where compiled code and downloads are kept, and that no lock of a dead process is there."""
    home = Path.home()
    places = {
        "TORCH_EXTENSIONS_DIR": home / ".cache/torch_extensions",
        "TRITON_CACHE_DIR": home / ".triton/cache",
        "HF_HOME": home / ".cache/huggingface",
    }
    for variable, default in places.items():
        folder = Path(os.environ.get(variable) or default)
        kind = _kind_of(folder)
        if kind.startswith(NETWORK):
            yield warning(variable, f"{folder} is on {kind}", f"export {variable}=/a/local/disk")
        locks = [path for pattern in ("**/lock", "**/*.lock") for path in folder.glob(pattern) if _stale(path)]
        # Hugging Face leaves its lock files lie, unlocked; torch waits until its own is gone.
        if locks and variable != "HF_HOME":
            yield problem(variable, f"a lock that nobody takes away: {locks[0]}", f"rm {locks[0]}")
        if not kind.startswith(NETWORK) and (not locks or variable == "HF_HOME"):
            yield ok(variable, f"{folder} ({kind})")


def temporary() -> Finding:
    """Check the folder in which jobs keep their caches."""
    folder = Path(tempfile.gettempdir())
    kind, free = _kind_of(folder), shutil.disk_usage(folder).free
    if kind.startswith(NETWORK) or free < 1 << 30:
        return warning("TMPDIR", f"{folder} ({kind}), {free / 2**30:.1f} GiB free", "export TMPDIR=/a/local/disk")
    return ok("TMPDIR", f"{folder} ({kind}), {free / 2**30:.1f} GiB free")


def _kind_of(path: Path) -> str:
    """Return the type of the file system that a path lies on, or would."""
    resolved = path.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    fitting = [(place, kind) for place, kind in mounts if resolved.is_relative_to(place.replace("\\040", " "))]
    return max(fitting, key=lambda mount: len(mount[0]))[1] if fitting else "unknown"


def _stale(lock: Path) -> bool:
    try:
        return time.time() - lock.stat().st_mtime > STALE_LOCK_S
    except OSError:
        return False


def open_files() -> Finding:
    """Check how many files a process may have open: loader workers share tensors by them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        return warning("open files", f"{soft} at once (up to {hard})", f"ulimit -n {OPEN_FILES}")
    return ok("open files", f"{'any number' if soft < 0 else soft} at once")


def shared_memory() -> Finding:
    """Check the memory through which loader workers hand batches over."""
    found = os.statvfs("/dev/shm")
    size = found.f_blocks * found.f_frsize
    says = f"/dev/shm holds {size / 2**30:.2f} GiB"
    if size < SHARED_MEMORY:
        return warning("shared memory", says, "use --workers 0, or give a container more (docker run --shm-size 8g)")
    return ok("shared memory", says)


def slurm() -> Iterator[Finding]:
    """Check what of Slurm a run relies on."""
    if lacking := job_state.no_slurm():
        yield ok("Slurm", f"not here ({lacking}): runs are started on this machine")
        return
    version = (_ask(["sbatch", "--version"]) or "of unknown version").strip()
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", _ask(["scontrol", "show", "config"]) or "", re.MULTILINE))
    if not config:
        yield problem("Slurm", f"{version}, and its controller does not answer", "ask with: scontrol ping")
        return
    names = ("MaxArraySize", "JobRequeue", "PreemptMode", "PreemptType", "KillWait", "MinJobAge")
    yield ok("Slurm", f"{version}; " + ", ".join(f"{name} {config[name]}" for name in names if name in config))
    if config.get("AccountingStorageType", "none").endswith("none"):
        yield warning(
            "Slurm accounting",
            f"there is none: how a job ended is forgotten after {config.get('MinJobAge', 'some time')}",
            "a run whose job nobody knows any more is shown as unknown; give --retry to go on with it",
        )
    if config.get("MaxArraySize", "1001") in ("0", "1"):
        yield warning("Slurm arrays", "this cluster takes none", "give --tasks 1")


def codecs() -> Finding:
    """Check that videos can be read and written."""
    import av

    missing = []
    for mode, name in (("r", "h264"), ("r", "hevc"), ("r", "vp9"), ("w", "libx264")):
        try:
            av.codec.Codec(name, mode)  # type: ignore[arg-type]
        except (ValueError, av.error.FFmpegError):
            missing.append(f"{name} {'decoder' if mode == 'r' else 'encoder'}")
    if missing:
        return problem("codecs", f"PyAV {av.__version__} has no {', no '.join(missing)}", "pip install --force av")
    return ok("codecs", f"PyAV {av.__version__} reads h264, hevc and vp9 and writes h264")


def _ask(command: list[str]) -> str | None:
    """Return what a command prints, None where it fails or is not there."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


CHECKS: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
    versions, gpus, caches, temporary, open_files, shared_memory, slurm, *doctor_cluster.CHECKS, codecs
)  # fmt: skip
