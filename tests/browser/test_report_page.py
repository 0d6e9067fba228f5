"""The report in a real Chromium: what a person sees, by pointer, by keyboard, on a narrow screen and in the dark.

Debian's package `chromium` is driven by playwright; without it these tests say so and are skipped.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_registry import HOSTILE, Made

from experiments.registry import Registry
from tools.report_page import serve
from tools.report_page.reading import Reader
from tools.report_page.render import page as render
from tools.report_page.selection import Selection

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium: apt-get install chromium")
if CHROMIUM is not None:
    from playwright.sync_api import Browser, Page, expect, sync_playwright

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root in a container has no sandbox to offer; the page is the tests' own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report_file(reported: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(Reader(registry=Registry(reported.home), selection=Selection()).read()))
    return path.as_uri()


class Watched:
    """A page of which errors and requests are noted."""

    def __init__(self, browser: Browser, *, viewport: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.split(":")[0]))


@pytest.fixture(scope="module")
def pages(browser: Browser) -> Iterator[dict[tuple[int, str], Watched]]:
    """One page for each kind of screen: starting one takes longer than most tests."""
    found: dict[tuple[int, str], Watched] = {}
    yield found
    for one in found.values():
        one.context.close()


@pytest.fixture
def watched(
    browser: Browser, pages: dict[tuple[int, str], Watched], request: pytest.FixtureRequest
) -> Iterator[Watched]:
    viewport, scheme = getattr(request, "param", (WIDE, "light"))
    key = (viewport["width"], scheme)
    if key not in pages:
        pages[key] = Watched(browser, viewport=viewport, scheme=scheme)
    found = pages[key]
    found.errors.clear()
    found.asked.clear()
    yield found
    assert found.errors == []
    assert set(found.asked) <= {"file", "blob", "data"}


@pytest.fixture
def page(watched: Watched, report_file: str) -> Page:
    watched.page.goto("about:blank")  # from one view of the page to another nothing would be loaded anew
    watched.page.goto(f"{report_file}#/")
    expect(watched.page.locator("table.runs")).to_be_visible()
    return watched.page


def go(page: Page, view: str) -> None:
    page.evaluate("view => { location.hash = view; }", view)
    page.wait_for_function(
        "view => location.hash === view && document.querySelector('main').dataset.view === view", arg=view
    )
    wait_for_charts(page)


def wait_for_charts(page: Page) -> None:
    """Wait until every chart is drawn at its size: one learns that after it is in the page, and then draws anew."""
    page.wait_for_function("""() => [...document.querySelectorAll('.plot')].every(
        (plot) => plot.firstChild.viewBox.baseVal?.width === Math.max(160, plot.clientWidth)
    )""")


def shown_runs(page: Page) -> list[str]:
    return page.locator("table.runs tbody th").all_inner_texts()


def test_the_overview_shows_every_run_and_filters(page: Page, reported: Made) -> None:
    assert len(shown_runs(page)) == 15
    page.get_by_label("Filter").fill("prior")
    assert sorted(shown_runs(page)) == sorted([reported.prior.folder.name, reported.other_prior.folder.name])
    expect(page.locator("#count")).to_have_text("2 of 15 runs")
    page.get_by_label("Filter").fill("")
    page.get_by_label("state", exact=True).select_option("failed")
    assert shown_runs(page) == [reported.failed.folder.name]
    page.get_by_label("state", exact=True).select_option("")
    page.get_by_label("stage", exact=True).select_option("decoder")
    assert len(shown_runs(page)) == 3
    page.get_by_label("Filter").fill("no such run")
    expect(page.locator("main")).to_contain_text("No run matches.")


def test_the_overview_sorts_by_its_columns(page: Page) -> None:
    page.get_by_role("button", name="Loss", exact=True).click()
    header = page.locator("thead th", has_text="Loss").first
    expect(header).to_have_attribute("aria-sort", "descending")
    texts = page.locator('table.runs td[data-title="Loss"]').all_inner_texts()
    losses = [float(text) for text in texts if text]
    assert losses == sorted(losses, reverse=True) and len(losses) == 6
    assert texts[len(losses) :] == [""] * 9  # what has no loss comes last
    page.get_by_role("button", name="Loss", exact=True).click()
    texts = page.locator('table.runs td[data-title="Loss"]').all_inner_texts()
    assert [float(text) for text in texts if text] == losses[::-1] and texts[0]


def test_curves_are_drawn_with_marks_where_attempts_went_on(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.clip.id}")
    loss = page.locator("figure.chart", has_text="Loss").first
    box = loss.locator("path.line.c0").last.bounding_box()
    assert box is not None and box["width"] > 400 and box["height"] > 100
    assert loss.locator("path.line").count() >= 4  # two in the legend, training and validation
    expect(loss.locator("line.attempt-mark")).to_have_count(2)
    expect(loss).to_contain_text("4,000 records: the line is the mean of 3 each, the band their lowest to highest.")
    expect(loss).to_contain_text("1 value not finite")
    spike = page.locator("figure.chart", has_text="Gradient norm").locator('[role="slider"]')
    assert "highest 900" in (spike.get_attribute("aria-label") or "")
    expect(page.locator("main")).to_contain_text("The same at every step: peak of memory, rank 0 (GiB) 3.5")


def ranges(page: Page) -> set[tuple[str | None, str | None]]:
    plots = page.locator(".plot").all()
    return {(plot.get_attribute("aria-valuemin"), plot.get_attribute("aria-valuemax")) for plot in plots}


def test_dragging_zooms_all_charts_and_a_double_click_shows_all(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.clip.id}")
    assert ranges(page) == {("10", "40000")}
    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.locator(".plot").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 90, steps=4)
    page.mouse.up()
    ((first, last),) = ranges(page)
    assert first and last and 10_000 < int(first) < 15_000 and 25_000 < int(last) < 29_000
    expect(page.locator("#zoom-out")).to_be_enabled()
    page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 80)
    assert ranges(page) == {("10", "40000")}
    expect(page.locator("#zoom-out")).to_be_disabled()


def test_smoothing_and_logarithm_change_the_curves(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.clip.id}")
    line = page.locator("figure.chart").first.locator(".plot path.line.c0").last
    plain = line.get_attribute("d")
    page.get_by_label("Smoothing").fill("0.9")
    smooth = line.get_attribute("d")
    expect(page.locator("figure.chart").first.locator(".plot path.faint")).to_have_count(2)
    page.get_by_label("Logarithmic").check()
    assert len({plain, smooth, line.get_attribute("d")}) == 3
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", smooth or "")]
    rough = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", plain or "")]

    def variation(values: list[float]) -> float:
        return sum(abs(one - other) for one, other in itertools.pairwise(values))

    assert variation(heights) < variation(rough) / 4


def test_each_curve_is_there_as_a_table(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.prior.id}")
    chart = page.locator("figure.chart").first
    chart.get_by_text("As a table").click()
    rows = chart.locator("tbody tr")
    expect(rows).to_have_count(300 + 15)
    record = json.loads((reported.prior.folder / "metrics.0001.jsonl").read_text().splitlines()[0])
    cells = rows.first.locator("th, td").all_inner_texts()
    assert cells[:2] == ["training", "10"]
    assert float(cells[2]) == pytest.approx(record["loss"], rel=1e-5)


def test_clips_play(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.sample.id}")
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2", timeout=20_000)
    assert video.evaluate("video => [video.videoWidth, video.videoHeight, video.error]") == [64, 64, None]
    expect(page.locator("video")).to_have_count(4)
    expect(page.locator("figure.clip").first).to_contain_text("a red circle moves right over white")
    expect(page.locator("figure.clip").first).to_contain_text("seed 7")
    page.get_by_label("Prompts with").fill("blue")
    expect(page.locator("figure.clip")).to_have_count(1)


def test_hostile_texts_are_read_and_do_nothing(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.sample.id}")
    expect(page.locator("figure.clip").nth(2)).to_contain_text(HOSTILE)
    for run in (reported.failed, reported.evaluate, reported.preprocess):
        go(page, f"#/run/{run.id}")
        expect(page.locator("main")).to_contain_text("</script><script>document.title='owned'</script>")
    assert page.title() != "owned"
    expect(page.locator("img")).to_have_count(0)
    expect(page.locator("script:not([type])")).to_have_count(1)


def test_the_policy_stops_what_a_script_would_ask_for(browser: Browser, report_file: str) -> None:
    page = browser.new_page()
    page.goto(report_file)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', (error) => error.name)")
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = "document.title = 'owned'";
        document.body.append(script);
        const image = new Image();
        image.src = 'http://127.0.0.1:9/a.png';
        document.body.append(image);
    }""")
    page.wait_for_timeout(200)
    assert refused == "TypeError" and page.title() != "owned"
    assert len([text for text in said if "Content Security Policy" in text]) >= 3
    page.close()


