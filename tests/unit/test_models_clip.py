"""CLIP: what the encoders may depend on, and its temperature; losses over ranks are in test_models_contrastive."""

import math
from dataclasses import replace

import pytest
import torch

from dalle2_video.config import ClipConfig, OptimConfig, TextEncoderConfig, TransformerConfig
from dalle2_video.data_config import WindowConfig
from dalle2_video.models.clip import MAX_LOG_SCALE, Clip
from dalle2_video.models.contrastive import contrastive_loss
from dalle2_video.models.text_encoder import TextEncoder
from dalle2_video.models.video_encoder import VideoEncoder

SMALL = TransformerConfig(dim=16, depth=2, heads=2)
CONFIG = ClipConfig(
    window=WindowConfig(size=8, num_frames=4),
    patch_size=4,
    embed_dim=12,
    text=TextEncoderConfig(dim=24, depth=2, heads=2),
    spatial=SMALL,
    temporal=SMALL,
    optim=OptimConfig(steps=1, batch_size=4, lr=1e-3),
)
VOCAB, CONTEXT = 30, 10


def text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(CONFIG.text, VOCAB, CONTEXT, CONFIG.embed_dim).eval()


def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(CONFIG, VOCAB, CONTEXT)


def clip_batch(count=4):
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(count, 3, 4, 8, 8, generator=generator) * 2 - 1
    tokens = torch.randint(0, VOCAB, (count, CONTEXT), generator=generator)
    lengths = torch.randint(2, CONTEXT + 1, (count,), generator=generator)
    return video, tokens, lengths


def test_text_outputs_do_not_depend_on_what_pads_the_caption():
    encoder = text_encoder()
    tokens = torch.randint(0, VOCAB, (3, 8))
    lengths = torch.tensor([2, 5, 8])
    padded = torch.where(torch.arange(8) < lengths[:, None], tokens, (tokens + 7) % VOCAB)
    for one, other in zip(encoder(tokens, lengths), encoder(padded, lengths), strict=True):
        assert torch.equal(one, other)
    # neither on how far it is padded
    encodings, embedding = encoder(tokens[:1, :2], lengths[:1])
    torch.testing.assert_close(embedding, encoder(tokens, lengths)[1][:1])
    torch.testing.assert_close(encodings, encoder(tokens, lengths)[0][:1, :2])


def test_text_encoder_is_causal_and_reads_the_end_mark():
    encoder = text_encoder()
    tokens = torch.randint(0, VOCAB, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % VOCAB
    full = torch.tensor([8])
    before, embedding = encoder(tokens, full)
    after, changed_embedding = encoder(changed, full)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    assert not torch.allclose(embedding, changed_embedding)
    torch.testing.assert_close(embedding, encoder.project(before[:, 7]))


def test_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="context of 10"):
        text_encoder()(torch.zeros(1, CONTEXT + 1, dtype=torch.int64), torch.tensor([3]))


def test_video_encoder_sees_the_order_of_frames_and_the_place_of_pixels():
    torch.manual_seed(0)
    encoder = VideoEncoder(CONFIG).eval()
    video, _, _ = clip_batch(2)
    embedding = encoder(video)
    assert embedding.shape == (2, 12)
    for changed in (video.flip(2), video.flip(3), video.flip(4), video.flip(1)):
        assert (encoder(changed) - embedding).abs().max() > 1e-4


def test_positions_of_other_lengths_lie_on_the_line_through_the_learned_ones():
    torch.manual_seed(0)
    encoder = VideoEncoder(CONFIG).eval()
    still = torch.rand(1, 3, 1, 8, 8).expand(-1, -1, 7, -1, -1)
    seen = []
    encoder.temporal.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 1:]))
    for frames in (4, 7):
        encoder(still[:, :, :frames])
    torch.testing.assert_close(seen[1][::2], seen[0])
    torch.testing.assert_close(seen[1][1::2], (seen[0][1:] + seen[0][:-1]) / 2)


