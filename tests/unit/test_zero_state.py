"""What the suite needs of DeepSpeed's private state, on real ranks at all ZeRO stages: fails first when a release moves
it. Every stage trains as plain PyTorch does, and leaves everything as it was after a gradient that is not finite."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zero_ranks import BATCH, PRECISIONS, SAVED_AT, STAGES, STEPS, data, optim, run_ranks, small_model

from dalle2_video.training.engine import _parameter_groups, deepspeed_config, learning_rate
from dalle2_video.training.zero_layout import equal_cuts

EVERY_ENGINE = [f"stage{stage}-{precision}" for precision in PRECISIONS for stage in STAGES]


def plain_training() -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of the tests' model, data and settings, without DeepSpeed."""
    module, config, batches = small_model(), optim(), data()
    adamw = torch.optim.AdamW(_parameter_groups(module, config.weight_decay), betas=config.betas)
    found = []
    for step in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = module(batches[step]).square().mean()
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], config.max_grad_norm)
        adamw.step()
        found.append((loss.item(), float(norm)))
    return found


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """What engines of all stages on two ranks did."""
    folder = tmp_path_factory.mktemp("engines")
    return folder, run_ranks("engines", folder, 2)[2]


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_masters_and_ema_start_as_the_exact_fp32_weights(engines: tuple[Path, dict], key: str) -> None:
    found = engines[1][key]
    assert found["names"] == sorted(name for name, p in small_model().named_parameters() if p.requires_grad)
    assert found["initial"] == {"fp32": True, "ema": True}


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradient_norms_are_those_of_plain_training(engines: tuple[Path, dict], stage: int) -> None:
    expected = plain_training()[:SAVED_AT]
    for found, right in zip(engines[1][f"stage{stage}-fp32"]["losses"], expected, strict=True):
        assert found == pytest.approx(list(right), rel=1e-5)
    # Or clipping would go untested.
    assert max(norm for _, norm in expected) > optim().max_grad_norm > min(norm for _, norm in expected)


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_anywhere(
    engines: tuple[Path, dict], key: str
) -> None:
    found = engines[1][key]["skipped"]
    assert found["applied_or_finite"] == [False] * 8
    assert set(found["after"]) == {found["before"]}


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_a_run_resumed_after_a_skipped_step_goes_on_to_the_bit(engines: tuple[Path, dict], key: str) -> None:
    found = engines[1][key]["skipped"]
    assert found["updates"] == SAVED_AT
    assert (found["resumed_rest"], found["resumed_end"]) == (found["rest"], found["end"])
    assert found["end"] != found["before"]


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_a_gradient_norm_beyond_the_limit_changes_nothing_and_one_at_the_limit_is_applied(
    engines: tuple[Path, dict], key: str
) -> None:
    found = engines[1][key]["limited"]
    assert found["applied"] == [False, False, True]
    assert found["unchanged"] and found["moved"]
    # The forward pass used the same weights, so that the same step gave the same norm again.
    assert found["norms"][0] == found["norms"][1] > 0


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_training_may_go_on_while_a_snapshot_is_written(engines: tuple[Path, dict], key: str) -> None:
    assert engines[1][key]["snapshot"] == {"moved": True, "same": True}


@pytest.mark.parametrize("key", EVERY_ENGINE)
def test_export_is_what_safetensors_writes_of_the_whole_ema(engines: tuple[Path, dict], key: str) -> None:
    folder, found = engines
    written = (folder / f"export-{key}" / "model.safetensors").read_bytes()
    assert written == (folder / f"expected-{key}.safetensors").read_bytes()
    assert len(found[key]["export"]["digest"]) == 64
    assert found[key]["untrained"] == ["count", "frozen.bias", "frozen.weight", "mean"]


@given(numel=st.integers(0, 1000), world=st.integers(1, 17))
def test_cuts_cover_a_parameter_once_in_pieces_of_equal_length(numel: int, world: int) -> None:
    cuts = equal_cuts(numel, world)
    sizes = [last - first for first, last in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == numel and len(sizes) == world
    assert sorted(sizes, reverse=True) == sizes and len(set(sizes)) <= 3


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_config_accumulates_and_sends_gradients_in_fp32_at_every_stage(stage: int, precision: str) -> None:
    config = deepspeed_config(optim(precision), 3, 4, 2, cuda=False, zero_stage=stage)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"} and config["communication_data_type"] == "fp32"
    assert config["train_batch_size"] == BATCH
    assert config["zero_optimization"]["stage"] == (max(stage, 1) if precision == "bf16" else stage)
