"""All runs under $DALLE2_VIDEO_HOME: made once for an identity, found again, listed. Never imports torch."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from experiments import files
from experiments.run import Run, RunSpec, created_time

HOME_VARIABLE = "DALLE2_VIDEO_HOME"
_SHOWN_MATCHES = 5


def default_home() -> Path:
    """Return the registry's folder: $DALLE2_VIDEO_HOME, or ~/dalle2_video."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / "dalle2_video").expanduser().absolute()


class Registry:
    """All runs below one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        files.follow_group_mode(home)

    def check_writable(self, *, free_bytes: int = 64 << 20) -> None:
        """Raise ValueError with the remedy unless a run can be created here."""
        remedy = f"choose another folder: export {HOME_VARIABLE}=/path/on/the/shared/file/system"
        probe = self.home / f".probe-{uuid.uuid4().hex}"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0" * 4096)
        except OSError as error:
            raise ValueError(f"{HOME_VARIABLE}={self.home} cannot be written ({error.strerror}); {remedy}") from error
        finally:
            _try_unlink(probe)
        if self.home.stat().st_mode & stat.S_IWOTH:
            raise ValueError(
                f"{HOME_VARIABLE}={self.home}: everybody may write there, and jobs run code that lies there; close it: "
                f"chmod -R o-w {self.home}"
            )
        free = shutil.disk_usage(self.home).free
        if free < free_bytes:
            raise ValueError(
                f"{HOME_VARIABLE}={self.home}: disk full: {free >> 20} MiB free, {free_bytes >> 20} MiB needed; "
                f"free space or {remedy}"
            )

    def folder(self, stage: str, name: str) -> Path:
        """Folder of a run."""
        return self.home / "runs" / stage / name

    def folder_of(self, spec: RunSpec) -> Path:
        """Folder of the run that has this identity, or where it would be created.

        The recipe's name is in the folder's name but not in the identity: another recipe may have created the run.
        """
        there = [name for name in files.names_in(self.home / "runs" / spec.stage) if name.endswith(f"-{spec.id}")]
        return self.folder(spec.stage, there[0] if there else f"{spec.recipe}-{spec.id}")

    def create(self, spec: RunSpec) -> Run:
        """Create the run or open the one that has this identity.

        Raises ValueError with the differences where a run of the same identity was created with another config: a
        default changed its value since.
        """
        folder = self.folder_of(spec)
        if not (folder / "run.json").exists():
            files.remove_tree(folder)  # what a request to stop leaves where the run is removed at the same moment
        staged = files.staging_folder(self.home / "runs" / spec.stage)
        try:
            made = {"creator": f"{_user()}@{socket.gethostname()}", "created": time.time()}
            made |= {"tracking_id": secrets.token_hex(8)}
            (staged / "run.json").write_bytes(files.encode(asdict(spec) | made))
            if not folder.exists():
                try:
                    files.publish(staged, folder)
                except OSError:
                    # Two launchers at the same moment: the other one's rename came first, and its run is the run.
                    if not folder.exists():
                        raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        run = Run(folder)
        run.check_drift(spec.config)
        return run

    def runs(self, stage: str | None = None) -> Iterator[Run]:
        """Yield the runs, of one stage or of all."""
        for stage_name in [stage] if stage else files.names_in(self.home / "runs"):
            folder = self.home / "runs" / stage_name
            for name in files.names_in(folder):
                if (created := created_time(f"{folder}/{name}")) is not None:
                    yield Run(folder / name, created)

    def find(self, reference: str, stage: str | None = None) -> Run:
        """Return the run whose id or folder name starts with `reference`; ValueError unless there is exactly one."""
        found = [
            run for run in self.runs(stage) if run.id.startswith(reference) or run.folder.name.startswith(reference)
        ]
        if len(found) != 1:
            shown = ", ".join(run.name for run in found[:_SHOWN_MATCHES]) + ", ..." * (len(found) > _SHOWN_MATCHES)
            what = "no run" if not found else f"{len(found)} runs ({shown})"
            raise ValueError(f"{what} matches {reference!r} in {self.home}; see: python tools/runs.py list")
        return found[0]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have a number and no name
        return f"uid{os.getuid()}"


def _try_unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # a probe in a folder that cannot be written was never made
        path.unlink(missing_ok=True)
