"""What others wrote and the suite reads by libraries, by Slurm's words or through many files: as in test_parsers_fuzz.

The report is held to more: whatever lies in a registry, the page is made.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing import JSON, NO_JSON, as_json, damaged, holds, quick, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from report_registry import Made
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from dalle2_video import text_tower
from dalle2_video.data import embedding_shards
from dalle2_video.data.celebv_text import read_manifest
from dalle2_video.data.embeddings import Embeddings, EmbeddingSpec
from dalle2_video.data.legacy import LegacyVideos
from dalle2_video.data.tokenizer import from_folder
from experiments.registry import Registry
from slurm import job_state
from tools.report_page.reading import Reader
from tools.report_page.render import page
from tools.report_page.selection import Selection

SMALL_TOWER = {
    "vocab_size": 8, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 8, "projection_dim": 8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
REMOTE = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}}
CLIP = ["abc", ["videos/abc.mp4", 5, 100, 5, 7], {"action": ["texts/abc.txt", 2]}, 1.5]


@given(text=st.text("1_|ABY +^\n\x0b\x1cby²", max_size=120) | st.text(max_size=120))
@quick
def test_what_slurm_says_of_jobs(text: str) -> None:
    job_state.parse_submitted(text, "")
    assert all(job for job, _ in job_state.parse_queue(text))
    list(job_state.parse_accounting(text))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tower with its tokenizer, which reads."""
    folder = tmp_path_factory.mktemp("tower")
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "face": 3, "<unk>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    CLIPTextModelWithProjection(CLIPTextConfig(**SMALL_TOWER)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    assert text_tower.text_config(folder).hidden_size == 8
    assert from_folder(folder).vocab_size == 5
    return folder


@given(data=st.data())
@quick
def test_configs_of_text_towers(tower: Path, tmp_path: Path, data: st.DataObject) -> None:
    copy = _copied(tower, tmp_path)
    whole = json.loads((tower / text_tower.CONFIG).read_text())
    (copy / text_tower.CONFIG).write_bytes(data.draw(NO_JSON | (JSON | replaced(whole)).map(as_json)))
    holds(lambda: text_tower.text_config(copy), str(copy))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
@settings(parent=quick, max_examples=25)
def test_tokenizers_of_others(tower: Path, tmp_path: Path, name: str, data: st.DataObject) -> None:
    copy = _copied(tower, tmp_path)
    whole = json.loads((tower / name).read_text())
    (copy / name).write_bytes(data.draw(NO_JSON | (JSON | replaced(whole)).map(as_json)))
    holds(lambda: from_folder(copy), str(copy))


@pytest.mark.parametrize("named_in", [text_tower.CONFIG, "tokenizer_config.json"])
def test_code_beside_a_text_tower_is_not_run(tower: Path, tmp_path: Path, named_in: str) -> None:
    copy, mark = _copied(tower, tmp_path), tmp_path / "was_run"
    (copy / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    content = json.loads((copy / named_in).read_text()) | REMOTE
    (copy / named_in).write_text(json.dumps(content))
    holds(lambda: text_tower.text_config(copy), str(copy))
    holds(lambda: from_folder(copy), str(copy))
    assert not mark.exists()


def _copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy", dirs_exist_ok=True))


@given(content=NO_JSON | (JSON | replaced([CLIP, CLIP])).map(as_json))
@quick
def test_manifests_of_clips(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    holds(lambda: read_manifest(tmp_path / "manifest.json", tmp_path), "manifest.json")


@given(data=st.data())
@quick
def test_embeddings(tmp_path: Path, data: st.DataObject) -> None:
    spec = EmbeddingSpec(run_id="c-1", num_clips=3, clips_per_shard=2, max_windows=2, dim=2, size=16, span=8, hop=4)
    folder = _embedded(tmp_path, spec)
    whole = json.loads((folder / "whole.json").read_text())
    (folder / "zarr.json").write_bytes(data.draw(NO_JSON | (JSON | replaced(whole)).map(as_json)))
    holds(lambda: Embeddings(tmp_path, spec.run_id), str(tmp_path))


@functools.cache
def _embedded(store: Path, spec: EmbeddingSpec) -> Path:
    vectors = [np.ones((2, 2), np.float32)]
    published = embedding_shards.create(store / "array", spec)
    for shard, clips in enumerate((2, 1)):
        published += embedding_shards.write_shard(store / f"shard{shard}", spec, shard, vectors * clips)[0]
    for file, place in published:
        (store / place).parent.mkdir(parents=True, exist_ok=True)
        file.rename(store / place)
    folder = store / "embeddings" / spec.run_id / "video"
    shutil.copy(folder / "zarr.json", folder / "whole.json")
    assert Embeddings(store, spec.run_id).spec == spec
    return folder


def test_values_of_other_files_are_not_read_through_an_hdf5_file(tmp_path: Path) -> None:
    shape, path = (1, 3, 1, 8, 8), tmp_path / "given.h5"
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["videos"] = np.zeros(shape, np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("outside", shape, np.uint8, external=[(str(tmp_path / "secret.bin"), 0, 192)])
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "videos")
        layout = h5py.VirtualLayout(shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "videos", shape)
        file.create_virtual_dataset("virtual", layout)
        file["own"] = np.zeros(shape, np.uint8)
    for name in ("outside", "linked", "virtual"):
        with pytest.raises(ValueError, match=rf"given\.h5: no dataset '{name}'.*one of: own"):
            LegacyVideos(path, name)
    assert LegacyVideos(path, "own").num_clips == 1


@pytest.fixture(scope="module")
def registry(reported: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with all that the report shows, short metrics and a run of each kind."""
    home = Path(shutil.copytree(reported.home, tmp_path_factory.mktemp("registry") / "home"))
    for metrics in home.rglob("metrics.*.jsonl"):
        metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:20]))
    return home


@given(data=st.data())
@settings(parent=quick, max_examples=60)
def test_records_that_the_report_shows(registry: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(_records(registry)))
    whole = path.read_bytes()
    run = next(folder for folder in path.parents if folder.parent.parent.name == "runs")
    path.write_bytes(data.draw(_damaged_record(path.suffix, whole)))
    try:
        selection = Selection(named=(run.name.rpartition("-")[2],), alone=True)
        report = Reader(registry=Registry(registry), selection=selection).read()
        assert len(report.index["runs"]) == 1 and "<html" in page(report)
    finally:
        path.write_bytes(whole)


@functools.cache
def _records(home: Path) -> list[Path]:
    return [
        path
        for path in sorted((home / "runs").rglob("*"))
        if path.suffix in (".json", ".jsonl") or path.name.startswith("beat.") or path.name == "DONE"
    ]


def _damaged_record(suffix: str, whole: bytes) -> st.SearchStrategy[bytes]:
    if suffix != ".jsonl":
        content: Any = json.loads(whole)
        return NO_JSON | (JSON | replaced(content)).map(as_json)
    lines = whole.splitlines()
    line = st.one_of(NO_JSON, JSON.map(as_json), *(replaced(json.loads(one)).map(as_json) for one in lines[:3]))
    return line.map(lambda first: b"\n".join([first, *lines, b""])) | damaged(whole)
