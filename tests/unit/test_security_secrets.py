"""Secrets are refused where they would be stored and left out of records; folders are nobody else's to write."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from dalle2_video.config_io import to_dict
from experiments import files, secret_words
from experiments.registry import HOME_VARIABLE, Registry
from launch.arguments import load_recipe
from slurm import local, logs
from slurm.attempt import TRACEBACK_TAIL, record_failure
from slurm.placement import Placement
from tools import report, runs

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


RANK_THAT_TELLS = """
import os, sys

class Tells:
    def find_spec(self, name, path=None, target=None):
        if name == "slurm.array_job":
            print(os.environ)
            os.write(1, ("\\n" + os.environ["UNNAMED"] + "\\n").encode())
            if os.environ["DALLE2_VIDEO_ATTEMPT"] == "1":
                raise RuntimeError("refused: " + os.environ["WANDB_API_KEY"])

sys.meta_path.insert(0, Tells())
"""
"""What Python runs at the start of a rank: it prints its environment and raises with a key in the message."""


def test_what_a_rank_prints_and_raises_names_no_secret_in_its_log_nor_where_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key, quoted, data = "0123456789abcdef", "it's\\a\n'secret'", "data-of-somebody"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("SITE_PASSWORD", quoted)
    monkeypatch.setenv("DATA_TOKEN", data)
    monkeypatch.setenv("UNNAMED", TOKENS[0])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"), prepend=os.pathsep)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(RANK_THAT_TELLS)
    run = Registry(tmp_path / "home").create(
        make_spec(stage="preprocess", config={"data": to_dict(load_recipe("tiny").data)})
    )
    (run.folder / "manifest.json").write_text(json.dumps([["clip", ["0.mp4", 1, None, None, None], {}, None]]))
    nowhere = str(tmp_path / data)  # what cannot be read is named by the error
    run.claim_intent(1, {"training": False, "groups": [[0]], "world_size": 1, "data_root": nowhere})
    local.supervise(str(run.folder), 1, None)
    # The first attempt ended by an exception that nobody caught, the second by one that is on record.
    first, second = (attempt.end or {} for attempt in run.attempts())
    assert "RuntimeError: refused: " + secret_words.LEFT_OUT in first["traceback"]
    assert f"/{secret_words.LEFT_OUT}/texts" in second["message"]
    secrets = (key, repr(quoted)[1:-1], data)
    for number in (1, 2):
        log = logs.supervised(run.folder, number, 0).read_text()
        assert not any(secret in log for secret in secrets)
        assert f"'WANDB_API_KEY': '{secret_words.LEFT_OUT}'" in log
        assert TOKENS[0] in log.splitlines(), "the program wrote it past Python"
        capfd.readouterr()
        assert runs.main(["logs", run.spec.id, "--attempt", str(number)]) == 0
        told = capfd.readouterr().out
        assert told == log.replace(TOKENS[0], secret_words.LEFT_OUT)
    assert report.main(["--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count(f"{secret_words.LEFT_OUT}/texts") > 0
    assert [secret for secret in (*secrets, TOKENS[0]) if page.count(secret)] == []


def test_a_secret_is_left_out_before_a_traceback_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    run = Registry(tmp_path).create(make_spec())
    end = " " * (TRACEBACK_TAIL - 8)
    try:
        raise RuntimeError("0123456789abcdef" + end[:-1])
    except RuntimeError as error:
        record_failure(run.claim_attempt({}), error)
    (tmp_path / "log").write_text("Traceback (most recent call last):\nRuntimeError: 0123456789abcdef" + end)
    (attempt,) = run.attempts()
    assert attempt.end is not None
    for cut in (attempt.end["traceback"], logs.last_words(tmp_path / "log")):
        assert len(cut) == TRACEBACK_TAIL and "abcdef" not in cut


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
