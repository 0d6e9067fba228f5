"""The page of a store: what it says is what was counted, it needs nothing else, and nobody's text becomes markup."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle2_video.data.celebv_text import Caption
from dalle2_video.data.statistics import statistics
from dalle2_video.data.store import PAGE_FILE, Store
from dalle2_video.data.store_page import Example, chart, example_frames, example_rows, example_size, page, shares
from dalle2_video.data_config import CAPTION_KINDS, DataConfig
from tools import store_page as tool

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "<script>alert(1)</script> \"'>&amp; \x1b[31m \u202e {{ 7 * 7 }} \ud800"


class Element:
    """One element of the page."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.walk() if element.tag == tag]

    def walk(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.walk()

    @property
    def text(self) -> str:
        pieces = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(pieces).split())


class Page(HTMLParser):
    """Parses a page and fails where an element is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(html)
        self.close()
        assert self._open == [self.root], "not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID and self.get_starttag_text()[-2:] != "/>":  # type: ignore[index]
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def tiles(self) -> dict[str, str]:
        tiles = next(element for element in self.root.all("dl") if element.attributes.get("class") == "tiles")
        return {tile.all("dt")[0].text: tile.all("dd")[0].text for tile in tiles.all("div")}

    def table(self, caption: str) -> list[list[str]]:
        found = [table for table in self.root.all("table") if table.all("caption")[0].text.startswith(caption)]
        rows = [row for body in found[0].all("tbody") for row in body.all("tr")]
        return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in rows]


def made(
    clip_id: str = "aaaaaaaaaaa_0_0",
    *,
    text: str = "it moves",
    reasons: dict[str, str] | None = None,
    notes: list[str] | None = None,
    frames: int = 16,
    captions: int = 1,
    **settings: Any,
) -> str:
    """Return the page of a store of one good clip, and bad ones."""
    config = DataConfig(**{"frame_sizes": (8,), "min_frames": 2, "text_context": 6, **settings})
    nothing = {"num_frames": 0, "source_fps": 0.0, "source_size": [0, 0], "seconds": 0.0, "short": False, "notes": []}
    good = {
        "clip_id": clip_id, "bad": None, "num_frames": frames, "source_fps": 24.0, "source_size": [640, 480],
        "seconds": frames / 8, "short": False, "captions": [["action", text]] * captions, "notes": [],
    }  # fmt: skip
    rows = [good] + [{**nothing, "clip_id": name, "bad": why, "captions": []} for name, why in (reasons or {}).items()]
    counted = statistics(
        rows,
        config=config,
        held_out=np.zeros(len(rows), bool),
        kinds=np.full(captions, CAPTION_KINDS.index("action"), np.uint8),
        uncut_lengths=np.full(captions, 8, np.int32),
        joined_lengths=np.full(min(1, captions), 8, np.int64),
        notes=notes or [],
    )
    size = example_size(config)
    pixels = np.random.default_rng(0).integers(0, 256, (len(example_frames(frames)), size, size, 3), np.uint8)
    example = Example(
        clip_id=clip_id, frames_thwc=pixels, captions=[Caption(kind="action", text=text) for _ in range(captions)]
    )
    return page(counted, config, [example], reasons or {}, dict.fromkeys(config.frame_sizes, 1000))


@pytest.fixture(scope="module")
def html(store_path: Path) -> str:
    return tool.page_of(Store(store_path))


def test_the_numbers_are_those_of_the_statistics(html: str, store_path: Path) -> None:
    counted, shown = Store(store_path).statistics(), Page(html)
    tiles = shown.tiles()
    assert tiles["Clips in the data set"] == "10"
    assert tiles["Usable"] == "8 4 train, 4 val"
    assert tiles["Bad"] == "2 20.0 %"
    assert tiles["Identities"] == "4 2 train, 2 val"
    assert tiles["Frames"] == "160 shortest clip: 20 train, 20 val"
    assert tiles["Length stored"] == "0.333 min of 0.333 min in the sources"
    assert tiles["Captions"] == f"{sum(counted['captions'].values())} {counted['captions_truncated']} cut"
    assert shown.table("Frames per second") == [["24", "8", "100 %"]]
    assert shown.table("Width and height") == [["48x32", "8", "100 %"]]
    kinds = {row[0]: row[1:] for row in shown.table("Captions by kind")}
    assert list(kinds) == [name.replace("_", " ") for name in counted["caption_tokens"]]
    for name, of_kind in counted["caption_tokens"].items():
        row = kinds[name.replace("_", " ")]
        assert row[0] == str(of_kind["count"])
        assert row[3:7] == [str(of_kind[quantile]) for quantile in ("p50", "p95", "p99", "max")]
    assert {row[0]: int(row[1]) for row in shown.table("Reasons")} == counted["bad_reasons"]
    assert dict(shown.table("Bad clips")) == Store(store_path).bad_clips()
    settings = dict(shown.table("The data part"))
    assert (settings["--data.frame-sizes"], settings["--data.decode.excerpt"]) == ("8 16", "start")


def test_sizes_on_disk_are_those_of_the_shards(html: str, store_path: Path) -> None:
    for size, row in zip((8, 16), Page(html).table("Frames on disk"), strict=True):
        stored = sum(file.stat().st_size for file in (store_path / f"frames_{size}").glob("c.*"))
        raw = 160 * size * size * 3
        assert row[:3] == [str(size), "40", "160"]
        assert float(row[4].removesuffix(" kB")) == pytest.approx(stored / 1000, rel=0.01)
        assert float(row[5].removesuffix(" %")) == pytest.approx(100 * stored / raw, abs=0.06)


def test_the_contact_sheet_shows_the_stored_frames_and_captions(html: str, store_path: Path) -> None:
    store = Store(store_path)
    rows = np.flatnonzero(store.num_frames > 0).tolist()
    shown = [
        element for element in Page(html).root.all("div") if "clip" in str(element.attributes.get("class")).split()
    ]
    assert [clip.all("h3")[0].text for clip in shown] == [store.clip_id(row) for row in rows]
    for row, clip in zip(rows, shown, strict=True):
        picture = clip.all("img")[0].attributes
        data = base64.b64decode(str(picture["src"]).removeprefix("data:image/png;base64,"))
        strip = np.asarray(Image.open(io.BytesIO(data)))
        assert strip.shape == (int(str(picture["height"])), int(str(picture["width"])), 4)
        for place, number in enumerate(example_frames(20)):
            left = place * 17
            np.testing.assert_array_equal(
                strip[:, left : left + 16, :3], store.frames(16).read(row, number, number + 1)[0]
            )
        first = {caption.kind: caption.text for caption in reversed(store.captions_of(row))}
        assert [value.text for value in clip.all("dd")] == [first[kind] for kind in CAPTION_KINDS]


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    shown = Page(html)
    assert not {element.tag for element in shown.root.walk()} & {"script", "link", "iframe", "object", "base", "form"}
    for element in shown.root.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert str(value).startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"https?:|url\(|@import", html)


def test_ids_are_unique_and_everything_refers_to_one(html: str) -> None:
    elements = list(Page(html).root.walk())
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    used = [element.attributes["aria-labelledby"] for element in elements if "aria-labelledby" in element.attributes]
    used += [str(element.attributes["href"]).removeprefix("#") for element in elements if "href" in element.attributes]
    assert used and set(used) <= set(ids)


def test_the_page_can_be_read_without_seeing_it(html: str) -> None:
    root = Page(html).root
    assert root.all("html")[0].attributes["lang"] == "en"
    levels = [int(element.tag[1]) for element in root.walk() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert all(picture.attributes["alt"] for picture in root.all("img"))
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert all(cell.attributes.get("scope") in ("row", "col") for cell in table.all("th"))
    for drawing in root.all("svg"):
        assert drawing.attributes["role"] == "img" and drawing.all("title")[0].text


@pytest.mark.parametrize("where", ["clip id", "caption", "reason", "bad clip id", "note", "setting"])
def test_text_of_the_data_set_never_becomes_markup(where: str) -> None:
    html = {
        "clip id": lambda: made(HOSTILE),
        "caption": lambda: made(text=HOSTILE),
        "reason": lambda: made(reasons={"b": HOSTILE}),
        "bad clip id": lambda: made(reasons={HOSTILE: "damaged"}),
        "note": lambda: made(notes=[HOSTILE]),
        "setting": lambda: made(video_folder=HOSTILE),
    }[where]()
    html.encode()  # a lone surrogate, as file names can hold, must not end the writing of the page
    shown = Page(html)
    assert shown.root.all("script") == []
    said = shown.root.text + " ".join(str(image.attributes["alt"]) for image in shown.root.all("img"))
    assert "<script>alert(1)</script> \"'>&amp; \\u{1b}[31m \\u{202e} {{ 7 * 7 }} \\u{d800}" in said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_long_texts_are_cut_and_newlines_become_spaces() -> None:
    shown = Page(made(text="one\ntwo " + "x" * 100_000))
    assert [value.text for value in shown.root.all("dd")][-1] == "one two " + "x" * 392 + " ..."


def test_of_many_bad_clips_the_first_500_are_listed_and_the_others_pointed_to() -> None:
    shown = Page(made(reasons={f"clip{number:04d}": f"damaged frame at {number} s" for number in range(1234)}))
    assert shown.table("Reasons") == [["damaged frame at # s", "1,234", "100 %"]]
    listed = shown.table("Bad clips")
    assert [row[0] for row in listed] == [f"clip{number:04d}" for number in range(500)]
    captions = [caption.text for caption in shown.root.all("caption")]
    assert "Bad clips and their reasons; the other 734 are in bad_clips.json of the store" in captions


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 500])
@pytest.mark.parametrize("captions", [0, 1, 3])
def test_the_smallest_stores_have_a_page(frames: int, captions: int) -> None:
    shown = Page(made(frames=frames, captions=captions, min_frames=1))
    assert shown.tiles()["Frames"].startswith(f"{frames} ")
    assert len(shown.root.all("svg")) == (3 if captions else 2)


@pytest.mark.parametrize(
    ("sizes", "shown", "height"), [((16, 64, 128), 64, "64"), ((8, 16), 16, "16"), ((256,), 256, "96")]
)
def test_pictures_are_large_enough_to_see_and_small_enough_to_mail(
    sizes: tuple[int, ...], shown: int, height: str
) -> None:
    html = made(frame_sizes=sizes)
    assert example_size(DataConfig(frame_sizes=sizes)) == shown
    assert Page(html).root.all("img")[0].attributes["height"] == height


def test_examples_are_spread_over_clips_and_time() -> None:
    assert example_rows(np.arange(0, 2400, 2)) == list(range(100, 2400, 200))
    assert example_rows(np.array([3, 9])) == [3, 9]
    assert example_frames(71) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert example_frames(3) == [0, 1, 2]
    assert example_frames(1) == [0]


def test_bars_and_the_mark_are_drawn_to_scale() -> None:
    drawn = chart("Lengths", "tokens", "captions", {"edges": [10, 20, 30, 40], "counts": [30, 0, 60]}, ("context", 50))
    assert drawn is not None
    width, height = drawn["width"], drawn["height"]
    assert [bar["x"] for bar in drawn["bars"]] == [0, width / 2]
    first, last = (bar["height"] for bar in drawn["bars"])
    assert last == 2 * first <= height
    assert drawn["mark"] == {"at": width, "label": "context 50"}
    ticks = {tick["label"]: tick["at"] for tick in drawn["y_ticks"]}
    assert height - ticks["60"] == last and ticks["0"] == height
    assert {tick["label"]: tick["at"] for tick in drawn["x_ticks"]}["20"] == width / 4


def test_a_mark_far_from_all_bars_does_not_squeeze_them() -> None:
    drawn = chart("Lengths", "tokens", "captions", {"edges": [10, 20], "counts": [1]}, ("context", 512))
    assert drawn is not None and drawn["mark"] is None
    assert drawn["bars"][0]["width"] >= drawn["width"] - 1


def test_rare_values_are_summed_up() -> None:
    assert shares({"a": 5, "b": 3, "c": 1, "other": 1}, 2) == [("a", 5, 0.5), ("b", 3, 0.3), ("other", 2, 0.2)]
    assert shares({"a": 1}, 2) == [("a", 1, 1.0)]
    assert shares({}, 2) == []


def test_the_tool_writes_the_same_bytes_again(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(store_path, tmp_path / "copy")
    written = (copy / PAGE_FILE).read_bytes()
    (copy / PAGE_FILE).unlink()
    assert tool.main([str(copy)]) == 0
    assert (copy / PAGE_FILE).read_bytes() == written
    assert capsys.readouterr().out == f"{copy / PAGE_FILE}\n"
    assert tool.main([str(copy), "--out", str(tmp_path / "mail.html")]) == 0
    assert (tmp_path / "mail.html").read_bytes() == written


def test_the_tool_refuses_what_it_cannot_show(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path)]) == 2
    assert "no store at" in capsys.readouterr().err
    assert tool.main([str(store_path), "--out", str(tmp_path / "none/page.html")]) == 2
    assert "none/page.html must be a file in a folder that exists" in capsys.readouterr().err
    copy = shutil.copytree(store_path, tmp_path / "copy")
    counted = json.loads((copy / "statistics.json").read_text())
    del counted["resolutions"]
    (copy / "statistics.json").write_text(json.dumps(counted))
    assert tool.main([str(copy)]) == 2
    assert "resolutions" in (said := capsys.readouterr().err) and "tools/verify_store.py" in said
    for shard in (store_path / "frames_16").glob("c.*"):
        (copy / "frames_16" / shard.name).unlink()
    assert tool.main([str(copy)]) == 2
    assert "frames_16" in capsys.readouterr().err