def test_runs_are_compared_by_settings_curves_and_clips(page: Page, reported: Made) -> None:
    for run in (reported.prior, reported.other_prior):
        page.get_by_label(f"Choose prior/{run.folder.name} for a comparison").check()
    page.get_by_role("button", name="Compare 2 chosen").click()
    expect(page.get_by_role("heading", name="Comparison of 2 runs")).to_be_visible()
    wait_for_charts(page)
    settings = page.locator("table.settings tbody tr")
    expect(settings).to_have_count(1)
    expect(settings).to_contain_text("prior.optim.lr")
    expect(settings).to_contain_text("0.0009")
    loss = page.locator("figure.chart", has_text="Loss").first
    for colour in ("c0", "c1"):
        line = loss.locator(f".plot path.line.{colour}:not(.dashed)")
        expect(line).to_be_visible()
        assert line.evaluate("line => line.getBBox().width") > 300
    expect(page.get_by_text("clips that only one of them made")).to_be_attached()


def test_the_settings_of_a_run_are_compared_to_anothers(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.prior.id}")
    assert page.locator("table.settings tbody tr").count() > 20
    page.get_by_label("Difference to").select_option(reported.other_prior.id)
    expect(page.locator("table.settings tbody tr")).to_have_count(1)


def test_attempts_are_a_time_line_with_nodes(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.clip.id}")
    rows = page.locator("table.timeline tbody tr")
    expect(rows).to_have_count(3)
    for number, words in enumerate((["n1, n2", "preempted"], ["n3, n4", "without a word", "500 lost"], ["done"])):
        for word in words:
            expect(rows.nth(number)).to_contain_text(word)
    expect(rows.nth(1).locator("rect.queued")).to_have_count(1)
    widths = [box["width"] for box in (one.bounding_box() for one in page.locator("rect.part").all()) if box]
    assert len(widths) == 6 and min(widths) > 1
    go(page, f"#/run/{reported.queued.id}")
    expect(page.locator("table.timeline")).to_contain_text("queued")


