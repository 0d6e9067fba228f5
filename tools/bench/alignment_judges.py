"""Judges of generated videos: colour, shape or digit, and direction of motion, from the pixels.

Colour and direction are computed without anything learnt; the object is told by a logistic regression fitted to the
sample data's real clips at the same size. Every share stands beside the real clips' own (the ceiling; for the object by
cross-validation over identities) and beside the best constant answer (chance). `alignment` is the command.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from einops import rearrange, reduce
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from tools.sample_data.captions import COLOURS, Facts, facts_of

FIGURES = ("colour", "shape", "direction")
NOTHING = "none"
"""The answer where no object or no motion is to be seen: it agrees with no prompt."""

_MIN_CHROMA = 12.0
_MIN_TRAVEL = 1 / 16
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of right answers with what it has to be read against."""

    right: int
    """Right answers."""
    count: int
    """Answers."""
    chance: float
    """Share that the best constant answer would have got."""

    @property
    def share(self) -> float:
        """Right answers as a share."""
        return self.right / self.count

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share (Wilson 1927)."""
        z, n, p = 1.959964, self.count, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def foreground(video_thwc: np.ndarray) -> np.ndarray:
    """Return how much of the coloured object each pixel shows: chroma over the grey ground's, float32 (t, h, w), >= 0.

    video_thwc: uint8 (t, h, w, 3), RGB. The ground is each frame's median, as an object covers less than half of it; a
    floor of 12 of 255 keeps the traces of chroma subsampling out.
    """
    video = video_thwc.astype(np.float32)
    chroma = video.max(axis=-1) - video.min(axis=-1)
    ground = np.median(rearrange(chroma, "t h w -> t (h w)"), axis=1)[:, None, None]
    return np.maximum(chroma - ground - _MIN_CHROMA, 0)


def colour_of(video_thwc: np.ndarray) -> str:
    """Return the palette's colour nearest to the object's hue, weighted by saturation, or NOTHING.

    The palette's hues lie 60 degrees apart, beginning at red. video_thwc: uint8 (t, h, w, 3), RGB.
    """
    weight = foreground(video_thwc)
    if not weight.any():
        return NOTHING
    red, green, blue = reduce(video_thwc * weight[..., None].astype(np.float64), "t h w c -> c", "sum")
    hue = math.degrees(math.atan2(math.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2))
    return COLOURS[round(hue / 60) % 6]


def direction_of(video_thwc: np.ndarray) -> str:
    """Return where the object moves on the torus: left, right, up, down or NOTHING if it hardly moves.

    video_thwc: uint8 (t, h, w, 3), RGB. For each axis the object's mass is summed over the other; the phase of its
    first Fourier coefficient is its place on the circle, the mean phase step (weighted by magnitude) its velocity. True
    while a step is below half the frame.
    """
    weight = foreground(video_thwc)
    frames = weight.shape[0]
    travel = {}
    for axis, pattern in (("y", "t h w -> t h"), ("x", "t h w -> t w")):
        place = np.fft.fft(reduce(weight, pattern, "sum"), axis=1)[:, 1]
        step = np.sum(place[1:] * place[:-1].conj())
        # fft's sign convention turns a shift towards larger indices into a negative phase.
        travel[axis] = -float(np.angle(step)) / (2 * np.pi) * (frames - 1) if abs(step) > 0 else 0.0
    axis = max(travel, key=lambda name: abs(travel[name]))
    if abs(travel[axis]) < _MIN_TRAVEL:
        return NOTHING
    names = {"y": ("up", "down"), "x": ("left", "right")}
    return names[axis][travel[axis] > 0]


def classify(video_thwc: np.ndarray) -> tuple[str, str]:
    """Return (colour, direction) of the moving object; NOTHING where there is none. video_thwc: uint8 (t, h, w, 3)."""
    return colour_of(video_thwc), direction_of(video_thwc)


def outline(video_thwc: np.ndarray) -> np.ndarray:
    """Return the object's outline, the input of the classifier: float32 (h * w), of sum 1, or 0 without an object.

    Each frame's foreground is turned on the torus until its circular centroid lies in the middle, by fractions of a
    pixel (a phase ramp of the 2D Fourier transform), then averaged over frames: different sub-pixel places of a moving
    object add detail that no single small frame has.
    """
    weight = foreground(video_thwc)
    spectrum = np.fft.fft2(weight)
    _, height, width = weight.shape
    # The phase of the first coefficient along an axis is the centroid; subtracting it k times moves it to 0.
    ramp_y = np.exp(-1j * np.angle(spectrum[:, 1, 0])[:, None] * np.fft.fftfreq(height) * height)
    ramp_x = np.exp(-1j * np.angle(spectrum[:, 0, 1])[:, None] * np.fft.fftfreq(width) * width)
    centred = np.fft.ifft2(spectrum * ramp_y[:, :, None] * ramp_x[:, None, :]).real.mean(axis=0)
    total = weight.mean(axis=0).sum()
    middle = np.roll(centred, (height // 2, width // 2), axis=(0, 1))
    return (middle.ravel() / total if total > 0 else middle.ravel()).astype(np.float32)


def object_classifier() -> LogisticRegression:
    """Return the unfitted classifier of outlines. Outlines are near 1 / pixels, hence the weak penalty."""
    return LogisticRegression(C=1e4, max_iter=2000)


def score(wanted: Sequence[str | None], found: Sequence[str]) -> Score:
    """Compare answers where something is wanted. Raises ValueError if nothing is wanted anywhere."""
    pairs = [(want, find) for want, find in zip(wanted, found, strict=True) if want is not None]
    if not pairs:
        raise ValueError(
            "no prompt states this fact; make prompts by: python tools/make_sample_data.py --print-prompts 8"
        )
    commonest = Counter(want for want, _ in pairs).most_common(1)[0][1]
    return Score(right=sum(want == find for want, find in pairs), count=len(pairs), chance=commonest / len(pairs))


def read_clip(path: Path, *, size: int, frames: int, fps: float | None = None) -> np.ndarray:
    """Return the first `frames` frames at `size` pixels, uint8 (t, h, w, 3), RGB; fewer if the clip is shorter.

    fps: the rate that the clip is brought to first; None takes the frames as they are.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream),
            *([] if fps is None else [graph.add("fps", f"fps={fps}:round=near")]),
            graph.add("scale", f"{size}:{size}:flags=area"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        result: list[np.ndarray] = []
        for frame in container.decode(stream):
            graph.push(frame)
            _pull(graph, result)
            if len(result) >= frames:
                return np.stack(result[:frames])
        graph.push(None)
        _pull(graph, result)
    if len(result) < 2:
        raise ValueError(f"{path}: {len(result)} frames; motion needs 2 or more")
    return np.stack(result)


def _pull(graph: Graph, result: list[np.ndarray]) -> None:
    while True:
        try:
            result.append(graph.pull().to_ndarray())
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def read_samples(folder: Path) -> list[tuple[Path, Facts]]:
    """Return file and wanted facts of each generated clip. Raises ValueError without a good `samples.json`."""
    for lists in (folder / "samples.json", folder / "samples" / "samples.json"):
        if lists.is_file():
            break
    else:
        raise ValueError(f"--samples {folder}: holds no samples.json; generate first: python launch/sample.py")
    try:
        entries = [(lists.parent / entry["file"], facts_of(entry["prompt"])) for entry in json.loads(lists.read_text())]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{lists}: not a list of {{"file", "prompt", "seed"}} ({error!r}); generate again') from error
    missing = [path.name for path, _ in entries if not path.is_file()]
    if missing or not entries:
        raise ValueError(f"{lists}: {'is empty' if not entries else f'{missing[0]} is missing'}; generate again")
    return entries


def read_truth(data: Path) -> tuple[list[Path], list[Facts]]:
    """Return files and facts of the sample data's captioned motion. Raises ValueError if it is not sample data."""
    truth_file = data / "sample_data.json"
    if not truth_file.is_file():
        raise ValueError(f"--data {data}: no sample_data.json; make it: python tools/make_sample_data.py --out {data}")
    clips = {name: clip for name, clip in json.loads(truth_file.read_text())["clips"].items() if "colour" in clip}
    paths = [data / "videos" / "celebvtext_6" / f"{name}.mp4" for name in clips]
    return paths, [Facts(colour=c["colour"], object=c["object"], direction=c["direction"]) for c in clips.values()]


def identities_of(paths: Sequence[Path]) -> list[str]:
    """Return the first 11 characters of each clip's id."""
    return [path.name[:11] for path in paths]


def real_scores(
    videos: Sequence[np.ndarray], facts: Sequence[Facts], identities: Sequence[str]
) -> tuple[dict[str, Score], LogisticRegression]:
    """Return the real clips' own scores and the classifier of objects, fitted to all of them.

    The score of the object is cross-validated: no clip is judged by a classifier that saw its identity. Raises
    ValueError with fewer identities than folds.
    """
    if len(set(identities)) < _FOLDS:
        raise ValueError(f"{len(set(identities))} identities; {_FOLDS} or more are needed: make more sample data")
    outlines = np.stack([outline(video) for video in videos])
    objects = np.array([fact.object for fact in facts])
    held_out = cross_val_predict(object_classifier(), outlines, objects, groups=identities, cv=GroupKFold(_FOLDS))
    scores = _scores(videos, facts, list(held_out))
    return scores, object_classifier().fit(outlines, objects)


def generated_scores(
    videos: Sequence[np.ndarray], facts: Sequence[Facts], classifier: LogisticRegression
) -> dict[str, Score]:
    """Return the scores of generated clips against their prompts' facts."""
    outlines = [outline(video) for video in videos]
    objects = [str(classifier.predict(line[None])[0]) if line.any() else NOTHING for line in outlines]
    return _scores(videos, facts, objects)


def _scores(videos: Sequence[np.ndarray], facts: Sequence[Facts], objects: Sequence[str]) -> dict[str, Score]:
    found = [classify(video) for video in videos]
    return {
        "colour": score([fact.colour for fact in facts], [colour for colour, _ in found]),
        "shape": score([fact.object for fact in facts], objects),
        "direction": score([fact.direction for fact in facts], [direction for _, direction in found]),
    }
