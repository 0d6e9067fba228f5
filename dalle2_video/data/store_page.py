"""One HTML page that shows what is in a store: numbers, distributions, pictures, and what was left out and why.

Self-contained: no script, no network, so that it can be mailed. Invariant: the bytes depend on the store alone (two
processes may write it at once), and whatever the data set says of itself is escaped, control characters included.
`join` writes it when a store is finished, tools/store_page.py again afterwards; `store_page.html` is the template.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from dalle2_video.config_io import to_dict
from dalle2_video.data.celebv_text import Caption
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.statistics import OTHER
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

SHEET_CLIPS, SHEET_FRAMES = 12, 8
_LEAST_SIZE, _MOST_SIZE = 64, 96
"""Pixels below which a picture on the page says little, and above which it only makes the page larger."""
_MOST_BAD = 500
_MOST_SOURCES = 10
_SHOWN_NOTES = 15
_MOST_CHARACTERS = 400
_CHART = (400, 170)
"""Width and height of a chart's plot in the units of its view box."""
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that do something where they are shown: escapes, changes of direction, line ends."""

_SEAL = "\n<!-- sha256 of the above: "
_SPACES = str.maketrans(dict.fromkeys("\t\n\r", " "))


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of the contact sheet."""

    clip_id: str
    frames_thwc: np.ndarray
    """(t, size, size, 3) uint8 RGB."""
    captions: Sequence[Caption]


def contact_sheet(
    reader: ShardReader, num_frames: np.ndarray, describe: Callable[[int], tuple[str, Sequence[Caption]]]
) -> list[Example]:
    """Read the clips to show.

    reader: of the frames of `example_size`; num_frames: (N,) frames of each clip at that size, 0 for a bad one;
    describe: returns a row's clip id and captions. Raises ValueError or OSError where the frames are damaged.
    """
    examples = []
    for row in example_rows(np.flatnonzero(num_frames)):
        numbers = example_frames(int(num_frames[row]))
        frames = np.concatenate([reader.read(row, number, number + 1) for number in numbers])
        clip_id, captions = describe(row)
        examples.append(Example(clip_id=clip_id, frames_thwc=frames, captions=captions))
    return examples


