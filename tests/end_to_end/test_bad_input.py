"""Bad input: one clear message naming field or file and remedy, exit code 2, nothing half-made in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Chain


def refused(chain: Chain, stage: str, *more: str) -> str:
    """Launch, expect exit code 2, return the one message."""
    answer = chain.launch(stage, *more)
    assert answer.returncode == 2, (answer.stdout, answer.stderr)
    assert "Traceback" not in answer.stderr
    return answer.stderr


@pytest.fixture
def empty(tmp_path: Path, sample_data: Path) -> Chain:
    return Chain(home=tmp_path / "home", data=sample_data)


def test_unknown_recipe_lists_the_recipes(empty: Chain) -> None:
    message = refused(empty, "clip", "--recipe", "huge")
    assert "huge" in message and "celebv_text_64" in message and "tiny" in message


def test_unknown_field(empty: Chain) -> None:
    assert "--clip.widht" in refused(empty, "clip", "--clip.widht", "3")


def test_invalid_value_names_field_and_remedy(empty: Chain) -> None:
    message = refused(empty, "clip", "--clip.patch-size", "5")
    assert "patch_size" in message and "divide" in message


def test_indivisible_batch_lists_what_divides(empty: Chain) -> None:
    message = refused(empty, "decoder", "--ranks-per-node", "3")
    assert "batch_size=4" in message and "1, 2, 4" in message


def test_contrastive_batch_cannot_be_accumulated(empty: Chain) -> None:
    assert "--micro-batch" in refused(empty, "clip", "--micro-batch", "2")


def test_missing_data_folder(empty: Chain, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in refused(empty, "preprocess", "--data-root", str(missing))
    assert "--data-root" in refused(Chain(home=empty.home, data=Path()), "preprocess")


def test_empty_data_set(empty: Chain, tmp_path: Path) -> None:
    shutil.copytree(empty.data / "texts", tmp_path / "none/texts")
    (tmp_path / "none/videos/celebvtext_6").mkdir(parents=True)
    message = refused(empty, "preprocess", "--data-root", str(tmp_path / "none"))
    assert "celebvtext_6" in message


def test_untrained_parent_names_the_command_that_trains_it(empty: Chain) -> None:
    assert "python launch/preprocess.py" in refused(empty, "clip")
    empty.run("preprocess")
    message = refused(empty, "prior")
    assert "python launch/clip.py --recipe tiny" in message and "--clip.optim.steps 6" in message
    assert not (empty.home / "runs/prior").exists()


def test_missing_prompts(chain: Chain) -> None:
    assert "--sample.prompts" in refused(chain, "sample")


def test_home_is_a_file(empty: Chain) -> None:
    empty.home.write_text("")
    assert "DALLE2_VIDEO_HOME" in refused(empty, "preprocess")


def test_home_without_write_permission(empty: Chain) -> None:
    empty.home.mkdir()
    if os.geteuid() != 0:
        empty.home.chmod(0o555)
        assert "DALLE2_VIDEO_HOME" in refused(empty, "preprocess")
        return
    # Root may write anywhere but on a file system that is mounted read-only.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs", str(empty.home)], check=True)
    try:
        assert "DALLE2_VIDEO_HOME" in refused(empty, "preprocess")
    finally:
        subprocess.run(["umount", str(empty.home)], check=True)


@pytest.fixture
def small_disk(empty: Chain) -> Iterator[Chain]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    empty.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=755", "tmpfs", str(empty.home)], check=True)
    yield empty
    subprocess.run(["umount", "-l", str(empty.home)], check=True)


def test_full_disk_is_refused_before_the_start_and_leaves_nothing_in_the_way(small_disk: Chain) -> None:
    filler = small_disk.home / "filler"
    filler.write_bytes(b"\0" * (30 << 20))
    assert "disk full" in refused(small_disk, "preprocess")
    filler.unlink()
    assert small_disk.run("preprocess").done()


def test_disk_that_fills_up_during_a_task_is_recorded_and_the_same_command_goes_on(small_disk: Chain) -> None:
    wide = ["--data.frame-sizes", "16", "256", "--data.compression", "none"]
    message = refused(small_disk, "preprocess", *wide)
    assert "disk full" in message
    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk.home)], check=True)
    assert small_disk.run("preprocess", *wide).done()
