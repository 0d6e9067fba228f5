"""Whatever bytes come from outside, a parser gives a result or the error that it documents, which names the file.

Never another kind of exception, no hang and no memory beyond what the file holds. Examples are arbitrary bytes,
arbitrary JSON, and valid files of which a few bytes were changed.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fuzzing import DEEP, JSON, NO_JSON, as_json, damaged, holds, quick, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dalle2_video import prompts
from dalle2_video.chain_folder import FORMAT, INDEX, VERSION
from dalle2_video.config import ClipConfig, DecoderConfig
from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.data import archives, celebv_info, celebv_text
from dalle2_video.data.legacy import LegacyVideos
from dalle2_video.data.shard_layout import ShardLayout
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store import STATISTICS_FILE, Store
from dalle2_video.data.store_arrays import create_sharded
from dalle2_video.data.tokenizer import Tokenizer, train_bpe
from dalle2_video.data.video import BadClip
from dalle2_video.generation.pipeline import VideoPipeline
from dalle2_video.models import factory
from dalle2_video.training import checkpoint
from dalle2_video.training.tensor_file import TensorFile, TensorSpec, write_tensors
from experiments import files
from experiments.plan import Plan
from experiments.run import Run, read_jsonl
from launch.arguments import load_recipe
from slurm import accounting, hostlist, leaving
from tools.import_h5 import _load_tokens

INFO = {"abc.mp4": {"duration": {"start_sec": 1, "end_sec": 2}}}
STORE = {"attributes": {"format": "", "version": 0, "data": {}, "fingerprint": "", "num_clips": 1, "caption_kinds": []}}
CHAIN = {"format": FORMAT, "version": VERSION, "stages": {}, "sample": {}}
RUN = {"stage": "clip", "recipe": "tiny", "id": "0123456789", "config": {}, "source": None, "parents": {"a": {}}}
PLAN = {
    "stage": "clip",
    "recipe": "tiny",
    "id": "0",
    "config": {},
    "lineage": {"clip": {"stage": "clip", "parents": []}},
}


def _tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("videos/a.mp4", "b.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 9
            archive.addfile(entry, io.BytesIO(b"some text"))
    return packed.getvalue()[:3072]


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("videos/a.mp4", b"some text" * 9)
        archive.writestr(zipfile.ZipInfo("b.txt"), b"some text")
    return packed.getvalue()


@pytest.mark.parametrize(("suffix", "whole"), [(".tar", _tar()), (".zip", _zip())])
@given(data=st.data())
@settings(parent=quick, max_examples=150)
def test_archives(tmp_path: Path, suffix: str, whole: bytes, data: st.DataObject) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(data.draw(damaged(whole)))

    def read() -> None:
        for name, source in archives.members(path, lambda _: None):
            assert not name.is_absolute() and ".." not in name.parts
            holds(lambda source=source: source.read(), str(path))  # type: ignore[misc]

    holds(read, str(path))


@given(
    content=NO_JSON
    | JSON.map(as_json)
    | replaced({"abc.mp4": {"duration": {"start_sec": 1, "end_sec": 2}}}).map(as_json)
)
@quick
def test_info_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / celebv_info.INFO_FILE).write_bytes(content)
    holds(lambda: celebv_info.expected_seconds(tmp_path, {"abc": "a"}, []), celebv_info.INFO_FILE)


@given(content=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@quick
def test_captions_and_prompts(tmp_path: Path, content: bytes) -> None:
    holds(lambda: celebv_text.caption_lines(content, "file.txt"), "file.txt")
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    holds(lambda: prompts.read(path, "--sample.prompts-file"), str(path))
    kept = prompts.cleaned(content.decode(errors="surrogateescape"))
    if kept:
        prompts.check(kept, "caption")


@functools.cache
def _tokenizer() -> str:
    return train_bpe(["a face", "a face smiles"], 270).to_json()


@given(data=st.data())
@quick
def test_tokenizers(data: st.DataObject) -> None:
    small = json.loads(_tokenizer())
    text = data.draw(
        st.text(max_size=20) | st.just(DEEP.decode()) | JSON.map(json.dumps) | replaced(small).map(json.dumps)
    )
    holds(lambda: Tokenizer.from_json(text), "tokenizer.json")


@functools.cache
def _config(name: str) -> dict[str, Any]:
    return to_dict(getattr(load_recipe("tiny"), name))


@pytest.mark.parametrize(("name", "cls"), [("clip", ClipConfig), ("decoder", DecoderConfig)])
@given(data=st.data())
@quick
def test_configs(name: str, cls: type, data: st.DataObject) -> None:
    values = data.draw(JSON | replaced(_config(name)))
    holds(lambda: from_dict(cls, values), cls.__name__)


@given(text=st.text(max_size=40) | st.text("n0123456789-,[]", max_size=40))
@quick
def test_host_lists(text: str) -> None:
    assert len(hostlist.expand(text)) <= hostlist.MOST


@given(text=st.text("1_|ABY +^\n\x0b\x1cby²", max_size=60) | st.text(max_size=60))
@quick
def test_answers_of_slurm(text: str) -> None:
    for entry in accounting.parse_queue(text):
        accounting.wait_words(entry)
    for ended in accounting.parse_history(text):
        accounting.end_words(ended)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP's export, alone in a chain's folder."""
    folder = tmp_path_factory.mktemp("chain") / "clip"
    clip = load_recipe("tiny").clip
    dims = factory.ModelDims(vocab_size=20, text_context=8, embed_dim=clip.embed_dim, text_dim=clip.text.dim)
    folder.mkdir()
    save_file(factory.build(clip, dims).state_dict(), folder / factory.WEIGHTS)
    for name, text in factory.export_files("clip", clip, dims, fps=8.0, tokenizer_json=_tokenizer()).items():
        (folder / name).write_text(text)
    assert factory.load_export(folder, "clip").dims == dims
    return folder


