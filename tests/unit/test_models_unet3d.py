"""3D U-Net: which inputs may change the output, equality under activation checkpointing, and ZeRO-3's rules."""

import dataclasses

import pytest
import torch

from dalle2_video.config import UnetConfig
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.models.unet_blocks import (
    Block,
    CrossAttention,
    SpatialAttention,
    TemporalAttention,
    modulated_norm,
    modulated_together,
)

CONFIG = UnetConfig(
    dim=8,
    dim_mults=(1, 2, 3),
    blocks=1,
    spatial_attention=(False, True, True),
    cross_attention=(False, True, True),
    temporal_attention=(True, False, True),
    temporal_convolution=(True, False, True),
    head_dim=8,
)
DECODER = {"embedding_dim": 12, "text_dim": 20, "low_res": False}
SUPER_RESOLUTION = {"embedding_dim": None, "text_dim": 20, "low_res": True}


def unet(kind=DECODER, config=CONFIG, **extra) -> Unet3D:
    """A network whose layers that start at zero were moved, as one step of training would."""
    torch.manual_seed(0)
    model = Unet3D(config, **kind, **extra)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def inputs(kind=DECODER, count=3, frames=4, height=8, width=8):
    torch.manual_seed(1)
    values = {
        "noised_bcthw": torch.randn(count, 3, frames, height, width),
        "logsnr_b": torch.linspace(-4, 4, count),
        "encodings_bld": torch.randn(count, 6, 20),
        "text_mask_bl": torch.arange(6) < torch.tensor([2, 4, 6])[:count, None],
        "keep_b": torch.ones(count, dtype=torch.bool),
    }
    if kind["embedding_dim"]:
        values["embedding_bd"] = torch.nn.functional.normalize(torch.randn(count, 12), dim=-1)
    if kind["low_res"]:
        values["low_res_bcthw"] = torch.randn(count, 3, frames, height, width)
        values["low_res_logsnr_b"] = torch.linspace(0, 8, count)
    return values


KINDS = pytest.mark.parametrize("kind", [DECODER, SUPER_RESOLUTION], ids=["decoder", "super_resolution"])


@KINDS
@torch.no_grad()
def test_every_input_changes_the_prediction_of_its_sample(kind):
    model, values = unet(kind), inputs(kind)
    reference = model(**values)
    assert reference.shape == values["noised_bcthw"].shape
    for name in values.keys() - {"keep_b", "text_mask_bl"}:
        changed = model(**values | {name: values[name].roll(1, 0)})
        assert ((changed - reference).flatten(1).abs().amax(1) > 1e-4).all(), name


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    model, values = unet(), inputs()
    alone = model(**{name: value[1:2] for name, value in values.items()})
    torch.testing.assert_close(model(**values)[1:2], alone, atol=1e-5, rtol=1e-4)


@KINDS
@torch.no_grad()
def test_dropped_condition_has_exactly_no_influence(kind):
    model, values = unet(kind), inputs(kind)
    values["keep_b"] = torch.tensor([False, True, False])
    other = values | {"encodings_bld": torch.randn(3, 6, 20), "text_mask_bl": torch.ones(3, 6, dtype=torch.bool)}
    if kind["embedding_dim"]:
        other["embedding_bd"] = torch.randn(3, 12)
    one, two = model(**values), model(**other)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert not torch.allclose(one[1], two[1])


