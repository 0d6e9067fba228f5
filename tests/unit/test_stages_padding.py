"""Frames that only stand still behind a short clip's last one teach the diffusion stages nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from data_fixtures import build_store, publish, write_dataset, write_mp4
from safetensors.torch import save_file
from torch import Tensor

from dalle2_video.config import ClipConfig, DecoderConfig, SpatialSrConfig, TemporalSrConfig
from dalle2_video.data.batches import to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.embeddings import Embeddings
from dalle2_video.data.store import Store
from dalle2_video.data_config import DataConfig, WindowConfig
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.generation.embed import EmbedArray
from dalle2_video.models.factory import WEIGHTS, ModelDims, build, export_files
from dalle2_video.stages import STAGES, StageInputs
from experiments.recipes import tiny

RECIPE = tiny.recipe()
UNET, DIFFUSION, OPTIM = RECIPE.decoder.unet, RECIPE.decoder.diffusion, RECIPE.decoder.optim
WINDOW = WindowConfig(size=16, num_frames=6)
CONFIGS = {
    "decoder": DecoderConfig(window=WINDOW, unet=UNET, diffusion=DIFFUSION, optim=OPTIM),
    "temporal_sr": TemporalSrConfig(window=WINDOW, unet=UNET, diffusion=DIFFUSION, optim=OPTIM),
    "spatial_sr": SpatialSrConfig(window=WINDOW, low_size=8, crop_size=8, unet=UNET, diffusion=DIFFUSION, optim=OPTIM),
}
VALID = torch.tensor([6, 1, 4])


def export_clip(folder: Path, config: ClipConfig) -> Path:
    """Return the export of a CLIP with fresh weights."""
    (folder / "export").mkdir()
    dims = ModelDims(vocab_size=300, text_context=8, embed_dim=config.embed_dim, text_dim=config.text.dim)
    save_file(build(config, dims).state_dict(), str(folder / "export" / WEIGHTS))
    for name, text in export_files("clip", config, dims, fps=8.0).items():
        (folder / "export" / name).write_text(text)
    return folder / "export"


@pytest.fixture(scope="module")
def clip_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_clip(tmp_path_factory.mktemp("clip"), RECIPE.clip)


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_loss_of_a_stage_does_not_see_what_is_predicted_for_padded_frames(stage: str, clip_export: Path) -> None:
    made = STAGES[stage](
        StageInputs(config=CONFIGS[stage], seed=0, store=Path("none"), exports={"clip": clip_export}, embeddings="clip")
    )
    torch.manual_seed(0)
    batch = {
        "sample": torch.arange(3),
        "tokens": torch.randint(3, 32, (3, 8)),
        "length": torch.full((3,), 8),
        "video": torch.randint(0, 256, (3, 6, 16, 16, 3), dtype=torch.uint8),
        "low_video": torch.randint(0, 256, (3, 6, 8, 8, 3), dtype=torch.uint8),
        "embedding": torch.randn(3, RECIPE.clip.embed_dim),
    }
    padded = torch.arange(6) >= VALID[:, None]

    def loss(wrong_bt: Tensor, **more: Tensor) -> float:
        def model(noised: Tensor, logsnr: Tensor, **conditions: Tensor) -> Tensor:
            return torch.cos(noised) + 100.0 * wrong_bt[:, None, :, None, None]

        return made.loss(model, batch | more, Draws(0, batch["sample"], "cpu"))[0].item()

    nowhere = torch.zeros(3, 6)
    assert loss(padded.float(), valid=VALID) == loss(nowhere, valid=VALID)
    assert loss(padded.float()) > 1000
    for sample, frames in enumerate(VALID.tolist()):
        last = nowhere.clone()
        last[sample, frames - 1] = 1.0
        assert loss(last, valid=VALID) > 100


def test_the_loss_of_a_padded_video_is_that_of_its_real_frames_alone() -> None:
    parts = torch.randn(3, 3, 2, 6, 4, 4).unbind()
    logsnr = torch.randn(3)
    found = diffusion_loss(*parts, logsnr, "v", VALID)
    for sample, frames in enumerate(VALID.tolist()):
        only = slice(sample, sample + 1)
        torch.testing.assert_close(
            found[only], diffusion_loss(*(part[only, :, :frames] for part in parts), logsnr[only], "v")
        )


def test_the_embedding_of_a_short_clip_is_that_of_its_frames_with_the_last_standing_still(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "raw", ["long_clip_a_0_0", "shortclip_b_0_0"])
    write_mp4(root / "videos/celebvtext_6/shortclip_b_0_0.mp4", seconds=0.625)
    config = DataConfig(
        frame_sizes=(16,), fps=8.0, min_frames=16, max_frames=24, chunk_frames=8, clips_per_shard=2, vocab_size=300,
        text_context=8, val_fraction=0.0, short_clips="pad",
    )  # fmt: skip
    build_store(root, config, tmp_path / "store", tmp_path / "staging")
    export = export_clip(
        tmp_path, dataclasses.replace(RECIPE.clip, window=WindowConfig(size=16, num_frames=5, stride=2))
    )
    array = EmbedArray(store=tmp_path / "store", clip_export=export, name="clip", hop=4, device=torch.device("cpu"))
    publish(array.prepare(tmp_path / "create"), tmp_path / "store")
    published, record = array.run_task(0, tmp_path / "task", lambda share: None)
    publish(published, tmp_path / "store")
    store, found = Store(tmp_path / "store"), Embeddings(tmp_path / "store", "clip")
    assert store.num_frames.tolist() == [20, 5]
    assert record["windows"] == 3 + 1
    for row, window, frames in ((0, 0, [0, 2, 4, 6, 8]), (0, 2, [8, 10, 12, 14, 16]), (1, 0, [0, 2, 4, 4, 4])):
        stored = store.frames(16).read(row, 0, int(store.num_frames[row]))
        expected = array.clip.encode_video(to_float(torch.from_numpy(stored[frames])[None]))[0]
        torch.testing.assert_close(torch.from_numpy(found.read(row, window)), expected, rtol=1e-4, atol=1e-5)
