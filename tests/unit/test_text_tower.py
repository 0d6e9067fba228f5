"""A pretrained CLIP text tower: our outputs are transformers' own, and a run is made from its content, not its path."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from data_fixtures import CLIP_IDS, KIND_LINES, build_store, write_dataset
from safetensors.torch import save_file
from torch.nn import functional

from dalle2_video.config import ClipConfig, Recipe
from dalle2_video.data.draws import Draws
from dalle2_video.data.tokenizer import from_folder, train_bpe
from dalle2_video.data_config import DataConfig, WindowConfig
from dalle2_video.models.clip import Clip
from dalle2_video.models.factory import WEIGHTS, load_export
from dalle2_video.models.pretrained import load_text_tower
from dalle2_video.models.text_encoder import TextEncoder
from dalle2_video.stages import StageInputs
from dalle2_video.stages.clip import ClipStage
from dalle2_video.text_tower import digest, resolved
from experiments import identity
from experiments.recipes import tiny
from launch.arguments import parse
from launch.proposal import inputs_of, parts_of
from launch.stages import STAGES

CONTEXT, DIM = 16, 32


def tower(folder: Path, kind: str = "CLIPTextModelWithProjection", **changes: Any) -> Path:
    """Save a small random text tower with its tokenizer, as somebody who trained one would."""
    backend = train_bpe(["".join(KIND_LINES.values())], 300).backend
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<first>", eos_token="<last>", pad_token="<last>"
    )  # two new tokens, with the highest ids: the last one ends a text, as in CLIP's vocabulary
    sizes = {
        "vocab_size": len(tokenizer) + 5,  # rows that nothing reads, as released towers have for speed
        "hidden_size": DIM,
        "intermediate_size": 4 * DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT + 3,
        "projection_dim": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | changes
    torch.manual_seed(0)
    if kind == "CLIPModel":
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 8, "patch_size": 4}
        config = transformers.CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # transformers begins with biases of 0, which hide a bias that is left out
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder: Path | str, **text: Any) -> Recipe:
    """Return the demo's recipe on top of a text tower."""
    base = tiny.recipe()
    data = replace(base.data, tokenizer=str(folder), text_context=CONTEXT)
    clip = replace(base.clip, embed_dim=24, text=replace(base.clip.text, pretrained=str(folder), **text))
    return replace(base, data=data, clip=clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tower(tmp_path_factory.mktemp("tower") / "clip")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("CLIPTextModelWithProjection", {"hidden_act": "gelu"}),
        ("CLIPTextModelWithProjection", {"hidden_act": "quick_gelu", "eos_token_id": 2}),  # as the first ones released
        ("CLIPModel", {}),
    ],
)
def test_outputs_are_those_of_transformers(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder = tower(tmp_path, kind, **changes)
    text = resolved(recipe(folder)).clip.text
    tokenizer = from_folder(folder)
    encoder = TextEncoder(text, tokenizer.vocab_size, CONTEXT, 24).eval()
    load_text_tower(encoder, folder, text.pretrained)
    captions = ["a red square moves", "calm", "it moves to the right, the square is red, light from the left"]
    tokens, lengths, _ = (torch.from_numpy(array).long() for array in tokenizer.encode(captions, CONTEXT))
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        encodings, embedding = encoder(tokens, lengths)
        if kind == "CLIPModel":
            outputs = theirs.text_model(input_ids=tokens)
            expected = theirs.text_projection(outputs.pooler_output)
        else:
            outputs = theirs(input_ids=tokens)
            expected = outputs.text_embeds
    torch.testing.assert_close(embedding, expected, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(
            encodings[row, :length], outputs.last_hidden_state[row, :length], rtol=1e-5, atol=1e-5
        )


def test_a_run_is_made_from_the_content_of_the_folder_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "README.md").write_text("of no matter")
    parts, elsewhere = parts_of(recipe(folder), "clip"), parts_of(recipe(moved), "clip")
    assert parts == elsewhere
    text = parts["clip"].text
    assert (text.dim, text.depth, text.heads, text.activation, text.attention_bias) == (DIM, 2, 4, "quick_gelu", True)
    assert str(folder) not in identity.canonical_json(identity.without_defaults(parts))
    assert inputs_of(recipe(folder), "clip") == {"text_tower": str(folder)}
    assert inputs_of(recipe(folder), "prior") == inputs_of(tiny.recipe(), "clip") == {}

    other = tower(tmp_path / "other", layer_norm_eps=1e-5, initializer_range=0.05)
    assert parts_of(recipe(other), "clip") != parts
    assert digest(other) != digest(folder)


def test_commands_for_other_stages_name_the_folder_and_lead_to_the_same_run(folder: Path) -> None:
    tokenizer = ["--data.tokenizer", str(folder), "--data.text-context", str(CONTEXT)]
    text = ["--clip.embed-dim", "24", "--clip.text.pretrained", str(folder), "--clip.text.frozen"]
    typed = parse(STAGES["prior"], [*tokenizer, *text])
    again = parse(STAGES["clip"], shlex.split(typed.command("clip"))[2:])
    assert again.recipe.clip == typed.recipe.clip
    assert parts_of(again.recipe, "clip") == parts_of(typed.recipe, "clip")


def test_recipes_without_a_tower_are_what_they_were() -> None:
    # As before there was a tower, a choice of the loss, or of activations: their ids must stay.
    assert identity.digest(identity.without_defaults(tiny.recipe().clip)) == TINY_CLIP


TINY_CLIP = "9025317fdea3c65337f0a41e05921a4b5ca74fd4e7e1812570db01dc0e293741"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda one: replace(one, clip=replace(one.clip, embed_dim=64)), "--clip.embed-dim 24"),
        (lambda one: replace(one, data=replace(one.data, text_context=77)), "--data.text-context 19"),
    ],
)
def test_a_recipe_that_does_not_fit_the_tower_is_refused(folder: Path, changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(changed(recipe(folder)))


def test_a_folder_that_is_none_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json there; give the folder of a CLIPTextModelWithProjection"):
        resolved(recipe(tmp_path))
    weightless = shutil.copytree(folder, tmp_path / "a", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="save_pretrained"):
        resolved(recipe(weightless))
    for field, value in (("model_type", "bert"), ("hidden_act", "relu"), ("intermediate_size", 100)):
        strange = shutil.copytree(folder, tmp_path / field)
        config = json.loads((strange / "config.json").read_text()) | {field: value}
        (strange / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{field} is '?{value}"):
            resolved(recipe(strange))
    with pytest.raises(ValueError, match=r"--data\.tokenizer DIR"):
        replace(tiny.recipe(), clip=recipe(folder).clip)
    with pytest.raises(ValueError, match=r"give --clip\.text\.pretrained DIR"):
        replace(tiny.recipe().clip.text, frozen=True)


@pytest.fixture(scope="module")
def stores(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores by tokenizer."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "raw", CLIP_IDS[:3])
    found = {}
    for name, tokenizer in (("tower", str(folder)), ("bpe", "bpe")):
        config = DataConfig(
            frame_sizes=(16,), fps=8.0, min_frames=16, vocab_size=300, text_context=CONTEXT, val_fraction=0.0,
            tokenizer=tokenizer,
        )  # fmt: skip
        build_store(root / "raw", config, root / name, root / f"{name}-staging")
        found[name] = root / name
    return found


def stage(folder: Path, store: Path, **text: Any) -> ClipStage:
    config: ClipConfig = resolved(recipe(folder, **text)).clip
    config = replace(config, window=WindowConfig(size=16, num_frames=4))
    return ClipStage(StageInputs(config=config, seed=0, store=store, text_tower=folder))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_stage_starts_from_the_tower_and_trains_it_unless_it_is_frozen(
    folder: Path, stores: dict[str, Path], tmp_path: Path, frozen: bool
) -> None:
    made = stage(folder, stores["tower"], frozen=frozen)
    module = made.build()
    assert isinstance(module, Clip)
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(folder)
    assert torch.equal(module.text.project.weight, theirs.text_projection.weight)
    batch = made.dataset("train").__getitems__([0, 1, 2, 3])
    loss, _ = made.loss(module, batch, Draws(0, batch["sample"], "cpu"))
    loss.backward()
    for name, parameter in module.named_parameters():
        learns = not (frozen and name.startswith("text."))
        assert parameter.requires_grad == learns and (parameter.grad is not None) == learns, name

    # What a child stage loads needs neither the folder nor transformers.
    save_file(module.state_dict(), tmp_path / WEIGHTS)
    for name, text in made.export_files().items():
        (tmp_path / name).write_text(text)
    again = load_export(tmp_path, "clip").module
    assert isinstance(again, Clip)
    with torch.no_grad():
        found, expected = (one.eval().encode_text(batch["tokens"], batch["length"])[1] for one in (again, module))
        outputs = theirs.eval()(input_ids=batch["tokens"])
    assert torch.equal(found, expected)
    torch.testing.assert_close(found, functional.normalize(outputs.text_embeds, dim=-1), rtol=1e-5, atol=1e-5)


def test_a_store_with_the_tokens_of_another_tokenizer_is_refused(folder: Path, stores: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"made by bpe, .* preprocess with --data\.tokenizer .*clip"):
        stage(folder, stores["bpe"])


def test_a_tower_that_changed_or_went_since_the_run_was_made_is_refused(
    folder: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    made = stage(copy, stores["tower"])
    tower(copy, initializer_range=0.5)
    with pytest.raises(ValueError, match="not the one that this run was made from"):
        made.build()
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match="bring it back"):
        made.build()