def test_video_encoder_takes_other_lengths_but_no_other_size():
    encoder = VideoEncoder(CONFIG).eval()
    for frames in (1, 3, 9):
        assert torch.isfinite(encoder(torch.zeros(2, 3, frames, 8, 8))).all()
    with pytest.raises(ValueError, match="resize"):
        encoder(torch.zeros(1, 3, 4, 16, 16))


def test_tubelets_see_motion_within_a_patch_and_take_whole_tubelets_alone():
    torch.manual_seed(0)
    encoder = VideoEncoder(replace(CONFIG, tubelet_frames=2)).eval()
    video = torch.rand(1, 3, 4, 8, 8)
    swapped = video[:, :, [1, 0, 2, 3]]
    assert not torch.allclose(encoder(video), encoder(swapped))
    assert torch.isfinite(encoder(torch.zeros(2, 3, 6, 8, 8))).all()
    with pytest.raises(ValueError, match="tubelet_frames=2"):
        encoder(torch.zeros(1, 3, 3, 8, 8))
    with pytest.raises(ValueError, match="tubelet_frames"):
        replace(CONFIG, tubelet_frames=3)


def test_a_stem_sees_the_order_of_frames_and_bad_stems_are_refused():
    torch.manual_seed(0)
    encoder = VideoEncoder(replace(CONFIG, stem_channels=4)).eval()
    video = torch.rand(1, 3, 4, 8, 8)
    assert encoder(video).shape == (1, 12)
    assert not torch.allclose(encoder(video), encoder(video.flip(2)))
    assert torch.isfinite(encoder(torch.zeros(2, 3, 7, 8, 8))).all()
    for changes in ({"stem_channels": 6}, {"stem_channels": 4, "patch_size": 1}):
        with pytest.raises(ValueError, match="stem_channels"):
            replace(CONFIG, **changes)


def test_clip_embeddings_have_unit_norm_and_the_scale_is_bounded():
    model = clip()
    video_bd, text_bd, scale = model(*clip_batch())
    torch.testing.assert_close(video_bd.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(text_bd.norm(dim=-1), torch.ones(4))
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(5000))
    assert model(*clip_batch())[2].item() == pytest.approx(100, rel=1e-5)


def test_a_scale_beyond_its_bound_finds_its_way_back_and_goes_no_further():
    model = clip()
    with torch.no_grad():
        model.logit_scale.fill_(MAX_LOG_SCALE + 0.5)
    for sign in (1, -1):
        model.logit_scale.grad = None
        (sign * model(*clip_batch())[2].sum()).backward()
        assert model.logit_scale.grad is not None
        assert model.logit_scale.grad.item() == (pytest.approx(100, rel=1e-5) if sign > 0 else 0.0)


def test_contrastive_loss_of_known_embeddings():
    pairs, scale = torch.eye(4), torch.tensor([10.0])
    loss, accuracy = contrastive_loss(pairs, pairs, scale)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-10)), abs=1e-6)
    assert accuracy.item() == 1
    assert contrastive_loss(pairs, pairs.roll(1, 0), scale)[1].item() == 0
    alike = torch.ones(4, 4) / 2
    assert contrastive_loss(alike, alike, scale)[0].item() == pytest.approx(math.log(4), abs=1e-5)


def test_contrastive_training_learns_the_pairs_of_a_batch():
    model = clip()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    accuracy = torch.zeros(())
    for _ in range(60):
        loss, accuracy = contrastive_loss(*model(*clip_batch(8)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert accuracy.item() == 1


def test_every_parameter_gets_a_gradient_and_none_is_zero_dimensional():
    model = clip()
    contrastive_loss(*model(*clip_batch()))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.ndim > 0, name


def test_clip_builds_on_meta_and_runs_with_bf16_weights():
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in Clip(CONFIG, VOCAB, CONTEXT).parameters())
    outputs = clip().bfloat16()(*clip_batch())
    assert all(output.dtype == torch.float32 and torch.isfinite(output).all() for output in outputs)
