"""What is to be made, video by video: which text, under which noise. Pure; the order is that of the files' numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dalle2_video.data.keyed_random import key
from dalle2_video.sample_config import SampleConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make."""

    prompt: str
    seed: int = 0
    """0 or more."""
    repeat: int = 0
    """Which of several videos of the same prompt and seed."""
    towards: str = ""
    """Prompt to which this one turns by `share`; then the noise depends on seed and repeat alone."""
    share: float = 0.0
    """Share of the way from prompt to `towards`, in [0, 1)."""
    candidate: int = 0
    """Which of several tries, of which one is kept."""

    @property
    def number(self) -> int:
        """Number that keys the video's random numbers, in [0, 2^63)."""
        own = (*self.prompt.encode(), self.repeat) if not self.towards else (self.repeat,)
        tried = (self.candidate,) if self.candidate else ()
        purpose = ("path" if self.towards else "video") + (" candidate" if self.candidate else "")
        return key(self.seed, purpose, *own, *tried) >> 1


def requests_of(config: SampleConfig, prompts: Sequence[str], seed: int) -> list[Request]:
    """Return the videos to keep, each of candidate 0: prompt by prompt, seed by seed, repeat by repeat.

    prompts: of the command line, a file or a split; where one stands there twice its repeats are counted on, so that no
    two videos are the same. seed: the recipe's, for which `config.seeds` may name others.
    """
    steps, each = config.interpolate, config.samples_per_prompt
    if steps:
        # The last prompt ends the path, so that it too is made under the path's noise.
        ends = [(one, after, step / steps) for one, after in itertools.pairwise(prompts) for step in range(steps)]
        texts = [(*end, 0) for end in [*ends, (prompts[-1], prompts[-2], 0.0)]]
    else:
        seen: Counter[str] = Counter()
        texts = []
        for prompt in prompts:
            texts.append((prompt, "", 0.0, seen[prompt] * each))
            seen[prompt] += 1
    return [
        Request(prompt=prompt, towards=towards, share=share, seed=one_seed, repeat=before + repeat)
        for prompt, towards, share, before in texts
        for one_seed in config.seeds or (seed,)
        for repeat in range(each)
    ]
