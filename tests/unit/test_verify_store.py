"""A store is verified to the bit, and what a repair forgets comes back as the same bytes with the same digest."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from data_fixtures import publish

from dalle2_video.data import embedding_shards, embeddings
from dalle2_video.data.shard_layout import ShardLayout
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig
from dalle2_video.digests import file_digest
from experiments import files, identity
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run, RunSpec
from slurm.attempt import parents_of
from tools import verify_store

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = (
    "--data.frame-sizes 8 16 --data.min-frames 16 --data.max-frames 40 --data.chunk-frames 8 --data.clips-per-shard 3 "
    "--data.vocab-size 300 --data.text-context 16 --data.val-fraction 0.3"
)
"""The unit tests' data config: ten clips in four tasks, the last of which has no good clip and so no shard."""


def launch(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "python"
    answer = subprocess.run(
        [sys.executable, *words[1:], "--cluster", "local"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def made(raw_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished preprocess run and a child that pins it; copied by `run`."""
    home = tmp_path_factory.mktemp("made") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        launch(f"python launch/preprocess.py {FLAGS} --data-root {shlex.quote(str(raw_dataset))}")
    (run,) = Registry(home).runs("preprocess")
    parents = {"preprocess": run.as_parent()}
    spec = RunSpec(stage="clip", recipe="tiny", id="0123456789", config={}, source=None, parents=parents)
    Registry(home).create(spec)
    return home


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    (found,) = Registry(tmp_path / "home").runs("preprocess")
    return found


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    def call(*words: object) -> SimpleNamespace:
        code = verify_store.main([*map(str, words), "--workers", "1"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        named = [line.removeprefix("damaged ").split(": ")[0] for line in lines if line.startswith("damaged ")]
        commands = [line.strip() for line in lines if line.startswith("  python ")]
        return SimpleNamespace(code=code, out=captured.out, error=captured.err, named=named, commands=commands)

    return call


def content(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def flip(file: Path, position: int | None = None, bit: int = 4) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3 if position is None else position] ^= 1 << bit
    file.write_bytes(data)


def rewrite(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_bytes())
    change(value)
    file.write_bytes(files.encode(value))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def swap_captions(file: Path) -> None:
    """Exchange two captions of one length that differ in the number of their clip."""
    one, two = b"a red square 0 moves", b"a red square 1 moves"
    data = file.read_bytes()
    assert data.count(one) == data.count(two) == 1
    file.write_bytes(data.replace(one, b"?").replace(two, one).replace(b"?", two))


def test_a_sound_store_is_said_to_be_sound(run: Run, verify: Callable[..., SimpleNamespace]) -> None:
    for reference in (run.spec.id, run.name, run.folder, run.folder / "store"):
        answer = verify(reference)
        assert (answer.code, answer.named) == (0, []), answer.out
    checked = {line[:18].strip(): int(line[18:].split()[0]) for line in answer.out.splitlines()[2:-1]}
    assert checked == {
        "registry": 3, "metadata": 32, "task records": 4, "clip tables": 10, "captions": 56, "tokens": 56,
        "tokenizer": 1, "statistics": 4, "frame shards": 6, "frame chunks": 48, "embedding shards": 0,
    }  # fmt: skip


DAMAGES: dict[str, tuple[str, Callable[[Path], object], set[int]]] = {
    "bit flip in a shard": ("store/frames_16/c.1.0.0.0.0", flip, {1}),
    "truncated shard": ("store/frames_8/c.0.0.0.0.0", truncate, {0}),
    "missing shard": ("store/frames_16/c.2.0.0.0.0", Path.unlink, {2}),
    "corrupted tokens": ("store/tokens/c.0.0", flip, set()),
    "swapped captions": ("store/captions_bytes/c.0", swap_captions, set()),
    "changed record": ("tasks/00002.json", lambda file: rewrite(file, lambda r: r["clips"][1]["captions"].pop()), {2}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_repair_and_relaunch_restore_the_same_bytes(
    run: Run, verify: Callable[..., SimpleNamespace], kind: str
) -> None:
    name, damage, tasks = DAMAGES[kind]
    before, digest = content(run.folder / "store"), run.as_parent().digest
    records = content(run.folder / "tasks")
    written = {path.name: path.stat().st_mtime_ns for path in (run.folder / "tasks").iterdir()}
    damage(run.folder / name)

    answer = verify(run.spec.id)
    assert answer.code == 1
    assert set(answer.named) == {name}
    assert run.done() is not None
    answer = verify(run.spec.id, "--repair")
    assert answer.code == 1
    assert run.done() is None
    assert run.tasks_done() == {0, 1, 2, 3} - tasks
    assert verify(run.spec.id).code == 2

    assert len(answer.commands) == 1
    launch(answer.commands[0])
    assert len(list(Registry(run.folder.parents[2]).runs("preprocess"))) == 1
    assert content(run.folder / "store") == before
    assert content(run.folder / "tasks") == records
    now = {path.name: path.stat().st_mtime_ns for path in (run.folder / "tasks").iterdir()}
    rewritten = {name for name, time in now.items() if time != written[name]}
    assert rewritten == {f"{task:05d}.json" for task in tasks}
    assert run.as_parent().digest == digest
    (child,) = Registry(run.folder.parents[2]).runs("clip")
    assert parents_of(child)["preprocess"].folder == run.folder
    assert verify(run.spec.id).code == 0


def test_a_bit_flipped_in_any_file_is_found_and_the_file_named(
    run: Run, verify: Callable[..., SimpleNamespace]
) -> None:
    draw = random.Random(0)
    inside = [
        *(f"store/{name}" for name in sorted(content(run.folder / "store"))),
        "tasks/00001.json",
        "tasks/00003.json",
    ]
    assert len(inside) > 35
    for name in inside:
        file = run.folder / name
        sound = file.read_bytes()
        flip(file, draw.randrange(len(sound)), draw.randrange(8))
        answer = verify(run.folder)
        assert answer.code == 1, name
        assert name in answer.named, answer.out
        file.write_bytes(sound)
    assert verify(run.folder).code == 0


def test_everything_damaged_at_once_is_repaired_at_once(run: Run, verify: Callable[..., SimpleNamespace]) -> None:
    before, digest = content(run.folder / "store"), run.as_parent().digest
    store = run.folder / "store"
    flip(store / "frames_8/zarr.json")
    flip(store / "tokenizer.json")
    truncate(store / "captions_offsets/c.0")
    (store / "is_validation/c.0").unlink()
    shutil.rmtree(store / "caption_ranges")
    (store / "bad_clips.json").write_text("[]")
    (store / "frames_16/c.9.0.0.0.0").write_bytes(b"nobody's")
    (store / "frames_16/c.3.0.0.0.0").write_bytes(b"of a task without a good clip")
    flip(run.folder / "tasks/00000.json")
    (run.folder / "tasks/00001.json").unlink()
    rewrite(run.folder / "manifest.json", lambda manifest: manifest.pop())
    answer = verify(run.spec.id, "--repair")
    assert answer.code == 1
    assert {"manifest.json", "tasks/00001.json", "store/frames_16/c.9.0.0.0.0", "store/caption_ranges/c.0"} <= set(
        answer.named
    )
    launch(answer.commands[0])
    assert content(store) == before
    assert run.as_parent().digest == digest
    assert verify(run.spec.id).code == 0


def test_a_record_that_went_before_done_is_found(run: Run, verify: Callable[..., SimpleNamespace]) -> None:
    (run.folder / "tasks/00001.json").unlink()  # as a repair leaves it that was killed before it removed DONE
    answer = verify(run.folder)
    assert (answer.code, answer.named) == (1, ["tasks/00001.json"])


def record_shard(run: Run, size: int, task: int) -> None:
    """Put a shard's bytes on record as if its task had written them."""
    store = run.folder / "store"
    file = store / f"frames_{size}/c.{task}.0.0.0.0"
    shard = {"sha256": file_digest(file), "bytes": file.stat().st_size}
    rewrite(run.task_file(task), lambda record: record["shards"].update({str(size): shard}))
    rewrite(store / "shards.json", lambda shards: shards[str(task)].update({str(size): shard}))
    records = run.task_records()
    digest = identity.digest([records[task] for task in sorted(records)])
    rewrite(run.folder / "DONE", lambda done: done.update(digest=digest))


def test_pictures_after_a_clip_s_end_are_found_though_their_bytes_are_on_record(
    run: Run, verify: Callable[..., SimpleNamespace]
) -> None:
    zarr.open_array(str(run.folder / "store/frames_8"), mode="r+")[1, 22] = 7
    record_shard(run, 8, 0)
    answer = verify(run.folder)
    assert answer.code == 1
    assert "clip 1, frames 16:24 hold pictures after the clip's 20 frames" in answer.out
    assert "was made from a store of digest" in answer.out  # the child pins what the store was before


@pytest.mark.parametrize(
    ("task", "lengths", "text"),
    [
        (0, {0: 20, 1: 16, 2: 20}, r"clip 1 of 20 frames has the chunks [0, 1]"),
        (0, {0: 20, 1: 32, 2: 20}, r"clip 1 of 20 frames has the chunks [0, 1, 2, 3]"),
        (0, {0: 20, 2: 20}, r"clip 1 of 20 frames has the chunks []"),
        (3, {0: 0, 2: 1}, "it holds chunks of more clips than there are"),
    ],
)
def test_a_clip_with_other_chunks_than_its_frames_fill_is_found_though_the_bytes_are_on_record(
    run: Run, verify: Callable[..., SimpleNamespace], task: int, lengths: dict[int, int], text: str
) -> None:
    layout = ShardLayout.open(run.folder / "store/frames_8")
    layout.shard_path(task).unlink(missing_ok=True)
    with ShardWriter(layout, task) as writer:
        for item, length in lengths.items():
            writer.write(item, np.zeros((length, 8, 8, 3), np.uint8))
        writer.finish()
    record_shard(run, 8, task)
    answer = verify(run.folder)
    assert answer.code == 1
    assert f"store/frames_8/c.{task}.0.0.0.0" in answer.named and text in answer.out


def test_rows_of_a_split_that_are_not_its_good_clips_are_found(
    run: Run, verify: Callable[..., SimpleNamespace]
) -> None:
    file = run.folder / "store/train_rows/c.0"
    rows = np.fromfile(file, "<i8")
    rows[:2] = rows[1::-1]
    rows.tofile(file)
    answer = verify(run.folder)
    assert (answer.code, answer.named) == (1, ["store/train_rows/c.0"])
    rows[:-1].tofile(file)
    assert verify(run.folder).named == ["store/train_rows/c.0"]


@pytest.mark.parametrize(("pinned", "named"), [(True, "tasks/"), (False, "DONE")])
def test_where_the_digest_alone_is_wrong_the_children_s_pins_tell_what_to_redo(
    run: Run, verify: Callable[..., SimpleNamespace], pinned: bool, named: str
) -> None:
    if pinned:  # a field that nothing else holds
        rewrite(run.folder / "tasks/00001.json", lambda record: record.update(more=1))
    else:
        rewrite(run.folder / "DONE", lambda done: done.update(digest="0" * 64))
    answer = verify(run.folder)
    assert answer.code == 1
    assert len(answer.named) == (4 if pinned else 1)
    assert all(name.startswith(named) for name in answer.named)


def test_a_store_copied_alone_is_held_against_itself(
    run: Run, verify: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run.folder / "store", alone)
    assert verify(alone).code == 0
    for name, damage in (
        ("frames_16/c.1.0.0.0.0", flip),
        ("tokens/c.0.0", flip),
        ("captions_offsets/c.0", flip),
        ("caption_ranges/c.0", flip),
        ("clip_ids_bytes/c.0", lambda file: flip(file, 0, 7)),
        ("num_frames/c.0", lambda file: flip(file, 0)),
    ):
        sound = (alone / name).read_bytes()
        damage(alone / name)
        answer = verify(alone)
        assert answer.code == 1, name
        shards_blamed = name == "num_frames/c.0"  # who is wrong about the number of frames, nothing tells
        assert ("statistics.json" if shards_blamed else name) in answer.named, answer.out
        (alone / name).write_bytes(sound)
    swap_captions(alone / "captions_bytes/c.0")
    assert "tokens/c.0.0" in verify(alone).named
    answer = verify(alone, "--repair")
    assert (answer.code, "nothing can make it again" in answer.error) == (2, True)


def test_bad_arguments_end_with_two_and_a_remedy(
    run: Run, verify: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    for words, text in {
        ("ffffffffff",): "tools/runs.py list",
        ("0123456789",): f"verify_store.py {run.spec.id}",
        (str(tmp_path),): "no store at",
    }.items():
        answer = verify(*words)
        assert answer.code == 2
        assert text in answer.error
    assert verify_store.main([str(run.folder), "--workers", "0"]) == 2
    (run.folder / "DONE").unlink()
    assert "is not finished" in verify(run.folder).error


def test_a_repair_that_cannot_succeed_removes_nothing(
    run: Run, verify: Callable[..., SimpleNamespace], raw_dataset: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "data"
    shutil.copytree(raw_dataset, moved)
    next((moved / "videos/celebvtext_6").iterdir()).unlink()
    rewrite(run.folder / "run.json", lambda spec: spec["inputs"].update(data_root=str(moved)))
    flip(run.folder / "store/frames_16/c.1.0.0.0.0")
    before = content(run.folder)
    answer = verify(run.folder, "--repair")
    assert answer.code == 2
    assert "no longer holds the clips" in answer.error
    assert content(run.folder) == before


def test_a_data_set_that_moved_repairs_from_where_it_lies_today(
    run: Run, verify: Callable[..., SimpleNamespace], raw_dataset: Path, tmp_path: Path
) -> None:
    moved, gone = tmp_path / "moved", tmp_path / "gone"
    shutil.copytree(raw_dataset, moved)
    rewrite(run.folder / "run.json", lambda spec: spec["inputs"].update(data_root=str(gone)))
    shard = run.folder / "store/frames_16/c.1.0.0.0.0"
    sound = shard.read_bytes()
    flip(shard)
    answer = verify(run.folder, "--repair")
    assert answer.code == 2 and f"data root {gone} is not a folder; set --data-root" in answer.error
    assert "removed" not in answer.out
    answer = verify(run.folder, "--repair", "--data-root", moved)
    (command,) = answer.commands
    assert answer.code == 1 and f"--data-root {moved}" in command
    launch(command)
    assert shard.read_bytes() == sound
    assert verify(run.folder).code == 0


@pytest.fixture
def embedded(run: Run) -> Run:
    """An embed run of the store as its job leaves it, with vectors that tell clip and window."""
    store_path = run.folder / "store"
    store = Store(store_path)
    window = WindowConfig(size=16, num_frames=4, stride=2)
    spec = embeddings.spec_for(store, "0123456789-hop3", window, 3, dim=5)
    (clip,) = Registry(run.folder.parents[2]).runs("clip")
    clip.mark_done({"digest": "1" * 64})
    parents = {"preprocess": run.as_parent(), "clip": clip.as_parent()}
    of_run = RunSpec(stage="embed", recipe="tiny", id="abcdefabcd", config={}, source=None, parents=parents)
    made = Registry(run.folder.parents[2]).create(of_run)
    staging = run.folder / ".staging"
    publish(embedding_shards.create(staging / "create", spec), store_path)
    for shard in range(spec.num_shards):
        rows = range(shard * 3, min(shard * 3 + 3, store.num_clips))
        starts = [embeddings.window_starts(int(store.num_frames[row]), spec.span, spec.hop) for row in rows]
        values = [np.full((len(of_row), 5), row, np.float32) for row, of_row in zip(rows, starts, strict=True)]
        items, _ = embedding_shards.write_shard(staging / str(shard), spec, shard, values)
        made.finish_task(shard, {"sha256": file_digest(items[0][0])})
        publish(items, store_path)
    shutil.rmtree(staging)
    made.mark_done({"digest": "2" * 64, "embeddings": spec.run_id})
    return made


def test_embeddings_are_checked_against_their_run_s_records(
    run: Run, embedded: Run, verify: Callable[..., SimpleNamespace]
) -> None:
    answer = verify(run.folder)
    assert (answer.code, answer.named) == (0, []), answer.out
    folder = run.folder / "store/embeddings/0123456789-hop3/video"
    for name, damage in (
        ("c.1.0.0", flip),
        ("c.2.0.0", Path.unlink),
        ("zarr.json", lambda file: rewrite(file, lambda metadata: metadata["attributes"].update(hop=2))),
    ):
        sound = (folder / name).read_bytes()
        damage(folder / name)
        answer = verify(run.folder)
        assert (answer.code, answer.named) == (1, [f"store/embeddings/0123456789-hop3/video/{name}"]), answer.out
        (folder / name).write_bytes(sound)
    # Vectors where the clip has no window, or none where it has one, though the bytes are on record.
    for row, column, value, text in ((1, 9, 1.0, "has vectors after"), (1, 0, np.nan, "lacks a vector")):
        sound = (folder / "c.0.0.0").read_bytes()
        zarr.open_array(str(folder), mode="r+")[row, column] = value
        digest = file_digest(folder / "c.0.0.0")
        (embedded.folder / "tasks/00000.json").write_bytes(files.encode({"sha256": digest}))
        answer = verify(run.folder)
        assert answer.code == 1
        assert f"clip {row} {text}" in answer.out
        (folder / "c.0.0.0").write_bytes(sound)


def test_embeddings_of_an_unfinished_run_may_lack_shards(
    run: Run, embedded: Run, verify: Callable[..., SimpleNamespace]
) -> None:
    (embedded.folder / "DONE").unlink()
    (run.folder / "store/embeddings/0123456789-hop3/video/c.1.0.0").unlink()
    assert verify(run.folder).code == 0


def test_what_starts_on_a_login_node_does_not_load_torch_and_several_processes_find_the_same(run: Run) -> None:
    flip(run.folder / "store/frames_8/c.1.0.0.0.0")
    command = [sys.executable, "tools/verify_store.py", str(run.folder), "--workers", "2"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 1, answer.stderr
    assert "damaged store/frames_8/c.1.0.0.0.0" in answer.stdout
    code = "import sys, tools.verify_store; print([name for name in sys.modules if name.split('.')[0] == 'torch'])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