@torch.no_grad()
def test_padded_text_has_no_influence_whatever_it_holds_and_however_long_it_is():
    model, values = unet(), inputs()
    mask = values["text_mask_bl"]
    reference = model(**values)
    garbage = torch.where(mask[..., None], values["encodings_bld"], torch.tensor(torch.inf))
    assert torch.equal(model(**values | {"encodings_bld": garbage}), reference)
    longer = {
        "encodings_bld": torch.cat([values["encodings_bld"], torch.randn(3, 5, 20)], dim=1),
        "text_mask_bl": torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(model(**values | longer), reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["temporal_attention", "temporal_convolution"])
@torch.no_grad()
def test_frames_reach_each_other_through_time_only_and_their_order_matters(part):
    off = dict.fromkeys(("temporal_attention", "temporal_convolution", "cross_attention"), (False,) * 3)
    blind = dataclasses.replace(CONFIG, **off)
    seeing = dataclasses.replace(blind, **{part: (True,) * 3})
    values = inputs()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = values | {"noised_bcthw": values["noised_bcthw"][:, :, order]}
    without = unet(config=blind)
    torch.testing.assert_close(without(**shuffled), without(**values)[:, :, order], atol=1e-5, rtol=1e-4)
    model = unet(config=seeing)
    assert (model(**shuffled) - model(**values)[:, :, order]).abs().max() > 1e-3


@torch.no_grad()
def test_each_attention_reaches_exactly_its_own_pixels():
    """One changed pixel (sample 1, frame 2, row 1, column 4) changes what attends to it and nothing else."""
    batch, frames, height, width = 2, 3, 4, 5
    context, seen = torch.randn(batch, 6, 32), torch.ones(batch, 6, dtype=torch.bool)
    torch.manual_seed(0)
    parts = {
        "frame": (SpatialAttention(16, 8), lambda part, x: part(x)),
        "pixel": (CrossAttention(16, 8, 32), lambda part, x: part(x, context, seen)),
        "time": (TemporalAttention(16, 8), lambda part, x: part(x, batch)),
    }
    reached = {name: torch.zeros(batch, frames, height, width, dtype=torch.bool) for name in parts}
    reached["frame"][1, 2] = True
    reached["pixel"][1, 2, 1, 4] = True
    reached["time"][1, :, 1, 4] = True
    x = torch.randn(batch * frames, 16, height, width)
    changed = x.clone()
    changed[1 * frames + 2, :, 1, 4] = torch.randn(16)
    for name, (part, run) in parts.items():
        part.attention.to_out.weight.normal_()
        difference = (run(part, changed) - run(part, x)).abs().amax(1).reshape(batch, frames, height, width)
        assert torch.equal(difference > 1e-5, reached[name]), name


@torch.no_grad()
def test_any_length_and_any_size_that_divides():
    model = unet()
    for frames, height, width in [(1, 8, 8), (7, 8, 12), (9, 4, 4)]:
        prediction = model(**inputs(frames=frames, height=height, width=width))
        assert prediction.shape == (3, 3, frames, height, width)
        assert torch.isfinite(prediction).all()


def test_wrong_size_or_conditions_are_refused():
    model, values = unet(), inputs()
    with pytest.raises(ValueError, match="multiple of 4"):
        model(**inputs(width=6))
    with pytest.raises(ValueError, match="built with"):
        model(**values | {"embedding_bd": None})
    with pytest.raises(ValueError, match="built with"):
        model(**values | {"low_res_bcthw": values["noised_bcthw"], "low_res_logsnr_b": values["logsnr_b"]})


def test_untrained_blocks_are_the_identity_and_the_output_starts_at_zero():
    torch.manual_seed(0)
    block = Block(CONFIG, 2, 32, 32)
    x, context = torch.randn(6, 24, 4, 4), torch.randn(2, 5, 32)
    assert torch.equal(block(x, torch.randn(2, 32), context, torch.ones(2, 5, dtype=torch.bool)), x)
    assert not Unet3D(CONFIG, **DECODER)(**inputs()).any()


def test_the_condition_is_felt_as_soon_as_the_last_layers_are_not_zero():
    """Scale and shift start as any layer: learnt from zero behind layers at zero, they come a thousand steps late."""
    torch.manual_seed(0)
    block = Block(dataclasses.replace(CONFIG, cross_attention=(False,) * 3), 0, 32, 32)
    torch.nn.init.dirac_(block.residual.conv_out.weight)
    x, conditions = torch.randn(6, 8, 4, 4), torch.randn(2, 2, 32)
    one, other = (block(x, condition, None, None) for condition in conditions)
    assert (one - other).abs().mean() > 0.1


@KINDS
@pytest.mark.parametrize("keep", [True, False])
def test_every_parameter_gets_a_gradient_even_if_all_conditions_are_dropped(kind, keep):
    model = unet(kind)
    model(**inputs(kind) | {"keep_b": torch.full((3,), keep)}).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.ndim > 0, name


def test_network_without_cross_attention_has_no_unused_parameter():
    model = unet(config=dataclasses.replace(CONFIG, cross_attention=(False,) * 3))
    model(**inputs()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def saved_bytes_and_gradients(checkpointing: str):
    """Bytes that the graph holds between forward and backward, each storage once, and the gradients."""
    config = dataclasses.replace(CONFIG, dropout=0.1)
    model = unet(config=config, activation_checkpointing=checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prediction = model(**inputs())
    total = sum(held.values())
    prediction.square().mean().backward()
    return total, prediction.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("checkpointing", "share"), [("selective", 0.5), ("full", 0.34)])
def test_activation_checkpointing_saves_memory_and_changes_nothing(checkpointing, share):
    plain_bytes, plain, plain_gradients = saved_bytes_and_gradients("none")
    fewer_bytes, recomputed, recomputed_gradients = saved_bytes_and_gradients(checkpointing)
    assert fewer_bytes < plain_bytes * share
    assert torch.equal(plain, recomputed)
    for one, other in zip(plain_gradients, recomputed_gradients, strict=True):
        assert torch.equal(one, other)


@KINDS
def test_unet_builds_on_meta_and_runs_with_bf16_weights(kind):
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in Unet3D(CONFIG, **kind).parameters())
    prediction = unet(kind).bfloat16()(**inputs(kind))
    assert prediction.dtype == torch.float32
    assert torch.isfinite(prediction).all()


def test_samples_are_normed_and_modulated_together_as_one_by_one():
    torch.manual_seed(0)
    x = torch.randn(3 * 4, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(12, 16, 6, 6)
    scale, shift = torch.randn(3, 16), torch.randn(3, 16)
    found = []
    for norm in (modulated_norm, modulated_together):
        given = [tensor.clone().requires_grad_() for tensor in (x, scale, shift)]
        out = norm(*given)
        assert out.is_contiguous(memory_format=torch.channels_last)
        found.append([out, *torch.autograd.grad((out * weights).sum(), given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_no_random_number_is_drawn_without_dropout():
    model, values = unet(), inputs()
    state = torch.get_rng_state()
    model(**values)
    assert torch.equal(state, torch.get_rng_state())


# Images beside the videos, and the frame rate


def with_images(values, count=2):
    """The inputs with `count` images more and conditions for these."""
    more = inputs(count=count, frames=1)
    conditions = values.keys() - {"noised_bcthw"}
    more["logsnr_b"], more["encodings_bld"] = torch.linspace(-1, 3, count), torch.randn(count, 6, 20)
    images = torch.randn(count, 3, 8, 8)
    return values | {name: torch.cat([values[name], more[name]]) for name in conditions} | {"images_nchw": images}


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_videos_and_images_beside_them_are_predicted_as_if_each_were_alone(checkpointing):
    model, values = unet(activation_checkpointing=checkpointing), inputs()
    both = with_images(values)
    videos, images = model(**both)
    torch.testing.assert_close(videos, model(**values), atol=1e-5, rtol=1e-4)
    conditions = values.keys() - {"noised_bcthw"}
    for place in range(2):
        alone = {name: both[name][3 + place : 4 + place] for name in conditions}
        alone["noised_bcthw"] = both["images_nchw"][place : place + 1, :, None]
        torch.testing.assert_close(images[place : place + 1], model(**alone)[:, :, 0], atol=1e-5, rtol=1e-4)


def test_no_image_changes_a_video_or_another_image_nor_a_video_an_image():
    model, both = unet(), with_images(inputs())
    both["noised_bcthw"].requires_grad_()
    both["images_nchw"].requires_grad_()
    videos, images = model(**both)
    of_video, of_images = torch.autograd.grad(
        videos[1, :, -1].square().sum(), [both["noised_bcthw"], both["images_nchw"]], retain_graph=True
    )
    assert not of_images.any() and not of_video[[0, 2]].any()
    assert of_video[1].flatten(2).any(2).all(), "every frame of its own video"
    of_video, of_images = torch.autograd.grad(images[0].square().sum(), [both["noised_bcthw"], both["images_nchw"]])
    assert not of_video.any() and not of_images[1].any() and of_images[0].any()


def test_videos_and_images_both_reach_every_parameter():
    model, both = unet(), with_images(inputs())
    both["keep_b"] = torch.tensor([True, False, True, True, False])
    for which in (0, 1):
        model.zero_grad()
        model(**both)[which].square().mean().backward()
        still = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
        # which frame to look at is no question where there is one
        asks = (".temporal.attention.to_q.", ".temporal.attention.to_k.", ".temporal.bias.")
        needless = {name for name, _ in model.named_parameters() if any(part in name for part in asks)}
        assert still == (needless if which == 1 else set())


@torch.no_grad()
def test_the_frame_rate_changes_the_prediction_and_only_of_its_sample():
    model, values = unet(fps=True), inputs()
    slow = model(**values, fps_b=torch.full((3,), 4.0))
    assert torch.equal(slow, model(**values, fps_b=torch.full((3,), 4.0)))
    one_fast = model(**values, fps_b=torch.tensor([4.0, 8.0, 4.0]))
    changed = (one_fast - slow).flatten(1).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, False]
    still = model(**values, fps_b=torch.zeros(3))
    assert torch.isfinite(still).all() and (still - slow).abs().max() > 1e-3
    dropped = values | {"keep_b": torch.zeros(3, dtype=torch.bool)}
    with_rate = [model(**dropped, fps_b=torch.full((3,), fps)) for fps in (4.0, 8.0)]
    assert not torch.allclose(*with_rate), "the rate stays where text and embedding are dropped"


def test_the_frame_rate_and_images_are_refused_where_the_network_has_no_use_for_them():
    values, rate = inputs(), torch.full((3,), 8.0)
    with pytest.raises(ValueError, match="fps=False got"):
        unet()(**values, fps_b=rate)
    with pytest.raises(ValueError, match="fps=True got"):
        unet(fps=True)(**values)
    with pytest.raises(ValueError, match="takes no images_nchw"):
        unet(SUPER_RESOLUTION)(**inputs(SUPER_RESOLUTION), images_nchw=torch.zeros(1, 3, 8, 8))


def test_without_a_frame_rate_the_weights_are_those_of_before():
    names = Unet3D(CONFIG, **DECODER).state_dict().keys()
    with_rate = Unet3D(CONFIG, **DECODER, fps=True).state_dict().keys()
    assert {name.split(".")[1] for name in with_rate - names} == {"fps"} and names < with_rate