def test_evaluations_are_shown_with_the_run_that_they_judge(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.evaluate.id}")
    expect(page.locator("main")).to_contain_text("50 % (25 to 75)")
    expect(page.locator("main")).to_contain_text("12.25 (11 to 13.5)")
    go(page, f"#/run/{reported.clip.id}")
    history = page.get_by_role("table", name="Evaluations of this run")
    expect(history).to_contain_text("10 % (5 to 15)")
    history.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(reported.evaluate.folder.name)


def test_evaluations_of_a_run_at_work_stand_in_the_order_of_its_steps(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.decoder.id}")
    rows = page.get_by_role("table", name="Evaluations of this run").locator("tbody tr")
    expect(rows).to_have_count(2)
    assert [rows.nth(number).locator("td").nth(1).inner_text() for number in (0, 1)] == ["200", "600"]
    expect(rows.nth(1)).to_contain_text("3.4 (3 to 4.5)")
    go(page, f"#/run/{reported.watched[0].id}")
    expect(page.locator("main")).to_contain_text("at step 600")


def test_clips_of_checkpoints_play_beside_each_other_in_the_order_of_steps(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.decoder.id}")
    shown = page.get_by_role("table", name="Clips over training")
    assert shown.locator("thead th").all_inner_texts() == ["Prompt", "step 200", "step 600"]
    rows = shown.locator("tbody tr")
    expect(rows).to_have_count(3)  # two prompts, and the runs
    expect(rows.first.locator("th")).to_have_text("a red circle moves right over white seed 7")
    for run, cell in zip(reported.previews[::-1], rows.last.locator("td").all(), strict=True):
        expect(cell.get_by_role("link")).to_have_attribute("href", f"#/run/{run.id}")
    shown.scroll_into_view_if_needed()
    for video in rows.first.locator("video").all():
        expect(video).to_have_js_property("paused", False)
    how = rows.first.locator("figure").last
    how.get_by_text("how").click()
    expect(how).to_contain_text(f"{reported.decoder.id} at step 600")
    expect(how).to_contain_text("32 steps of ddim, guidance 3.0")
    go(page, f"#/run/{reported.prior.id}")
    expect(page.locator("main")).to_contain_text("Also over the training of")


def test_data_statistics_and_bad_clips_are_shown(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.preprocess.id}")
    expect(page.locator("figure.histogram")).to_have_count(2)
    expect(page.get_by_role("table", name="Bad clips and why")).to_contain_text("it is cut")


def test_the_lineage_leads_from_run_to_run(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.sample.id}")
    expect(page.locator("svg.lineage a.box")).to_have_count(6)
    expect(page.locator("svg.lineage .edge")).to_have_count(6)
    page.locator("svg.lineage a.box", has_text=reported.clip.folder.name).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(reported.clip.folder.name)


def test_all_of_it_is_reached_by_keyboard(page: Page, reported: Made) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.type("prior")
    assert len(shown_runs(page)) == 2
    box = page.locator("input[id^='choose ']").first
    box.focus()
    page.keyboard.press("Space")
    expect(box).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("prior")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_chart_is_read_and_zoomed_by_keyboard(page: Page, reported: Made) -> None:
    go(page, f"#/run/{reported.clip.id}")
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("Home")
    first = plot.get_attribute("aria-valuetext") or ""
    assert re.search(r"training: [\d.]+ \([\d.]+ to [\d.]+\) at steps 10 to 30", first)
    page.keyboard.press("ArrowRight")
    assert "at steps 40 to 60" in (plot.get_attribute("aria-valuetext") or "")
    page.keyboard.press("+")
    ((_, last),) = ranges(page)
    assert int(last or 0) < 25_000
    page.keyboard.press("Shift+ArrowRight")
    ((moved, _),) = ranges(page)
    assert int(moved or 0) > 1000
    assert "Zoomed to steps" in page.locator("#said").inner_text()
    page.keyboard.press("Escape")
    assert ranges(page) == {("10", "40000")}
    outline = plot.evaluate("plot => getComputedStyle(plot).outlineStyle")
    assert outline == "solid"


