"""Profiles of clusters, one small file each: what `--cluster NAME`, or the name of the host, stands for.

A profile is a module with

    HOSTS = ("login*.cluster.example.org",)     hosts on which it is taken without being asked for; may be ()
    def placement() -> Placement: ...           the defaults of every launch on this cluster

`example.py` shows each setting. The command line changes any of them for one launch.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import pkgutil
import socket
from types import ModuleType

from slurm import job_state
from slurm.placement import Placement

PLAIN = ("auto", "slurm", "local")
"""What --cluster takes besides the names of profiles."""


def names() -> list[str]:
    """Names of the profiles."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def defaults(cluster: str) -> Placement:
    """Return the placement that a launch with `--cluster CLUSTER` starts from; ValueError lists the profiles."""
    if cluster in ("slurm", "local"):
        return Placement(cluster=cluster)
    if cluster == "auto":
        found = "" if job_state.no_slurm() else of_host(socket.gethostname())
        return defaults(found) if found else Placement()
    if cluster not in names():
        raise ValueError(f"--cluster {cluster}: no such profile in slurm/clusters; there are: {', '.join(_choices())}")
    return dataclasses.replace(_module(cluster).placement(), cluster=cluster)


def of_host(host: str) -> str:
    """Return the profile that names the host, "" where none does; ValueError where several do."""
    found = [name for name in names() if any(fnmatch.fnmatchcase(host, pattern) for pattern in _module(name).HOSTS)]
    if len(found) > 1:
        raise ValueError(f"profiles {', '.join(found)} all name the host {host}; choose one: --cluster {found[0]}")
    return found[0] if found else ""


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _choices() -> list[str]:
    return [*PLAIN, *names()]
