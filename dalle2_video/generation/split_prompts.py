"""Captions of a split as prompts: one text of each of some clips, drawn by the seed."""

from __future__ import annotations

import numpy as np

from dalle2_video import prompts
from dalle2_video.data import keyed_random
from dalle2_video.data.captions import Captions
from dalle2_video.data.store import Store
from dalle2_video.data_config import CaptionConfig
from dalle2_video.sample_config import SampleConfig


def prompts_of_split(store: Store, config: SampleConfig, captions: CaptionConfig, seed: int) -> list[str]:
    """Return the texts of `config.split_clips` clips in the store's order; captions: how a clip's text is made.

    Raises ValueError where the split has fewer clips.
    """
    assert config.split != "none"
    rows = store.usable(config.split)
    config.check_split(len(rows))
    lots = keyed_random.uniform(seed, "sample.clips", rows)
    rows = np.sort(rows[np.argsort(lots, kind="stable")[: config.split_clips]])
    found = []
    for row, lines in zip(rows.tolist(), Captions(store, captions).choose(seed, rows, rows), strict=True):
        first, _ = store.caption_range(row)
        texts = store.captions_of(row)
        found.append(prompts.cleaned(" ".join(texts[line - first].text for line in lines)))
    return found