@given(data=st.data())
@quick
def test_exports(export: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = json.loads((export / factory.CONFIG).read_text())
    content = data.draw(NO_JSON | (JSON | replaced(whole)).map(as_json))
    (tmp_path / factory.CONFIG).write_bytes(content)
    if not (tmp_path / factory.WEIGHTS).exists():
        (tmp_path / factory.WEIGHTS).symlink_to(export / factory.WEIGHTS)
    holds(lambda: factory.read_export(tmp_path, "clip"), str(tmp_path))


@given(data=st.data())
@quick
def test_weights_of_exports(export: Path, tmp_path: Path, data: st.DataObject) -> None:
    head = (export / factory.WEIGHTS).read_bytes()[:4096]
    (tmp_path / factory.CONFIG).write_bytes((export / factory.CONFIG).read_bytes())
    (tmp_path / factory.WEIGHTS).write_bytes(data.draw(damaged(head)))
    with pytest.raises(ValueError, match=str(tmp_path)):
        factory.load_export(tmp_path, "clip")


def test_sizes_in_a_damaged_config_take_no_memory(export: Path, tmp_path: Path) -> None:
    content = json.loads((export / factory.CONFIG).read_text())
    content["dims"]["vocab_size"] = 10**11
    (tmp_path / factory.CONFIG).write_text(json.dumps(content))
    (tmp_path / factory.WEIGHTS).symlink_to(export / factory.WEIGHTS)
    with pytest.raises(ValueError, match="does not hold the weights"):
        factory.load_export(tmp_path, "clip")


@given(
    content=NO_JSON | (JSON | replaced({"format": FORMAT, "version": VERSION, "stages": {}, "sample": {}})).map(as_json)
)
@quick
def test_indexes_of_chains(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    for verify in (True, False):
        with pytest.raises(ValueError, match=r"."):
            VideoPipeline.from_export(tmp_path, "cpu", verify=verify)


def _tensors(folder: Path) -> bytes:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / "whole", specs, [tensors[name] for name in ("b", "a")])
    return (folder / "whole").read_bytes()


@given(data=st.data())
@settings(parent=quick, max_examples=150)
def test_slices_of_checkpoints(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "slice"
    path.write_bytes(data.draw(damaged(_tensors(tmp_path))))

    def read() -> None:
        with TensorFile(path) as file:
            for name in ("a", "b"):
                file.read(name)

    holds(read, str(path))


@given(manifest=NO_JSON | (JSON | replaced({"files": {"state.json": {"bytes": 2, "crc32c": 1}}})).map(as_json))
@quick
def test_manifests_of_checkpoints(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / checkpoint.MANIFEST).write_bytes(manifest)
    (tmp_path / checkpoint.STATE).write_bytes(b"{}")
    with pytest.raises(checkpoint.DamagedCheckpointError, match=str(tmp_path)):
        checkpoint.verify(tmp_path)


@given(data=st.data())
@quick
def test_layouts_of_arrays(tmp_path: Path, data: st.DataObject) -> None:
    layout, shard = _array(tmp_path / "whole")
    path = tmp_path / "array"
    path.mkdir(exist_ok=True)
    (path / "zarr.json").write_bytes(data.draw(NO_JSON | (JSON | replaced(layout)).map(as_json)))
    holds(lambda: ShardLayout.open(path), str(path))
    # A sound layout, and a damaged shard.
    (path / "zarr.json").write_bytes(as_json(layout))
    reader = ShardReader(path)
    reader.shard_path(0).parent.mkdir(parents=True, exist_ok=True)
    reader.shard_path(0).write_bytes(data.draw(damaged(shard)))
    holds(lambda: reader.read(0, 0, 3), str(path), errors=(OSError,))
    reader.close()


@functools.cache
def _array(path: Path) -> tuple[Any, bytes]:
    with ShardWriter(
        create_sharded(path, (2, 3, 2), "uint8", items_per_shard=2, chunk_frames=2, compressed=True), 0
    ) as writer:
        writer.write(0, np.ones((3, 2), np.uint8))
        writer.finish()
    return json.loads((path / "zarr.json").read_text()), writer.path.read_bytes()


@given(content=NO_JSON | JSON.map(as_json) | replaced(STORE).map(as_json))
@quick
def test_metadata_of_stores(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "zarr.json").write_bytes(content)
    (tmp_path / STATISTICS_FILE).write_text("{}")
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        Store(tmp_path)


@given(content=NO_JSON | (JSON | replaced(RUN)).map(as_json), lines=st.lists(NO_JSON | JSON.map(as_json), max_size=3))
@quick
def test_records_of_runs(tmp_path: Path, content: bytes, lines: list[bytes]) -> None:
    folder = tmp_path / "runs/clip/tiny-0123456789"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(content)
    holds(lambda: Run(folder).spec, str(folder))
    holds(lambda: files.read_json(folder / "run.json"), "run.json")
    (folder / "metrics.0001.jsonl").write_bytes(b"\n".join([*lines, b""]))
    holds(lambda: read_jsonl(folder / "metrics.0001.jsonl"), "metrics.0001.jsonl")
    holds(lambda: Run(folder).metrics(), "metrics.0001.jsonl")
    holds(Run(folder).latest_training_metrics, "metrics.0001.jsonl")


@given(data=st.data(), content=NO_JSON | JSON.map(as_json))
@quick
def test_records_of_launches_and_plans(tmp_path: Path, data: st.DataObject, content: bytes) -> None:
    run = Run(tmp_path / "runs/clip/tiny-0123456789", created=0.0)
    for folder, names in {"intent": ("0001.json", "0001.job.json"), "attempts": ("0001.json", "0001.end.json")}.items():
        (run.folder / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (run.folder / folder / name).write_bytes(data.draw(st.just(content) | st.just(b"{}")))
    (run.folder / "DONE").write_bytes(content)
    holds(run.intents, "0001")
    holds(run.attempts, "0001")
    holds(run.done, "DONE")
    plan = Plan(tmp_path / "plans/clip/tiny-0123456789")
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "plan.json").write_bytes(data.draw(st.just(content) | replaced(PLAN).map(as_json)))
    holds(lambda: plan.spec, "plan.json")


@given(words=st.text(max_size=40) | st.text("JobState=Reason=PreemptTime= \n", max_size=60))
@quick
def test_what_the_controller_says_of_a_job(words: str) -> None:
    for done in (True, False):
        leaving.parse_facts(leaving.Answer(done=done, words=words))


@functools.cache
def _h5() -> bytes:
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        file["videos"] = np.zeros((1, 3, 1, 8, 8), np.uint8)
        file["ids"] = [b"abc"]
        file.attrs["fps"] = 8.0
    return packed.getvalue()


@given(data=st.data())
@settings(parent=quick, max_examples=100)
def test_old_videos(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "videos.h5"
    path.write_bytes(data.draw(damaged(_h5())))

    def read() -> None:
        videos = LegacyVideos(path)
        videos.ids()
        videos.fps()
        holds(lambda: videos.read(0, [0]), errors=(BadClip, OSError))

    holds(read, str(path))


@functools.cache
def _pt() -> bytes:
    packed = io.BytesIO()
    torch.save(torch.ones((2, 77), dtype=torch.int64), packed)
    return packed.getvalue()


@given(data=st.data())
@quick
def test_old_tokens(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "tokens.pt"
    path.write_bytes(data.draw(damaged(_pt())))
    holds(lambda: _load_tokens(path, 2), str(path))