def test_whatever_can_be_used_has_a_name(page: Page, reported: Made) -> None:
    views = [
        "#/",
        f"#/run/{reported.clip.id}",
        f"#/run/{reported.sample.id}",
        f"#/compare/{reported.prior.id},{reported.clip.id}",
    ]
    for view in views:
        go(page, view)
        nameless = page.evaluate("""() => [...document.querySelectorAll(
            'button, input, select, a, video, [role=slider], [role=region], svg:not([aria-hidden])')]
            .filter((one) => !one.closest('[aria-hidden]') && !(one.labels && one.labels.length)
                && !(one.getAttribute('aria-label') || one.textContent || '').trim())
            .map((one) => one.outerHTML.slice(0, 90))""")
        assert nameless == []
        expect(page.locator("main h1")).to_have_count(1)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("watched", [(NARROW, "light")], indirect=True)
def test_nothing_is_wider_than_a_narrow_screen(page: Page, reported: Made) -> None:
    views = [
        f"#/run/{run.id}"
        for run in (reported.clip, reported.sample, reported.evaluate, reported.failed, reported.preprocess)
    ]
    for view in ["#/", f"#/compare/{reported.prior.id},{reported.other_prior.id},{reported.clip.id}", *views]:
        go(page, view)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= NARROW["width"], view
    go(page, f"#/run/{reported.clip.id}")
    box = page.locator(".plot svg").first.bounding_box()
    assert box is not None and 300 < box["width"] <= 360


@pytest.mark.parametrize("watched", [(WIDE, "light"), (WIDE, "dark")], indirect=True, ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_what_is_behind_them(page: Page) -> None:
    found = page.evaluate("""() => {
        const probe = document.body.appendChild(document.createElement('i'));
        const light = (name) => {
            probe.style.color = `var(--${name})`;
            const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                const value = part / 255;
                return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const contrast = (one, other) => {
            const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
        };
        const texts = ['text', 'muted', 'accent', 'good', 'going', 'bad', 'warn'];
        const lines = [0, 1, 2, 3, 4, 5, 6, 7].map((number) => `c${number}`);
        return { texts: texts.flatMap((name) => [contrast(name, 'back'), contrast(name, 'raised')]),
                 lines: lines.map((name) => contrast(name, 'back')), back: light('back') };
    }""")
    assert min(found["texts"]) >= 4.5  # WCAG 2.2, 1.4.3
    assert min(found["lines"]) >= 3  # 1.4.11
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (found["back"] < 0.05) == dark and (found["back"] > 0.9) == (not dark)


def test_a_file_of_one_run_opens_at_it(watched: Watched, reported: Made, tmp_path: Path) -> None:
    report = Reader(registry=Registry(reported.home), selection=Selection(named=[reported.prior.id])).read()
    path = tmp_path / "one.html"
    path.write_text(render(report))
    watched.page.goto(path.as_uri())
    expect(watched.page.get_by_role("heading", level=1)).to_contain_text(reported.prior.folder.name)
    watched.page.get_by_role("link", name="All runs").click()
    assert len(shown_runs(watched.page)) == 7


def test_a_served_page_shows_what_is_new_and_keeps_the_readers_place(
    browser: Browser, reported: Made, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(reported.home, home)
    server, address = serve.make_server(Reader(registry=Registry(home), selection=Selection()), 0, every_s=1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    errors: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}#/run/{reported.decoder.id}")
    chart = page.locator(".plot").first
    expect(chart).to_have_attribute("aria-valuemax", "800")
    chart.focus()
    with (home / "runs/decoder" / reported.decoder.folder.name / "metrics.0001.jsonl").open("a") as file:
        file.write(json.dumps({"split": "train", "step": 1700, "loss": 1.25, "time": 0.0}) + "\n")
    expect(page.locator(".plot").first).to_have_attribute("aria-valuemax", "1700", timeout=15_000)
    assert page.evaluate("document.activeElement.id") == "plot loss"
    expect(page.locator("#age")).to_contain_text("live, as of")
    assert errors == []
    server.shutdown()
    server.server_close()
    expect(page.locator("#age")).to_contain_text("no news", timeout=15_000)
    page.close()
