"""The language of the sample data: facts of a moving object, sentences that state them, and the way back.

Invariant: `facts_of` recovers colour, object and direction from every sentence and prompt made here, whichever kind of
caption it is, because training draws any one of a clip's lines at random and alignment is judged by the prompt alone.
Sentences stay under 20 words, so that a context of 32 tokens cuts none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple("0123456789")
OBJECTS = SHAPES + DIGITS
DIRECTIONS = ("left", "right", "up", "down")

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)}|purple)\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})\b")
_DIGIT = re.compile(rf"\b(?:digit|number|handwritten)\s+({'|'.join(_DIGIT_WORDS)}|[0-9])\b")
_DIRECTION = re.compile(rf"\b({'|'.join(DIRECTIONS)})(?:wards?)?\b")

# Streams of random numbers: one a purpose, so that more clips or another template change no other choice.
_COLOUR_STREAM, _SHAPE_STREAM, _DIGIT_STREAM, _DIRECTION_STREAM, _PROMPT_STREAM = range(100, 105)

Item = TypeVar("Item")
Combinations = Literal["all", "trained", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caption determines; None where it does not say."""

    colour: str | None
    """One of COLOURS."""
    object: str | None
    """One of OBJECTS: a shape's name or a digit "0".."9"."""
    direction: str | None
    """One of DIRECTIONS."""


@dataclass(frozen=True, kw_only=True)
class Mood:
    """What a caption may add: the words that follow from a scene's speed and light."""

    pace: str
    """calm or lively."""
    light: str
    """bright or dim."""
    light_from: str
    """above or front."""
    texture: str
    """What the background looks like, one word."""


def facts_of(text: str) -> Facts:
    """Return the facts that `text` states, the first of each kind; "purple" reads as magenta."""
    text = text.lower()
    colour, direction = _COLOUR.search(text), _DIRECTION.search(text)
    shape, digit = _SHAPE.search(text), _DIGIT.search(text)
    thing = None
    if shape:
        thing = shape.group(1)
    elif digit:
        word = digit.group(1)
        thing = str(_DIGIT_WORDS.index(word)) if word in _DIGIT_WORDS else word
    return Facts(
        colour={"purple": "magenta"}.get(colour.group(1), colour.group(1)) if colour else None,
        object=thing,
        direction=direction.group(1) if direction else None,
    )


def balanced_facts(seed: int) -> Iterator[Facts]:
    """Yield facts without end; each colour, direction, shape and digit is used within one of its like at any length.

    Every third object is a digit, so that with ten of them a shape is met five times as often as a given digit.
    """
    colours = _shuffled_rounds(COLOURS, seed, _COLOUR_STREAM)
    directions = _shuffled_rounds(DIRECTIONS, seed, _DIRECTION_STREAM)
    shapes = _shuffled_rounds(SHAPES, seed, _SHAPE_STREAM)
    digits = _shuffled_rounds(DIGITS, seed, _DIGIT_STREAM)
    index = 0
    while True:
        thing = next(digits) if index % 3 == 2 else next(shapes)
        yield Facts(colour=next(colours), object=thing, direction=next(directions))
        index += 1


def combined_facts(seed: int, combinations: Combinations) -> Iterator[Facts]:
    """Yield those of `balanced_facts` whose colour and object belong to `combinations`."""
    return (facts for facts in balanced_facts(seed) if combinations in ("all", combination_of(facts)))


def combination_of(facts: Facts) -> Literal["trained", "held_out"]:
    """Tell whether data of the trained combinations shows this object in this colour: each lacks one of six."""
    assert facts.colour is not None and facts.object is not None
    kind = SHAPES if facts.object in SHAPES else DIGITS
    return "held_out" if (COLOURS.index(facts.colour) + kind.index(facts.object)) % len(COLOURS) == 0 else "trained"


def _shuffled_rounds(items: Sequence[Item], seed: int, stream: int) -> Iterator[Item]:
    rng = np.random.default_rng([seed, stream])
    while True:
        for position in rng.permutation(len(items)):
            yield items[int(position)]


def thing_of(facts: Facts, *, handwritten: bool = False) -> str:
    """Return the noun with its colour: "red circle", "blue digit seven" or "blue handwritten seven"."""
    assert facts.colour is not None and facts.object is not None
    if facts.object in SHAPES:
        return f"{facts.colour} {facts.object}"
    return f"{facts.colour} {'handwritten' if handwritten else 'digit'} {_DIGIT_WORDS[int(facts.object)]}"


