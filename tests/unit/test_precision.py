"""Gradients of every model at a tiny size: bf16 weights against fp32 within bounds, checkpointed against plain to the
bit. ZeRO over ranks: test_zero_state and tests/faults/test_elastic_training; CLIP's loss over ranks:
test_models_contrastive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_models_clip import CONFIG as CLIP
from test_models_clip import CONTEXT, VOCAB, clip_batch
from test_models_prior import CONFIG as PRIOR
from test_models_prior import conditions
from test_models_unet3d import DECODER, SUPER_RESOLUTION, inputs, unet
from torch import Tensor, nn

from dalle2_video.models.clip import Clip
from dalle2_video.models.contrastive import contrastive_loss
from dalle2_video.models.prior import Prior

COSINE = 0.999
"""Of the whole bf16 gradient with that in fp32, at least; measured: 0.9996."""
WHOLE = 0.06
"""Norm of the difference of the whole gradients over that in fp32, at most; measured: 0.030, as bf16 has 8 bits."""
PARAMETER = 0.15
"""The same of one parameter's gradient; measured: 0.09."""
NEGLIGIBLE = 2e-3
"""Share of the whole gradient's norm below which a parameter's error is measured against this: a bias before a norm has
no gradient but rounding errors, in fp32 too."""

Made = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def clip(**extra: Any) -> Made:
    torch.manual_seed(0)
    return Clip(CLIP, VOCAB, CONTEXT, **extra), lambda model: contrastive_loss(*model(*clip_batch()))[0]


def prior(**extra: Any) -> Made:
    torch.manual_seed(0)
    target = torch.randn(3, 12)
    model = Prior(PRIOR, embed_dim=12, text_dim=20, **extra)
    return model, lambda model: (model(**conditions()) - target).square().mean()


def of_unet(kind: dict[str, Any], **extra: Any) -> Made:
    values = inputs(kind)
    target = torch.randn(values["noised_bcthw"].shape)
    return unet(kind, **extra), lambda model: (model(**values).float() - target).square().mean()


def of_learned_variance(**extra: Any) -> Made:
    values = inputs(DECODER)
    model = unet(DECODER, learned_variance=True, **extra)
    target = torch.randn(model(**values).shape)
    return model, lambda model: (model(**values).float() - target).square().mean()


MODELS: dict[str, Callable[..., Made]] = {
    "clip": clip,
    "prior": prior,
    "decoder": lambda **extra: of_unet(DECODER, **extra),
    "super_resolution": lambda **extra: of_unet(SUPER_RESOLUTION, **extra),
    "learned_variance": of_learned_variance,
}


def gradients(name: str, dtype: torch.dtype = torch.float32, **extra: Any) -> dict[str, Tensor]:
    """Return the gradient of each parameter, fp32."""
    model, loss = MODELS[name](**extra)
    model.to(dtype)
    loss(model).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.float() for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_bf16_gradient_is_near_that_in_fp32(name: str) -> None:
    right, found = gradients(name), gradients(name, torch.bfloat16)
    assert found.keys() == right.keys()
    whole, rounded = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (right, found))
    norm = whole.norm().item()
    assert torch.nn.functional.cosine_similarity(whole, rounded, dim=0).item() > COSINE
    assert 1e-3 < (rounded - whole).norm().item() / norm < WHOLE
    for parameter, grad in right.items():
        error = (found[parameter] - grad).norm().item()
        assert error < PARAMETER * max(grad.norm().item(), NEGLIGIBLE * norm), parameter


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpointed_gradient_is_the_plain_one_to_the_bit(name: str, checkpointing: str) -> None:
    right, found = gradients(name), gradients(name, activation_checkpointing=checkpointing)
    assert found.keys() == right.keys()
    assert [name for name, grad in right.items() if not torch.equal(grad, found[name])] == []
