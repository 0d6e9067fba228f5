"""Fixtures shared by the unit tests: one small data set and its store a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_fixtures import CLIP_IDS, build_store, write_dataset

from dalle2_video.data_config import DataConfig


@pytest.fixture(scope="session")
def data_config() -> DataConfig:
    return DataConfig(
        frame_sizes=(8, 16), fps=8.0, min_frames=16, max_frames=40, chunk_frames=8, clips_per_shard=3,
        vocab_size=300, text_context=16, val_fraction=0.3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root of eight good clips (20 frames at 8 fps) and two bad ones: a text file and one that is too short."""
    root = write_dataset(tmp_path_factory.mktemp("raw"), CLIP_IDS)
    write_dataset(root, ["short_clip__0_0"], seconds=0.5)
    (root / "videos/celebvtext_6/broken_clip_0_0.mp4").write_text("no video at all\n" * 50)
    for folder in (root / "texts").iterdir():
        (folder / "broken_clip_0_0.txt").write_text("never seen\n")
    return root


@pytest.fixture(scope="session")
def store_path(raw_dataset: Path, data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `raw_dataset`: read only, copy it to change it."""
    destination = tmp_path_factory.mktemp("store") / "store.zarr"
    build_store(raw_dataset, data_config, destination, tmp_path_factory.mktemp("staging"))
    return destination