_WAYS = {"left": ("left", "to the left"), "right": ("right", "to the right"), "up": ("up", "upwards")}
_WAYS["down"] = ("down", "downwards")
_PACE_WORDS = {
    "calm": {"moves": ("drifts", "glides", "floats"), "how": ("slowly", "gently"), "mood": ("calm", "peaceful")},
    "lively": {"moves": ("rushes", "flies", "races"), "how": ("quickly", "fast"), "mood": ("lively", "cheerful")},
}
_LIGHT_WORDS = {"bright": ("bright", "strong"), "dim": ("dim", "weak")}

_ALWAYS = {
    "appearance": (
        "A {thing} moving {way} in front of a {light} background.",
        "The video shows a large {thing} that {moves} {way}.",
        "A plain {thing} on a {light} {texture} background, moving {way}.",
        "There is a {thing} of one colour, moving {way}.",
        "A {light} {texture} background with a {thing} moving {way}.",
    ),
    "action": (
        "A {thing} {moves} {way}.",
        "The {thing} keeps moving {way}, leaves the frame and comes back.",
        "A {thing} moves {way} {how} all the time.",
        "The {thing} {moves} {way} without a stop.",
        "First the {thing} moves {way}, and then it still moves {way}.",
    ),
    "emotion": (
        "A {mood} {thing} {moves} {way}.",
        "The mood is {mood} while the {thing} moves {way}.",
        "The {thing} looks {mood} as it {moves} {way}.",
    ),
    "light_intensity": (
        "The light is {light} where the {thing} moves {way}.",
        "The background is {light} behind the {thing} that {moves} {way}.",
        "A {thing} moves {way} in {beam} light.",
    ),
    "light_color": (
        "The light is neutral white on the {thing} moving {way}.",
        "Grey surroundings without a tint, and a {thing} moving {way}.",
        "White {beam} light, a {thing} {moves} {way}.",
    ),
}
_LIGHT_FROM = {
    "above": (
        "Soft light falls from above on the {thing} moving {way}.",
        "The light comes from above while the {thing} {moves} {way}.",
        "The upper part is lighter, and a {thing} moves {way}.",
    ),
    "front": (
        "The light comes evenly from the front on the {thing} moving {way}.",
        "An even front light shows the {thing} as it {moves} {way}.",
        "No side is darker where the {thing} moves {way}.",
    ),
}


def captions(facts: Facts, mood: Mood, rng: np.random.Generator) -> dict[str, list[str]]:
    """Return one to four different lines for each of the six kinds of `TextFolders`; all of them state all facts."""
    kinds = {**_ALWAYS, "light_direction": _LIGHT_FROM[mood.light_from]}
    result = {}
    for kind, templates in kinds.items():
        wanted = int(rng.integers(1, min(4, len(templates)) + 1))
        chosen = rng.permutation(len(templates))[:wanted]
        result[kind] = [_sentence(templates[int(position)], facts, mood, rng) for position in chosen]
    return result


def prompts(count: int, seed: int, combinations: Combinations = "all") -> list[str]:
    """Return `count` prompts, balanced over colours, directions, shapes and digits as the clips are.

    Raises ValueError unless count is 1 or more.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for 1 prompt or more")
    rng = np.random.default_rng([seed, _PROMPT_STREAM])
    facts = combined_facts(seed, combinations)
    result = []
    for _ in range(count):
        mood = Mood(
            pace=str(rng.choice(["calm", "lively"])),
            light=str(rng.choice(["bright", "dim"])),
            light_from="front",
            texture="plain",
        )
        templates = _ALWAYS["appearance"][:2] + _ALWAYS["action"][:1]
        result.append(_sentence(templates[int(rng.integers(len(templates)))], next(facts), mood, rng))
    return result


def _sentence(template: str, facts: Facts, mood: Mood, rng: np.random.Generator) -> str:
    assert facts.direction is not None
    words = _PACE_WORDS[mood.pace]
    return template.format(
        thing=thing_of(facts, handwritten=bool(rng.integers(2))),
        way=rng.choice(_WAYS[facts.direction]),
        moves=rng.choice(words["moves"]),
        how=rng.choice(words["how"]),
        mood=rng.choice(words["mood"]),
        light=mood.light,
        beam=rng.choice(_LIGHT_WORDS[mood.light]),
        texture=mood.texture,
    )
