"""What each clip of the sample data shows, decided from (seed, index) alone.

A scene is one coloured shape or handwritten digit that moves in one direction over a still grey texture. The picture is
a torus: what leaves on one side enters on the other, at constant velocity, so that every window of two seconds shows
the same direction. Clips of one identity (the id's first 11 characters) share the background, as clips of one person
share a room. `drawing` makes frames of a scene, `captions` its sentences.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tools.sample_data.captions import SHAPES, Combinations, Facts, Mood, captions, combined_facts

FRAME_SIZE = 512
"""Side of every clip in pixels: the least that CelebV-Text has."""

TEXTURES = ("noisy", "cloudy", "striped", "checked", "plain")
_FPS = (24, 25, 30)
_CLIPS_PER_IDENTITY = (3, 1, 2, 2)
_ID_ALPHABET = string.ascii_letters + string.digits + "-_"
_IDENTITY_STREAM, _SCENE_STREAM, _CAPTION_STREAM = range(3)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip: ground truth and everything that its frames need."""

    clip_id: str
    """11 characters of the identity, then _<n>_<m>."""
    facts: Facts
    """Colour, object and direction, all known."""
    mood: Mood
    """Pace and background."""
    speed: float
    """Frame widths a second; at least 0.22, so that a window of 2 s shows well over a quarter of the frame."""
    size: float
    """Side of the object as a share of the frame's."""
    start_yx: tuple[float, float]
    """Centre of the object at time 0, as a share of the frame's side."""
    fps: int
    """Frames per second."""
    num_frames: int
    """Frames of the clip."""
    identity_seed: tuple[int, int, int]
    """Seeds the background's texture."""
    object_seed: tuple[int, int, int]
    """Seeds the choice of the handwritten digit."""

    @property
    def seconds(self) -> float:
        """Length of the clip in seconds."""
        return self.num_frames / self.fps

    def captions(self) -> dict[str, list[str]]:
        """Return the clip's lines by kind of caption."""
        seed, _, index = self.object_seed
        return captions(self.facts, self.mood, np.random.default_rng([seed, _CAPTION_STREAM, index]))

    def truth(self) -> dict[str, object]:
        """Return what `sample_data.json` records of the clip."""
        assert self.facts.object is not None
        return {
            "kind": "shape" if self.facts.object in SHAPES else "digit",
            "colour": self.facts.colour,
            "object": self.facts.object,
            "direction": self.facts.direction,
            "light": self.mood.light,
            "fps": self.fps,
            "seconds": round(self.seconds, 3),
        }


def plan(clips: int, seed: int, combinations: Combinations = "all") -> list[Scene]:
    """Return the scenes of `clips` clips; a longer plan begins with the shorter one.

    Raises ValueError if clips < 1 or seed < 0.
    """
    if clips < 1:
        raise ValueError(f"--clips {clips}: ask for 1 clip or more")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or more")
    return [_scene(index, facts, seed) for index, facts in enumerate(islice(combined_facts(seed, combinations), clips))]


def _scene(index: int, facts: Facts, seed: int) -> Scene:
    identity, clip_of_identity = _identity_of(index)
    identity_seed = (seed, _IDENTITY_STREAM, identity)
    room = np.random.default_rng(identity_seed)
    ytb_id = _identity_name(identity, room)
    rng = np.random.default_rng([seed, _SCENE_STREAM, index])
    pace = str(rng.choice(["calm", "lively"]))
    fps = int(rng.choice(_FPS))
    # Short clips are commoner: rendering takes time, and a window of training is 2 s long. Never under 2.25 s, so that
    # 16 frames at 8 fps exist however a resampler rounds.
    seconds = float(rng.triangular(2.25, 2.5, 5.75))
    digit = facts.object not in SHAPES
    # Anywhere along the way, but whole across it: an object cut in two all the time would be hard to tell.
    along, across = rng.uniform(0, 1), rng.uniform(0.27, 0.73)
    start_y, start_x = (across, along) if facts.direction in ("left", "right") else (along, across)
    return Scene(
        clip_id=f"{ytb_id}_{clip_of_identity}_{int(rng.integers(10))}",
        facts=facts,
        mood=Mood(
            pace=pace,
            light=("bright", "dim")[int(room.integers(2))],
            light_from=("above", "front")[int(room.integers(2))],
            texture=str(room.choice(TEXTURES)),
        ),
        speed=float(rng.uniform(0.22, 0.30) if pace == "calm" else rng.uniform(0.40, 0.50)),
        size=float(rng.uniform(0.45, 0.52) if digit else rng.uniform(0.36, 0.48)),
        start_yx=(float(start_y), float(start_x)),
        fps=fps,
        num_frames=round(seconds * fps),
        identity_seed=identity_seed,
        object_seed=(seed, _SCENE_STREAM, index),
    )


def _identity_of(index: int) -> tuple[int, int]:
    """Return (identity, number of the clip within it); identities have 3, 1, 2, 2, 3, 1 ... clips."""
    rounds, rest = divmod(index, sum(_CLIPS_PER_IDENTITY))
    identity = rounds * len(_CLIPS_PER_IDENTITY)
    for size in _CLIPS_PER_IDENTITY:
        if rest < size:
            break
        rest -= size
        identity += 1
    return identity, rest


def _identity_name(identity: int, rng: np.random.Generator) -> str:
    name = [_ID_ALPHABET[int(k)] for k in rng.integers(len(_ID_ALPHABET), size=11)]
    # Real ids now and then begin with "-", which reads as an option, or hold "_", which is also the separator: small
    # data must hold both.
    if identity % 6 == 1:
        name[0] = "-"
    if identity % 6 == 3:
        name[4] = "_"
    return "".join(name)
