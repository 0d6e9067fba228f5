"""The copy of the code that a job runs: sources only, one folder a version, told apart by content."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import code_snapshot


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for package in code_snapshot.PACKAGES:
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "__init__.py").write_text(f'"""{package}"""\n')
        (root / package / "__pycache__/old.py").write_text("")
    (root / "slurm/.env").write_text("KEY=secret\n")
    (root / "slurm/job.py").write_text("print('first')\n")
    (root / "slurm/page.html").write_text("<p>\n")
    (root / "slurm/weights.bin").write_bytes(b"\0" * 100)
    return root


def test_sources_are_copied_and_nothing_else(tmp_path: Path, repository: Path) -> None:
    name = code_snapshot.take(tmp_path / "home", repository)
    folder = code_snapshot.folder(tmp_path / "home", name)
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert copied == {
        "dalle2_video/__init__.py", "experiments/__init__.py", "slurm/__init__.py", "slurm/job.py", "slurm/page.html"
    }  # fmt: skip
    assert name == code_snapshot.version(repository)
    assert not list((tmp_path / "home/code").glob(".*"))


def test_the_same_code_is_one_copy_and_an_edit_another(tmp_path: Path, repository: Path) -> None:
    home = tmp_path / "home"
    first = code_snapshot.take(home, repository)
    made = code_snapshot.folder(home, first).stat().st_mtime_ns
    assert code_snapshot.take(home, repository) == first
    (repository / "slurm/job.py").write_text("print('second')\n")
    (repository / "slurm/new.py").write_text("x = 1\n")
    second = code_snapshot.take(home, repository)
    assert second != first and code_snapshot.folder(home, first).stat().st_mtime_ns == made
    assert (code_snapshot.folder(home, first) / "slurm/job.py").read_text() == "print('first')\n"
    told = code_snapshot.difference(home, first, second)
    assert "-print('first')" in told and "+print('second')" in told and f"+++ {second}/slurm/new.py" in told
    assert code_snapshot.difference(home, first, first) == ""


def test_a_version_that_was_removed_is_said_to_be(tmp_path: Path, repository: Path) -> None:
    name = code_snapshot.take(tmp_path, repository)
    assert "version 0123 is not in" in code_snapshot.difference(tmp_path, "0123", name)
