"""Secrets are refused where they would be stored and left out of records; folders are nobody else's to write."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from experiments import files, secret_words
from experiments.registry import Registry
from slurm.placement import Placement

TOKENS = (
    "hf_" + "a" * 30,
    "ghp_" + "b" * 36,
    "sk-" + "c" * 40,
    "AKIA" + "D" * 16,
    "https://me:password@host.org/x",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
)


@pytest.mark.parametrize("secret", TOKENS)
@pytest.mark.parametrize("field", ["setup", "env", "sbatch", "python"])
def test_a_secret_is_refused_where_it_would_stand_in_the_job_script(field: str, secret: str) -> None:
    given = {"env": f"X={secret}", "sbatch": f"licenses={secret}"}.get(field, secret)
    value = given if field == "python" else (given,)
    with pytest.raises(ValueError, match=rf"--{field} .*job script.*\$\(cat FILE\)") as refused:
        Placement(**{field: value})  # type: ignore[arg-type]
    assert secret not in str(refused.value)


def test_a_secret_that_a_line_of_setup_reads_is_none() -> None:
    with pytest.raises(ValueError, match="job script"):
        Placement(setup=("export WANDB_API_KEY=0123456789",))
    Placement(setup=("export WANDB_API_KEY=$(cat ~/.wandb)", 'export HF_TOKEN="$TOKEN"', "module load cuda/12.4"))


@pytest.mark.parametrize("field", ["partition", "account", "qos", "constraint", "exclude", "interface", "python"])
@pytest.mark.parametrize("end", ["\ntouch /tmp/x", "\r#SBATCH --uid=0", "\x1b[2J"])
def test_no_option_leaves_its_line_of_the_job_script(field: str, end: str) -> None:
    with pytest.raises(ValueError, match=f"--{field} .*control character"):
        Placement(**{field: f"a{end}"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--sbatch .*control character"):
        Placement(sbatch=(f"gres=gpu{end}",))


@pytest.mark.parametrize("scratch", ["/a$(id)", "/a`id`", '/a"; id; "', "/a;id", "/a|id", "/a>b"])
def test_scratch_is_a_path_and_no_command(scratch: str) -> None:
    with pytest.raises(ValueError, match="without commands"):
        Placement(scratch=scratch)
    assert Placement(scratch="/scratch/$SLURM_JOB_ID/${USER}").scratch


def test_what_a_run_records_of_an_error_names_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    run = Registry(tmp_path).create(make_spec())
    attempt = run.claim_attempt({})
    words = f"refused: key=0123456789abcdef at https://me:password@host.org, {TOKENS[0]}"
    attempt.append("events", {"kind": "note", "message": words})
    attempt.end("error", message=words, traceback=words, exit_code=1)
    run.record_code_difference(1, words)
    stored = "".join(path.read_text() for path in run.folder.rglob("*") if path.is_file())
    assert stored.count(secret_words.LEFT_OUT) == 12
    assert not any(secret in stored for secret in ("0123456789abcdef", "password", TOKENS[0]))
    assert json.loads((run.folder / "attempts/0001.end.json").read_text())["exit_code"] == 1


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_a_registry_is_never_for_everybody_to_write(tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = Registry(home)
    registry.check_writable()
    run = registry.create(make_spec())
    run.claim_attempt({})
    for path in (home, *home.rglob("*")):
        assert not path.stat().st_mode & stat.S_IWOTH, path
    home.chmod(0o777)
    with pytest.raises(ValueError, match=r"everybody may write there.*chmod -R o-w"):
        registry.check_writable()


@pytest.mark.usefixtures("no_umask")
def test_folders_of_compiled_code_are_private_and_our_own(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    folder.mkdir(mode=0o777)
    assert stat.S_IMODE(files.private_folder(folder).stat().st_mode) == 0o700
    assert stat.S_IMODE(files.private_folder(tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match="this user's own"):
        files.private_folder(tmp_path / "link")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_folder_that_somebody_else_made_first_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(ValueError, match="set TMPDIR"):
        files.private_folder(folder)


@pytest.mark.parametrize(
    "name", ["x\x1b[2J-0123456789", "x[bold]-0123456789", "$(id)-0123456789", "<script>-0123456789"]
)
def test_folders_whose_names_are_none_of_ours_are_no_runs(tmp_path: Path, name: str) -> None:
    registry = Registry(tmp_path)
    run = registry.create(make_spec())
    run.folder.rename(run.folder.with_name(name))
    assert list(registry.runs()) == []
