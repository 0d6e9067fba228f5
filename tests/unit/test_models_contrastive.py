"""Losses over ranks are those of one big batch, to the last digits, in memory that grows with the local batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contrastive_ranks import CASES, CLIPS, MEMORY_AT_ONCE, MEMORY_BATCHES, MEMORY_DIM, batch, model, run_ranks
from torch import Tensor
from torch.nn import functional

from dalle2_video.models.contrastive import contrastive_loss, sigmoid_loss

WORLDS = (1, 2, 4)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return run_ranks(tmp_path_factory.mktemp("ranks"), *WORLDS)


def whole(video: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The papers' formulas, with all logits at once."""
    logits = scale * video @ text.T
    labels = torch.arange(len(logits))
    if bias is None:
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -functional.logsigmoid(signs * (logits + bias)).sum() / len(logits)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_have_the_loss_and_the_gradient_of_one_big_batch(answers: dict, world: int, case: str) -> None:
    clip = model(CASES[case][0])
    outputs = clip(*batch())
    loss = whole(*outputs)
    loss.backward()
    similarity = (outputs[0] @ outputs[1].T).detach()
    labels = torch.arange(len(similarity))
    hits = (similarity.argmax(1) == labels).float() + (similarity.argmax(0) == labels).float()
    for answer in answers[world]:
        found = answer[case]
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=2e-6, atol=0)
        assert found["accuracy"].item() == pytest.approx(hits.mean().item() / 2)
        for name, parameter in clip.named_parameters():
            assert parameter.grad is not None
            bound = 1e-5 * parameter.grad.abs().max().item()
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=bound, msg=name)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_peak_of_memory_grows_with_the_local_batch_and_not_with_its_square(answers: dict, kind: str) -> None:
    for answer in answers[2]:
        peaks = answer[f"{kind} peaks"]
        # Rows of 64 numbers, local and of both ranks, of both kinds, with their gradients: a few times as much.
        rows = [2 * count * MEMORY_DIM * 4 for count in MEMORY_BATCHES]
        blocks = 8 * MEMORY_AT_ONCE * 4
        assert all(peak < 10 * own + blocks for peak, own in zip(peaks, rows, strict=True)), peaks
        logits = (2 * MEMORY_BATCHES[-1]) ** 2 * 4
        assert peaks[-1] < logits / 1.5, (peaks, logits)
        assert peaks[-1] < 2.5 * peaks[-2] + blocks, peaks


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_blocks_of_any_size_give_what_float64_gives(at_once: int) -> None:
    torch.manual_seed(0)
    video = functional.normalize(torch.randn(13, 6), dim=-1)
    text = functional.normalize(video + 0.5 * torch.randn(13, 6), dim=-1)
    for loss, scalars in ((contrastive_loss, [100.0]), (sigmoid_loss, [20.0, -7.0])):
        inputs = [one.requires_grad_() for one in (video.clone(), text.clone(), *map(torch.tensor, zip(scalars)))]
        exact = [one.detach().double().requires_grad_() for one in inputs]
        found, expected = loss(*inputs, at_once=at_once)[0], whole(*exact)
        found.backward()
        expected.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        for one, other in zip(inputs, exact, strict=True):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_sigmoid_loss_of_known_embeddings() -> None:
    pairs = torch.eye(4)
    loss, accuracy = sigmoid_loss(pairs, pairs, torch.tensor([10.0]), torch.tensor([-10.0]))
    expected = functional.softplus(torch.tensor(0.0)) + 3 * functional.softplus(torch.tensor(-10.0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and accuracy.item() == 1


@pytest.mark.parametrize("world", WORLDS)
def test_judging_has_each_sample_once_and_in_order_on_any_number_of_ranks(answers: dict, world: int) -> None:
    found = [answer["judged"] for answer in answers[world]]
    assert all(one["figures"] == answers[1][0]["judged"]["figures"] for one in found)
    assert found[0]["figures"]["number"] == list(range(CLIPS))
    assert len({one["calls"] for one in found}) == 1