def example_rows(good: np.ndarray) -> list[int]:
    """Return up to SHEET_CLIPS of the given rows, spread evenly."""
    count = min(SHEET_CLIPS, len(good))
    return [int(good[(2 * place + 1) * len(good) // (2 * count)]) for place in range(count)]


def example_frames(num_frames: int) -> list[int]:
    """Return SHEET_FRAMES frame numbers, or all of a shorter clip, evenly in time."""
    count = min(SHEET_FRAMES, num_frames)
    return [place * (num_frames - 1) // max(1, count - 1) for place in range(count)]


def example_size(config: DataConfig) -> int:
    """Return the frame size to show: the smallest in which one sees something, else the largest."""
    return next((size for size in config.frame_sizes if size >= _LEAST_SIZE), config.frame_sizes[-1])


def page(
    statistics: Mapping[str, Any],
    config: DataConfig,
    examples: Sequence[Example],
    bad: Mapping[str, str],
    shard_bytes: Mapping[int, int],
) -> str:
    """Return the page, its checksum in the last line.

    statistics: as in statistics.json; bad: reason by clip id; shard_bytes: stored bytes by frame size.
    """
    histograms, tokens = statistics["histograms"], statistics["caption_tokens"]
    good = statistics["clips"] - statistics["bad"]
    text = _template().render(
        config=config,
        statistics=statistics,
        good=good,
        sizes=[_size(size, config, statistics, shard_bytes[size]) for size in config.frame_sizes],
        lengths=[
            chart("Stored clips", "seconds", "clips", histograms["stored_seconds"]),
            chart("Their sources", "seconds", "clips", histograms["source_seconds"]),
        ],
        frame_rates=shares(statistics["frame_rates"], _MOST_SOURCES),
        resolutions=shares(statistics["resolutions"], _MOST_SOURCES),
        caption_chart=chart(
            "Captions", "tokens", "captions", histograms["caption_tokens"], mark=("context", config.text_context)
        ),
        # A context has at least 4 tokens.
        contexts=[
            (share, max(4, tokens["all"][name]))
            for share, name in (("95 %", "p95"), ("99 %", "p99"), ("all", "max"))
            if tokens
        ],
        examples=[
            {
                "clip_id": example.clip_id,
                "count": len(example.frames_thwc),
                "picture": _picture(example.frames_thwc),
                "captions": _one_of_each_kind(example.captions),
            }
            for example in examples
        ],
        sheet_frames=SHEET_FRAMES,
        example_size=example_size(config),
        reasons=shares(statistics["bad_reasons"], len(statistics["bad_reasons"])),
        bad=sorted(bad.items())[:_MOST_BAD],
        num_bad=len(bad),
        shown_notes=_SHOWN_NOTES,
        settings=_leaves(to_dict(config), "--data"),
    )
    return text + _seal(text.encode())


def is_sound(html: bytes) -> bool:
    """Whether the last line of a page is the checksum of what comes before it."""
    text, mark, _ = html.rpartition(_SEAL.encode())
    return bool(mark) and html == text + _seal(text).encode()


def _seal(text: bytes) -> str:
    return f"{_SEAL}{hashlib.sha256(text).hexdigest()} -->\n"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": "{:,}".format, "percent": _percent, "bytes": _bytes, "hours": _hours}
    return environment.get_template("store_page.html")


def _shown(value: Any) -> Any:
    """Make what stands in a text visible and of bounded length; called on every value that the template prints."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    cut = value if len(value) <= _MOST_CHARACTERS else value[:_MOST_CHARACTERS] + " ..."
    return "".join(f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _ACTING else c for c in cut.translate(_SPACES))


def _percent(share: float) -> str:
    """Return a share as text that is "0 %" or "100 %" only where it is just that."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    percent = f"{100 * share:.1f} %"
    return {"0.0 %": "< 0.1 %", "100.0 %": "> 99.9 %"}.get(percent, percent)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.3g} {unit}"


def _hours(hours: float) -> str:
    return (
        f"{hours:.3g} hours" if 1 <= hours < 100 else f"{hours:,.0f} hours" if hours >= 1 else f"{60 * hours:.3g} min"
    )


def _size(size: int, config: DataConfig, statistics: Mapping[str, Any], stored: int) -> dict[str, Any]:
    frames = statistics["frames_by_size"][str(size)]
    raw = frames * size * size * 3
    return {
        "size": size,
        "frames": frames,
        "most_frames": config.frames_at(size),
        "stored": stored,
        "raw": raw,
        "share": stored / raw if raw else 0.0,
    }


def _picture(frames_thwc: np.ndarray) -> dict[str, Any]:
    """Return the frames side by side, a transparent gap between them, as the URL of a PNG, with its size in pixels."""
    size = min(_MOST_SIZE, frames_thwc.shape[1])
    gap = -(-size // 32)
    image = Image.new("RGBA", ((size + gap) * len(frames_thwc) - gap, size))
    for place, frame in enumerate(frames_thwc):
        image.paste(Image.fromarray(frame).resize((size, size), Image.Resampling.BOX), (place * (size + gap), 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"url": url, "width": image.width, "height": image.height}


def _one_of_each_kind(captions: Sequence[Caption]) -> list[tuple[str, str]]:
    """Return (kind, its first line) in the order of the kinds."""
    first = {caption.kind: caption.text for caption in reversed(captions)}
    return [(kind, first[kind]) for kind in CAPTION_KINDS if kind in first]


def _leaves(value: Any, flag: str) -> list[tuple[str, str]]:
    """Return the settings as a command line spells them: (flag, value)."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{flag}.{key.replace('_', '-')}")]
    return [(flag, " ".join(map(str, value)) if isinstance(value, list) else str(value))]


def shares(counts: Mapping[str, int], most: int) -> list[tuple[str, int, float]]:
    """Return (name, count, share of all) of the first names; those beyond `most` and OTHER together as OTHER, last."""
    total = sum(counts.values())
    shown = [(name, count) for name, count in counts.items() if name != OTHER][:most]
    rest = total - sum(count for _, count in shown)
    return [(name, count, count / total) for name, count in [*shown, *([(OTHER, rest)] if rest else [])]]


def chart(
    title: str,
    unit: str,
    of: str,
    histogram: Mapping[str, Sequence[float]],
    mark: tuple[str, float] | None = None,
) -> dict[str, Any] | None:
    """Return what the template draws of a histogram, in the units of the view box, or None of an empty one.

    unit: of the edges; of: what is counted; mark: a named value to draw a line at, for which the axis is made longer
    where that leaves half of it to the bars.
    """
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return None
    width, height = _CHART
    low, high = edges[0], edges[-1]
    if mark is not None and 2 * low - high <= mark[1] <= 2 * high - low:
        low, high = min(low, mark[1]), max(high, mark[1])
    y_step = max(1.0, _round_step(max(counts) / 4))
    top = y_step * math.ceil(max(counts) / y_step)

    def x(value: float) -> float:
        return round((value - low) / (high - low) * width, 2)

    bars = [
        {
            "x": x(left),
            "width": round(max(x(right) - x(left) - 1, 0.5), 2),
            # A bin that is not empty is seen, however full the fullest is.
            "height": round(max(count / top * height, 1), 2),
            "range": f"{left:,g} to {right:,g}",
            "count": count,
        }
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    x_step = _round_step((high - low) / 8)
    x_numbers = range(math.ceil(low / x_step - 1e-9), math.floor(high / x_step + 1e-9) + 1)
    return {
        "title": title,
        "unit": unit,
        "of": of,
        "width": width,
        "height": height,
        "bars": bars,
        "x_ticks": [{"at": x(number * x_step), "label": f"{number * x_step:,g}"} for number in x_numbers],
        "y_ticks": [
            {"at": round(height - number * y_step / top * height, 2), "label": f"{number * y_step:,.0f}"}
            for number in range(round(top / y_step) + 1)
        ],
        "mark": {"at": x(mark[1]), "label": f"{mark[0]} {mark[1]:,g}"} if mark and low <= mark[1] <= high else None,
    }


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
