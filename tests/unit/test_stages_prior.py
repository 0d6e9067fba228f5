"""The prior's sanity figures: of one that is perfect, of one that copies the text, and of a fresh one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from dalle2_video.data.draws import Draws
from dalle2_video.models.factory import WEIGHTS, ModelDims, build, export_files
from dalle2_video.stages import StageInputs
from dalle2_video.stages.prior import JUDGED, PriorStage
from experiments.recipes import tiny

RECIPE = tiny.recipe()
COUNT, DIM = 12, RECIPE.clip.embed_dim


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> PriorStage:
    folder = tmp_path_factory.mktemp("clip")
    dims = ModelDims(vocab_size=300, text_context=8, embed_dim=DIM, text_dim=RECIPE.clip.text.dim)
    torch.manual_seed(0)
    save_file(build(RECIPE.clip, dims).state_dict(), str(folder / WEIGHTS))
    for name, text in export_files("clip", RECIPE.clip, dims, fps=8.0).items():
        (folder / name).write_text(text)
    return PriorStage(StageInputs(config=RECIPE.prior, seed=0, store=Path("none"), exports={"clip": folder}))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 300, (COUNT, 8), generator=generator)
    tokens[1] = tokens[0]  # two clips of one caption
    return {
        "sample": torch.arange(COUNT),
        "tokens": tokens,
        "length": torch.full((COUNT,), 6),
        "embedding": functional.normalize(torch.randn(COUNT, DIM, generator=generator), dim=-1),
    }


def figures(stage: PriorStage, x0: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Figures of a prior whose prediction is a function of the text embedding."""
    given = batch()

    def model(noised: Tensor, logsnr: Tensor, text: Tensor, encodings: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        return x0(text) * math.sqrt(DIM)

    return stage.figures(stage.judge(model, given, Draws(0, given["sample"], "cpu")))


def test_a_perfect_prior_gives_the_true_embedding_and_one_that_copies_gives_the_text(stage: PriorStage) -> None:
    true = batch()["embedding"]
    perfect, copied = figures(stage, lambda text: true), figures(stage, lambda text: text)
    assert perfect["cosine_true"] == pytest.approx(1, abs=1e-5)
    assert perfect["cosine_text"] == pytest.approx(perfect["cosine_text_of_true"], abs=1e-5)
    assert copied["cosine_text"] == pytest.approx(1, abs=1e-5)
    assert copied["cosine_true"] == pytest.approx(copied["cosine_text_of_true"], abs=1e-5)
    assert copied["cosine_unrelated"] < 0.999


def test_unrelated_captions_are_those_with_other_tokens(stage: PriorStage) -> None:
    given = batch()
    text = stage.clip.encode_text(given["tokens"], given["length"]).embedding_bd
    found = figures(stage, lambda text: text)["cosine_unrelated"]
    other = torch.ones(COUNT, COUNT) - torch.eye(COUNT)
    other[0, 1] = other[1, 0] = 0
    assert found == pytest.approx(((text @ text.T) * other).sum().item() / other.sum().item(), abs=1e-5)
    # One caption alone has none to compare with.
    alone = {name: rows[:2] for name, rows in {"sampled": text, "video": text, "text": text}.items()}
    assert "cosine_unrelated" not in stage.figures(alone | {"tokens": given["tokens"][:2].float()})


def test_a_fresh_prior_is_judged_the_same_each_time_and_whatever_shares_its_batch(stage: PriorStage) -> None:
    torch.manual_seed(0)
    module, given = stage.build().eval(), batch()
    halves = [{name: rows[part] for name, rows in given.items()} for part in (slice(0, 5), slice(5, None))]
    with torch.no_grad():
        whole, *parts = (stage.judge(module, one, Draws(0, one["sample"], "cpu")) for one in (given, *halves))
    assert whole["sampled"].shape == (COUNT, DIM)
    torch.testing.assert_close(whole["sampled"].norm(dim=-1), torch.ones(COUNT))
    torch.testing.assert_close(torch.cat([part["sampled"] for part in parts]), whole["sampled"], atol=1e-4, rtol=1e-4)


def test_what_judging_costs_has_a_bound(stage: PriorStage) -> None:
    assert (stage.judged(70_000), stage.judged(3)) == (JUDGED, 3)


def test_recipes_have_the_prior_of_the_paper() -> None:
    diffusion = RECIPE.prior.diffusion
    found = (diffusion.objective, diffusion.sampling_steps, diffusion.condition_dropout, RECIPE.prior.candidates)
    assert found == ("x0", 64, 0.1, 2)
