"""The bench of sampling: its figures are what it says, and a peer that is not there leaves none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tools.bench import peers, sample
from tools.bench.sample_work import our_sampler
from tools.bench.timing import Results
from tools.bench.train_step_contenders import CONTENDERS, OURS, Size, inputs, matched

SMALL = Size(batch=2, frames=2, side=8, dim=8, blocks=1, prior_dim=64, prior_depth=1, prior_batch=1)


def test_without_the_peer_there_is_no_figure_but_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str, **__: bool) -> Path:
        raise peers.PeersMissing("no index")

    monkeypatch.setattr(peers, "peers_python", missing)
    results = Results(unit="s")
    sample.against_the_peer(results, sample.Arguments(quick=True))
    assert results.absent == {"peer_time_over_ours": "no index"} and not results.figures


def test_ours_is_the_whole_sampler_with_one_call_of_the_network_a_step() -> None:
    device = torch.device("cpu")
    module, calls = matched(OURS, SMALL, None)().eval(), []
    module.register_forward_hook(lambda *_: calls.append(1))
    videos = our_sampler(module, inputs(CONTENDERS[OURS], SMALL, device), steps=3)()
    assert videos.shape == (2, 3, 2, 8, 8) and videos.abs().max() <= 1 and len(calls) == 3


def test_memory_is_that_of_an_array_whose_videos_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUICK_PROMPTS", 6), ("WARM", 2), ("AT_ONCE", 2)):
        monkeypatch.setattr(sample, name, value)
    results = Results(unit="MiB")
    sample.memory(results, tmp_path, sample.Arguments(quick=True))
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 6
    assert 0.5 < results.figures["rss_growth"] < 2 and len(results.rounds["resident MiB"]) == 3
