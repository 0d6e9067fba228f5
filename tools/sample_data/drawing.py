"""Frames of a scene, drawn directly in YUV 4:2:0: an object moves on a torus over a still texture.

Drawing in the encoder's own format saves the colour conversion, which would cost more than the drawing. Alpha blending
is linear, so blending in YUV equals blending in RGB. Invariant: a frame depends on the scene and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from tools.sample_data.captions import DIGITS
from tools.sample_data.scenes import FRAME_SIZE, Scene

PALETTE_RGB = {
    "red": (230, 30, 30),
    "yellow": (230, 230, 30),
    "green": (30, 200, 30),
    "cyan": (30, 215, 215),
    "blue": (40, 40, 240),
    "magenta": (225, 30, 225),
}
"""The colours, 60 degrees of hue apart."""

VELOCITY_YX = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Unit velocity of each direction, y pointing down."""

_LUMA = {"bright": 190.0, "dim": 72.0}
_CONTRAST = 16.0


def frames_of(scene: Scene) -> Iterator[np.ndarray]:
    """Yield the scene's frames as planar YUV 4:2:0, uint8 (3/2 * size, size), BT.601 in the limited range.

    The array is used again for the next frame: copy it to keep it.
    """
    size = FRAME_SIZE
    still = np.full((size * 3 // 2, size), 128, np.uint8)
    still[:size] = background(scene)
    frame = np.empty_like(still)
    layers = _layers(scene)
    side = layers[0][0].shape[0]
    # Wrapped padding: the ground under the object is one slice wherever it is.
    grounds = [
        np.pad(plane, (0, pixels.shape[0]), mode="wrap")
        for plane, (pixels, _) in zip(_planes(still), layers, strict=True)
    ]
    for number in range(scene.num_frames):
        np.copyto(frame, still)
        top, left = _corner(scene, number, side)
        for plane, ground, (pixels, cover), step in zip(_planes(frame), grounds, layers, (1, 2, 2), strict=True):
            patch_side = pixels.shape[0]
            y, x = top // step, left // step
            below = ground[y : y + patch_side, x : x + patch_side]
            _paste(plane, ((below * cover + pixels) >> 8).astype(np.uint8), y, x)
        yield frame


def _planes(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views of the Y, U and V planes of a planar 4:2:0 frame."""
    size = frame.shape[1]
    half = size // 2
    return (
        frame[:size],
        frame[size : size + half // 2].reshape(half, half),
        frame[size + half // 2 :].reshape(half, half),
    )


def _paste(plane: np.ndarray, patch: np.ndarray, y: int, x: int) -> None:
    """Write `patch` at (y, x) of `plane`; what hangs over the far edges goes to the near ones."""
    rows, columns = min(patch.shape[0], plane.shape[0] - y), min(patch.shape[1], plane.shape[1] - x)
    plane[y : y + rows, x : x + columns] = patch[:rows, :columns]
    plane[y : y + rows, : patch.shape[1] - columns] = patch[:rows, columns:]
    plane[: patch.shape[0] - rows, x : x + columns] = patch[rows:, :columns]
    plane[: patch.shape[0] - rows, : patch.shape[1] - columns] = patch[rows:, columns:]


def background(scene: Scene) -> np.ndarray:
    """Return the luma of the scene's still background, uint8 (size, size): a texture about its light's level."""
    size = FRAME_SIZE
    rng = np.random.default_rng([*scene.identity_seed, 1])
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    cells = int(rng.choice([4, 6, 8]))
    match scene.mood.texture:
        case "noisy":
            pattern = _upscaled(rng.uniform(-1, 1, (64, 64)))
        case "cloudy":
            pattern = _upscaled(rng.uniform(-1.4, 1.4, (8, 8)))
        case "striped":
            angle = rng.uniform(0, np.pi)
            pattern = np.sin(2 * np.pi * cells * (x * np.cos(angle) + y * np.sin(angle)))
        case "checked":
            pattern = np.where((np.floor(x * cells) + np.floor(y * cells)) % 2 == 0, 0.8, -0.8)
        case _:
            pattern = np.zeros_like(x)
    luma = _LUMA[scene.mood.light] + _CONTRAST * pattern
    if scene.mood.light_from == "above":
        luma *= 1.15 - 0.3 * y
    return np.clip(luma, 16, 235).astype(np.uint8)


def _corner(scene: Scene, number: int, side: int) -> tuple[int, int]:
    """Top left corner of the object in pixels, in [0, size), even because a chroma sample covers two pixels."""
    assert scene.facts.direction is not None
    travelled = scene.speed * number / scene.fps
    centre = (
        start + v * travelled for start, v in zip(scene.start_yx, VELOCITY_YX[scene.facts.direction], strict=True)
    )
    top, left = (round((share * FRAME_SIZE - side / 2) / 2) * 2 % FRAME_SIZE for share in centre)
    return top, left


def _layers(scene: Scene) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (256 * alpha * colour, 256 * (1 - alpha)) for Y, U and V in uint16, the last two at half the side.

    Blending is then (ground * second + first) >> 8, below 2^16 always, since a blend of bytes is a byte.
    """
    assert scene.facts.colour is not None
    side = round(scene.size * FRAME_SIZE / 2) * 2
    alpha = _object_alpha(scene, side)
    red, green, blue = PALETTE_RGB[scene.facts.colour]
    luma = (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    chroma = (
        (-37.797 * red - 74.203 * green + 112.0 * blue) / 255,
        (112.0 * red - 93.786 * green - 18.214 * blue) / 255,
    )
    shade = np.linspace(1.06, 0.86, side, dtype=np.float32)[:, None]  # lit from above, so that it looks solid
    small_alpha = alpha.reshape(side // 2, 2, side // 2, 2).mean(axis=(1, 3))
    values = [(alpha, 16 + luma * shade)] + [(small_alpha, 128 + value * shade[::2]) for value in chroma]
    return [_fixed_point(cover, value) for cover, value in values]


def _fixed_point(alpha: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cover = np.round(alpha * 256)
    return (cover * np.clip(value, 0, 255)).astype(np.uint16), (256 - cover).astype(np.uint16)


def _object_alpha(scene: Scene, side: int) -> np.ndarray:
    """Coverage of the object in a square of `side` pixels, float32 in [0, 1]."""
    name = scene.facts.object
    assert name is not None
    if name in DIGITS:
        images = _digit_images()[int(name)]
        image = images[int(np.random.default_rng([*scene.object_seed, 2]).integers(len(images)))]
        smooth = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        # A steep ramp about half ink: a firm stroke with a soft edge.
        return np.clip((np.asarray(smooth, np.float32) / 255 - 0.38) * 5 + 0.5, 0, 1)
    canvas = Image.new("L", (side * 2, side * 2))
    draw, end = ImageDraw.Draw(canvas), side * 2 - 1
    if name == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif name == "square":
        inset = round(end * 0.05)
        draw.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif name == "triangle":
        draw.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    else:
        assert name == "cross"
        arm = round(end * 0.33)
        draw.rectangle((arm, 0, end - arm, end), fill=255)
        draw.rectangle((0, arm, end, end - arm), fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@cache
def _digit_images() -> list[np.ndarray]:
    """Handwritten digits by class, uint8 (n, 12, 10) each with an empty margin."""
    from sklearn.datasets import load_digits  # costs a second: only clips of digits pay it

    data = load_digits()
    images = (data.images * (255 / 16)).astype(np.uint8)
    images = np.pad(images, ((0, 0), (1, 1), (0, 0)))
    return [images[data.target == digit] for digit in range(10)]


def _upscaled(cells: np.ndarray) -> np.ndarray:
    image = Image.fromarray(cells.astype(np.float32))
    return np.asarray(image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC))
