"""Feature networks in TorchScript files: what they are given, what is refused, and what stands for them in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dalle2_video.evaluate_config import EvaluateConfig
from dalle2_video.evaluation import feature_files
from dalle2_video.evaluation.feature_network import FeatureNetwork

CPU = torch.device("cpu")


class LikeI3d(nn.Module):
    """Its forward has the arguments of the I3D file that is in use for FVD."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features
        assert x.dtype == torch.float32 and x.shape[1] == 3
        return torch.stack([x.amin(dim=(1, 2, 3, 4)), x.amax(dim=(1, 2, 3, 4)), x[:, 0].mean(dim=(1, 2, 3))], dim=1)


class Plain(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames.mean(dim=(2, 3))


class Wrong(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return x
        if self.kind == 1:
            return x.mean(dim=(2, 3)) * float("nan")
        return x.reshape(7, 7)


def saved(module: nn.Module, path: Path) -> tuple[str, str]:
    torch.jit.script(module).save(str(path))
    return str(path), feature_files.digest("video_features", path)


def test_videos_come_as_the_files_in_use_want_them(tmp_path: Path) -> None:
    network = FeatureNetwork("video_features", *saved(LikeI3d(), tmp_path / "i3d.pt"), CPU)
    videos = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 4, 3), np.uint8)
    videos[0, 0, 0, 0, 0], videos[0, 1, 0, 0, 1] = 0, 255
    found = network.of_videos(videos)
    assert found.shape == (2, 3) and found.dtype == np.float32
    assert found[0, :2].tolist() == [0.0, 255.0]
    assert found[:, 2] == pytest.approx(videos[..., 0].mean(axis=(1, 2, 3)))


def test_frames_come_with_their_channels_in_front_and_without_switches_that_are_not_there(tmp_path: Path) -> None:
    network = FeatureNetwork("frame_features", *saved(Plain(), tmp_path / "plain.pt"), CPU)
    frames = np.random.default_rng(1).integers(0, 256, (3, 6, 4, 3), np.uint8)
    assert network.switches == {}
    assert network.of_frames(frames) == pytest.approx(frames.mean(axis=(1, 2)), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "words"), [(0, r"wanted features \(2, d\)"), (1, "not finite"), (2, r"failed on an input \(2, 3, 4, 4\)")]
)
def test_what_is_no_feature_is_refused_with_the_file_s_name(kind: int, words: str, tmp_path: Path) -> None:
    network = FeatureNetwork("frame_features", *saved(Wrong(kind), tmp_path / "wrong.pt"), CPU)
    with pytest.raises(ValueError, match=f"evaluate.frame_features=.*wrong.pt .*{words}"):
        network.of_frames(np.zeros((2, 4, 4, 3), np.uint8))


def test_a_pickle_and_another_file_are_refused(tmp_path: Path) -> None:
    path, digest = saved(Plain(), tmp_path / "net.pt")
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not the file of that run"):
        FeatureNetwork("frame_features", path, digest, CPU)
    with pytest.raises(ValueError, match="no TorchScript file"):
        FeatureNetwork("frame_features", path, feature_files.digest("frame_features", Path(path)), CPU)


def test_a_run_is_known_by_the_content_of_the_file(tmp_path: Path) -> None:
    first, digest = saved(Plain(), tmp_path / "a.pt")
    other = tmp_path / "b.pt"
    other.write_bytes(Path(first).read_bytes())
    configs = [feature_files.resolved(EvaluateConfig(frame_features=path)) for path in (first, str(other))]
    assert configs[0] == configs[1] == EvaluateConfig(frame_features=digest) and digest.startswith("sha256:")
    assert feature_files.files_of(EvaluateConfig(frame_features=first)) == {"frame_features": first}
    with pytest.raises(ValueError, match=r"--evaluate.video-features .*none.pt: no such file"):
        feature_files.resolved(EvaluateConfig(video_features=str(tmp_path / "none.pt")))


def test_fields_of_another_target_are_refused() -> None:
    EvaluateConfig(video_features="i3d.pt").check_target("sample")
    EvaluateConfig(bound_clips=8, bound_steps=4).check_target("decoder")
    for config, target in (
        (EvaluateConfig(video_features="i3d.pt"), "clip"),
        (EvaluateConfig(bound_steps=4), "sample"),
        (EvaluateConfig(frame_features="i.pt"), "decoder"),
    ):
        with pytest.raises(ValueError, match="--of ID"):
            config.check_target(target)
    with pytest.raises(ValueError, match="bound_steps"):
        EvaluateConfig(bound_steps=1)
    with pytest.raises(ValueError, match="bound_clips"):
        EvaluateConfig(bound_clips=0)
