"""The folder of a whole chain, as `tools/export.py` makes it and `VideoPipeline.from_export` reads it.

README.md            the model card
model_index.json     format, stages with run, digest and lineage, and how the sample run sampled
clip/ prior/ decoder/ temporal_sr/ spatial_sr/     exports: model.safetensors, config.json; of CLIP tokenizer.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle2_video.digests import folder_digest

INDEX = "model_index.json"
FORMAT = "dalle2-video-chain"
VERSION = 1
STAGES = ("clip", "prior", "decoder", "temporal_sr", "spatial_sr")
"""In the order in which they work."""


def check_digests(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise ValueError where the index is not one of a chain, or a stage's files are not those that it lists."""
    found = (index.get("format"), index.get("version"))
    if found != (FORMAT, VERSION):
        raise ValueError(f"{folder / INDEX} is {found}, wanted {(FORMAT, VERSION)}; export again with tools/export.py")
    for stage, facts in index["stages"].items():
        if stage not in STAGES or not (folder / stage).is_dir():
            raise ValueError(f"{folder / stage} is missing, or no stage; export again with tools/export.py")
        if (digest := folder_digest(folder / stage)) != facts["digest"]:
            raise ValueError(
                f"{folder / stage} is damaged or was changed: its digest is {digest[:16]}, the index says "
                f"{facts['digest'][:16]}; copy it again, or export again with tools/export.py"
            )
