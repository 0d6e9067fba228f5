"""The doctor's look at a cluster: its answers are read as Slurm and cron give them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm import clusters, job_state
from slurm.placement import Placement
from tools import doctor_cluster


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:a100:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0-1),gpu:t4:2,nvme:1", 6),
        ("gpu:nvidia_h100_80gb_hbm3:8(S:0-1),craynetwork:4", 8),
        ("craynetwork:4", 0),
    ],
)
def test_gpus_are_counted_in_a_nodes_resources(gres: str, gpus: int) -> None:
    assert doctor_cluster.gpus_in(gres) == gpus


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("sinfo", "level", "says"),
    [
        ("echo gpu:4; echo gpu:4", "ok", "4 GPUs a node, as there are"),
        ("echo gpu:8", "warning", "have up to 8"),
        ("echo '(null)'; echo gpu:2", "problem", "no node of partition gpu has more than 2"),
        ("exit 1", "problem", "knows no partition gpu, or does not answer"),
        ("exit 0", "problem", "knows no partition gpu, or does not answer"),
    ],
)
def test_the_profile_is_held_against_the_partition(
    sinfo: str, level: str, says: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "sinfo", sinfo)
    monkeypatch.setattr(job_state, "no_slurm", lambda: "")
    profile = Placement(cluster="example", partition="gpu", gpus_per_node=4)
    monkeypatch.setattr(clusters, "defaults", lambda _: profile)
    found = doctor_cluster.profile()
    assert (found.level, says in found.says) == (level, True), found


@pytest.mark.parametrize(
    ("commands", "level", "says"),
    [
        ({}, "warning", "neither scrontab nor crontab is here"),
        ({"crontab": "echo 'no crontab for me' >&2; exit 1"}, "ok", "crontab may call"),
        ({"crontab": "exit 0", "scrontab": "echo 'scrontab is disabled' >&2; exit 1"}, "ok", "crontab may call"),
        ({"scrontab": "echo 'scrontab is disabled' >&2; exit 1"}, "warning", "scrontab is disabled"),
        ({"scrontab": "exit 0"}, "ok", "scrontab may call"),
    ],
)
def test_what_may_call_heal_is_found(
    commands: dict[str, str], level: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in commands.items():
        program(tmp_path, name, text)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor_cluster.heal_by_cron()
    assert (found.level, says in found.says) == (level, True), found


def test_interfaces_are_listed_and_a_profiles_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, state, speed in (
        ("lo", "unknown", ""),
        ("ib0", "up", "200000"),
        ("eth0", "up", "-1"),
        ("eth1", "down", ""),
    ):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "operstate").write_text(f"{state}\n")
        (tmp_path / "net" / name / "speed").write_text(f"{speed}\n")
    (tmp_path / "infiniband/mlx5_0").mkdir(parents=True)
    monkeypatch.setattr(doctor_cluster, "NETWORK", tmp_path / "net")
    monkeypatch.setattr(doctor_cluster, "INFINIBAND", tmp_path / "infiniband")
    found = doctor_cluster.network()
    assert found.level == "ok" and found.says.startswith("eth0, ib0 (200 Gb/s); InfiniBand or RoCE: mlx5_0; ranks take")
    monkeypatch.setattr(clusters, "defaults", lambda _: Placement(interface="ib1"))
    found = doctor_cluster.network()
    assert found.level == "warning" and "takes ib1, which is not up here" in found.says
