"""`tools/doctor.py`: each trouble is found and told with its remedy, and none hides another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from experiments.registry import HOME_VARIABLE, Registry
from tools import doctor, doctor_machine, doctor_registry
from tools.doctor_finding import Finding

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Leave the other tests' umask as it was: a shared home changes it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_good_home_is_found_good_and_left_as_it_was(home: Path) -> None:
    Registry(home).create(make_spec())
    before = sorted(home.rglob("*"))
    for check in doctor_registry.CHECKS:
        assert check(home).level in ("ok", "warning"), check
    assert doctor_registry.writable(home).level == "ok"
    assert doctor_registry.operations(home).level == doctor_registry.clock(home).level == "ok"
    assert sorted(home.rglob("*")) == before


def test_as_a_script_it_prints_a_line_a_check_and_json_on_request(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools/doctor.py"), "--json"]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env=os.environ | {HOME_VARIABLE: str(home)}
    )
    found = {finding["check"]: finding for finding in json.loads(answer.stdout)}
    assert found.keys() >= {"registry", "group", "file system", "space", "clock", "python", "Slurm", "codecs", "GPU"}
    assert answer.returncode == int(any(finding["level"] == "problem" for finding in found.values()))
    assert all(finding["remedy"] for finding in found.values() if finding["level"] != "ok")
    assert found["registry"]["level"] == found["python"]["level"] == found["codecs"]["level"] == "ok"


def test_a_home_that_cannot_be_written_is_a_problem_and_ends_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "file" / "home"))
    monkeypatch.setattr(doctor_machine, "CHECKS", ())
    assert doctor.main([]) == 1
    (line, remedy) = capsys.readouterr().out.splitlines()
    assert line.startswith("problem") and "cannot be written" in line
    assert remedy.strip().startswith(f"-> export {HOME_VARIABLE}=")


def test_a_check_that_fails_hides_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Finding:
        raise RuntimeError("a surprise")

    monkeypatch.setattr(doctor_machine, "CHECKS", (broken, doctor_machine.codecs))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "broken" in said and "RuntimeError: a surprise" in said and "codecs" in said


def test_a_shared_home_needs_setgid_and_folders_that_the_group_may_write(home: Path) -> None:
    assert doctor_registry.group(home).says.startswith("private")
    private = Registry(home).create(make_spec(id="aaaa000001"))
    home.chmod(0o770)
    assert doctor_registry.group(home).remedy == f"chmod g+s {home}"
    home.chmod(0o2770)
    found = doctor_registry.group(home)
    assert found.level == "problem" and str(home / "runs") in found.says
    for command in found.remedy.split(";"):
        subprocess.run(command, shell=True, check=True)
    assert doctor_registry.group(home).level == "ok"
    Registry(home).create(make_spec(id="bbbb000001")).claim_attempt({})
    assert doctor_registry.group(home).level == "ok"
    (private.folder / "run.json").chmod(0o600)
    assert str(private.folder / "run.json") in doctor_registry.group(home).says


@pytest.mark.parametrize("check", ["space", "inodes"])
def test_too_little_room_is_a_warning_and_then_a_problem(
    check: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"space": "FREE", "inodes": "INODES"}[check]
    monkeypatch.setattr(doctor_registry, f"{name}_WARNING", 1 << 62)
    assert getattr(doctor_registry, check)(home).level == "warning"
    monkeypatch.setattr(doctor_registry, f"{name}_PROBLEM", 1 << 61)
    assert getattr(doctor_registry, check)(home).level == "problem"


@pytest.mark.parametrize(("ahead_s", "said"), [(60.0, "60 s behind"), (-60.0, "60 s ahead of"), (0.0, "agree within")])
def test_a_clock_that_is_not_the_file_systems_is_told(
    ahead_s: float, said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(doctor_registry.time, "time", lambda: now() + ahead_s)
    found = doctor_registry.clock(home)
    assert said in found.says and found.level == ("warning" if ahead_s else "ok")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("3.11.7", ">=3.11,<3.13", True),
        ("3.13.0", ">=3.11,<3.13", False),
        ("3.9.1", ">=3.11,<3.13", False),
        ("2.13.0+cu128", ">=2.11", True),
        ("2.13.0+cu128", "==2.13.0", True),
        ("2.9.0", ">=2.11", False),
        ("1.10", "==1.1", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert doctor_machine._fits(version, wanted) == fits


def test_a_package_that_is_missing_or_another_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = '[project]\nrequires-python = ">=3.99"\ndependencies = ["no-such-thing==1.0", "numpy==0.1", "rich"]\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(doctor_machine, "REPOSITORY", tmp_path)
    levels = {finding.check: finding.level for finding in doctor_machine.versions()}
    assert levels == {"python": "problem", "no-such-thing": "problem", "numpy": "warning", "packages": "ok"}


def test_a_lock_that_nobody_takes_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()

    def finding() -> Finding:
        return next(found for found in doctor_machine.caches() if found.check == "TORCH_EXTENSIONS_DIR")

    assert finding().level == "ok"  # somebody is compiling just now
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    assert (finding().level, finding().remedy) == ("problem", f"rm {lock}")


def test_the_file_system_of_a_path_is_that_of_its_mount() -> None:
    assert doctor_machine._kind_of(Path("/proc/self")) == "proc"
    assert doctor_machine._kind_of(Path("/proc/none/such")) == "proc"


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_slurm_says_of_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("MaxArraySize = 1001", "JobRequeue = 1", "PreemptMode = REQUEUE", "MinJobAge = 300 sec")
    config = "\n".join([*lines, "AccountingStorageType = accounting_storage/none"])
    commands(tmp_path, monkeypatch, sbatch="echo slurm 22.05.8", scontrol=f"echo '{config}'")
    (tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    found = list(doctor_machine.slurm())
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert found[0].says == "slurm 22.05.8; MaxArraySize 1001, JobRequeue 1, PreemptMode REQUEUE, MinJobAge 300 sec"
    assert "300 sec" in found[1].says
    commands(tmp_path, monkeypatch, scontrol="exit 1")
    assert [finding.level for finding in doctor_machine.slurm()] == ["problem"]


def test_gpus_that_torch_does_not_see_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, **{"nvidia-smi": "exit 9"})
    assert doctor_machine.gpus().says.startswith("none on this machine")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    commands(tmp_path, monkeypatch, **{"nvidia-smi": "echo NVIDIA H200"})
    found = doctor_machine.gpus()
    assert found.level == "problem" and "1 x NVIDIA H200" in found.says
