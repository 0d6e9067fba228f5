"""Weights of a pretrained CLIP text tower, read by `transformers` and put into our text encoder.

Ours computes what transformers' does, with our attention and activation checkpointing, and its checkpoints and exports
do not depend on how a version of transformers names its weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from dalle2_video import text_tower
from dalle2_video.models.text_encoder import TextEncoder

_NAMES = (
    (r"^(text_model\.)+", ""),
    (r"^embeddings\.token_embedding", "token"),
    (r"^embeddings\.position_embedding", "position"),
    (r"^encoder\.layers\.", "transformer.blocks."),
    (r"\.self_attn\.([qkv])_proj", r".attention.to_\1"),
    (r"\.self_attn\.out_proj", ".attention.to_out"),
    (r"\.layer_norm1", ".attention_norm"),
    (r"\.layer_norm2", ".feed_forward_norm"),
    (r"\.mlp\.fc1", ".feed_forward.expand"),
    (r"\.mlp\.fc2", ".feed_forward.contract"),
    (r"^final_layer_norm", "transformer.norm"),
    (r"^text_projection", "project"),
)


def load_text_tower(encoder: TextEncoder, folder: Path, digest: str) -> None:
    """Put the weights of the text tower in `folder` into an encoder of its sizes.

    digest: what the run was made from. Rows of the tables beyond the encoder's vocabulary and context are left out:
    nothing reads them. Raises ValueError with the remedy where the folder has changed or does not fit.
    """
    if not folder.is_dir():
        raise ValueError(f"the text tower that this run starts from lay in {folder}; bring it back or link it there")
    if text_tower.digest(folder) != digest:
        raise ValueError(f"the text tower in {folder} is not the one that this run was made from; bring that one back")
    weights = _renamed(_read(folder))
    own = encoder.state_dict()
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    for name, cut in (("token.weight", "vocabulary"), ("position.weight", "context")):
        if len(weights[name]) < len(own[name]):
            raise ValueError(
                f"the text tower in {folder} knows a {cut} of {len(weights[name])}, the store's has {len(own[name])}; "
                "preprocess with the tower's own tokenizer: --data.tokenizer DIR"
            )
        weights[name] = weights[name][: len(own[name])]
    encoder.load_state_dict(weights)


def _read(folder: Path) -> dict[str, Tensor]:
    import transformers  # a second to import, and only this needs it

    config = text_tower.text_config(folder)
    try:
        model, report = transformers.CLIPTextModelWithProjection.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # the library raises many kinds where bytes are damaged
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"the weights in {folder} lack {missing}; give a folder with the projection of the text")
    return model.state_dict()


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        if not name.endswith("position_ids"):
            renamed[name] = tensor
    return renamed
