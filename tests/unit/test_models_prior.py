"""Prior and the transformer parts below it: what conditions may and may not change."""

import torch

from dalle2_video.config import TransformerConfig
from dalle2_video.models.attention import MultiHeadAttention, RelativePositionBias, Transformer
from dalle2_video.models.prior import Prior

CONFIG = TransformerConfig(dim=32, depth=2, heads=4)


def prior() -> Prior:
    torch.manual_seed(0)
    return Prior(CONFIG, embed_dim=12, text_dim=20).eval()


def conditions(count=3, length=6):
    torch.manual_seed(1)
    mask = torch.arange(length) < torch.tensor([2, 4, 6])[:count, None]
    return {
        "noised_bd": torch.randn(count, 12),
        "logsnr_b": torch.linspace(-4, 4, count),
        "text_embedding_bd": torch.nn.functional.normalize(torch.randn(count, 12), dim=-1),
        "encodings_bld": torch.randn(count, length, 20),
        "text_mask_bl": mask,
        "keep_b": torch.ones(count, dtype=torch.bool),
    }


def test_every_input_changes_the_prediction():
    model, inputs = prior(), conditions()
    reference = model(**inputs)
    assert reference.shape == (3, 12)
    for name in ("noised_bd", "logsnr_b", "text_embedding_bd", "encodings_bld"):
        changed = model(**inputs | {name: inputs[name].roll(1, 0)})
        assert ((changed - reference).abs().amax(1) > 1e-4).all(), name


def test_dropped_caption_has_exactly_no_influence():
    model, inputs = prior(), conditions()
    inputs["keep_b"] = torch.tensor([False, True, False])
    other = inputs | {
        "text_embedding_bd": torch.randn(3, 12),
        "encodings_bld": torch.randn(3, 6, 20),
        "text_mask_bl": torch.ones(3, 6, dtype=torch.bool),
    }
    one, two = model(**inputs), model(**other)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert not torch.allclose(one[1], two[1])


def test_padded_encodings_have_no_influence():
    model, inputs = prior(), conditions()
    garbage = torch.where(inputs["text_mask_bl"][..., None], inputs["encodings_bld"], torch.tensor(1e4))
    assert torch.equal(model(**inputs), model(**inputs | {"encodings_bld": garbage}))


def test_every_parameter_gets_a_gradient_even_if_all_captions_are_dropped():
    for keep in (True, False):
        model = prior()
        model(**conditions() | {"keep_b": torch.full((3,), keep)}).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.ndim > 0, name


def test_prior_builds_on_meta_and_runs_with_bf16_weights():
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in Prior(CONFIG, 12, 20).parameters())
    prediction = prior().bfloat16()(**conditions())
    assert prediction.dtype == torch.float32
    assert torch.isfinite(prediction).all()


def test_attention_with_mask_causal_flag_and_bias_matches_the_formula():
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 2)
    x, bias = torch.randn(2, 5, 16), torch.randn(2, 5, 5)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    layers = (attention.to_q, attention.to_k, attention.to_v)
    q, k, v = (layer(x).reshape(2, 5, 2, 8).transpose(1, 2) for layer in layers)
    plain = q @ k.transpose(-1, -2) / 8**0.5
    triangle = torch.ones(5, 5, dtype=torch.bool).tril()
    for use_mask in (False, True):
        for use_causal in (False, True):
            for use_bias in (False, True):
                logits = plain + bias if use_bias else plain
                if use_mask:
                    logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
                if use_causal:
                    logits = logits.masked_fill(~triangle, float("-inf"))
                expected = attention.to_out((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 16))
                found = attention(
                    x,
                    mask_bm=mask if use_mask else None,
                    causal=use_causal,
                    bias_hlm=bias if use_bias else None,
                )
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_relative_bias_depends_on_the_signed_distance_only_and_any_length_works():
    torch.manual_seed(0)
    bias = RelativePositionBias(3)
    small, large = bias(6, torch.device("cpu")), bias(300, torch.device("cpu"))
    assert torch.equal(small, large[:, :6, :6])
    assert torch.equal(small[:, :-1, :-1], small[:, 1:, 1:])
    assert (small[:, 0, 3] != small[:, 3, 0]).all()
    # the first distances have a bucket each, the farthest share one
    assert len(small[0, 0].unique()) == 6
    assert large[0, 0, 200] == large[0, 0, 299]


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=16, depth=1, heads=2, dropout=0.5))
    x = torch.randn(1, 4, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
