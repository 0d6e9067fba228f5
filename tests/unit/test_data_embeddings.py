import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from data_fixtures import publish

from dalle2_video.data import embedding_shards, embeddings
from dalle2_video.data.embeddings import Embeddings, EmbeddingSpec, window_starts
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig
from dalle2_video.digests import file_digest

WINDOW = WindowConfig(size=16, num_frames=4, stride=2)  # spans 7 stored frames


@pytest.fixture
def spec(store_path: Path) -> EmbeddingSpec:
    return embeddings.spec_for(Store(store_path), "clip-1", WINDOW, hop=3, dim=5)


@pytest.fixture
def store_copy(store_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(store_path, tmp_path / "copy")
    return tmp_path / "copy"


def vectors_of(store: Store, spec: EmbeddingSpec, shard: int) -> list[np.ndarray]:
    rows = range(shard * spec.clips_per_shard, min((shard + 1) * spec.clips_per_shard, spec.num_clips))
    starts = [window_starts(int(store.num_frames[row]), spec.span, spec.hop) for row in rows]
    return [
        np.stack([np.full(5, row), *(np.full(5, row + start / 100) for start in of_row)])[1:].astype(np.float32)
        for row, of_row in zip(rows, starts, strict=True)
    ]


def test_window_starts_lie_on_the_grid_and_fit() -> None:
    assert window_starts(20, 7, 3).tolist() == [0, 3, 6, 9, 12]
    assert window_starts(7, 7, 3).tolist() == [0]
    assert window_starts(6, 7, 3).tolist() == [0]
    assert window_starts(0, 7, 3).tolist() == []


def test_every_window_s_embedding_is_read_back(store_copy: Path, spec: EmbeddingSpec, tmp_path: Path) -> None:
    store = Store(store_copy)
    publish(embedding_shards.create(tmp_path / "create", spec), store_copy)
    for shard in range(spec.num_shards):
        items, _ = embedding_shards.write_shard(tmp_path / f"task{shard}", spec, shard, vectors_of(store, spec, shard))
        assert [relative for _, relative in items] == [f"embeddings/clip-1/video/c.{shard}.0.0"]
        publish(items, store_copy)
    reader = Embeddings(store_copy, "clip-1")
    assert (reader.span, reader.hop, reader.dim) == (7, 3, 5)
    good = [*store.usable("train"), *store.usable("val")]
    for row in good:
        for window, start in enumerate(window_starts(int(store.num_frames[row]), 7, 3)):
            assert reader.read(row, window) == pytest.approx(row + start / 100)
        with pytest.raises(ValueError, match="no embedding of window 5"):
            reader.read(row, 5)
    bad = next(row for row in range(store.num_clips) if row not in good)
    with pytest.raises(ValueError, match="no embedding"):
        reader.read(bad, 0)
    plain = zarr.open_group(str(store_copy), mode="r")["embeddings/clip-1/video"]
    np.testing.assert_array_equal(plain[good[0], 1], reader.read(good[0], 1))
    windows = len(window_starts(int(store.num_frames[good[0]]), 7, 3))
    assert np.isfinite(plain[good[0], :windows]).all() and np.isnan(plain[good[0], windows:]).all()


def test_a_shard_of_bad_clips_has_its_file(spec: EmbeddingSpec, tmp_path: Path) -> None:
    items, facts = embedding_shards.write_shard(
        tmp_path, spec, 0, [np.empty((0, 5), np.float32)] * spec.clips_per_shard
    )
    assert facts == {"sha256": file_digest(items[0][0]), "bytes": items[0][0].stat().st_size}
    written = zarr.open_array(str(tmp_path / spec.name), mode="r")
    assert np.isnan(written[: spec.clips_per_shard]).all()


def test_missing_and_unfinished_embeddings_name_the_command(
    store_copy: Path, spec: EmbeddingSpec, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no embeddings of CLIP run clip-1.*launch/embed\.py"):
        Embeddings(store_copy, "clip-1")
    publish(embedding_shards.create(tmp_path / "create", spec), store_copy)
    publish(
        embedding_shards.write_shard(tmp_path / "t", spec, 0, vectors_of(Store(store_copy), spec, 0))[0], store_copy
    )
    with pytest.raises(ValueError, match=r"lack shard 1 of 4; .*tools/verify_store\.py .*--repair"):
        Embeddings(store_copy, "clip-1")
