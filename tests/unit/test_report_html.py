"""The page: what data says becomes no markup and no script, it may reach nothing, and nobody else is served."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_registry import HOSTILE, Made

from experiments.registry import Registry
from tools import report as report_tool
from tools.report_page import render, serve
from tools.report_page.reading import Reader, Report
from tools.report_page.selection import Selection
from tools.report_page.text import plain, visible


@pytest.fixture(scope="module")
def reader(reported: Made) -> Reader:
    return Reader(registry=Registry(reported.home), selection=Selection())


class Elements(html.parser.HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def scripts(text: str) -> list[tuple[dict[str, str | None], str]]:
    elements = Elements(text)
    return [
        (attributes, content)
        for (tag, attributes), content in zip(elements.found, elements.texts, strict=True)
        if tag == "script"
    ]


def test_hostile_names_make_no_element_and_no_script(reader: Reader) -> None:
    report = reader.read()
    elements = Elements(render.page(report))
    assert {tag for tag, _ in elements.found} == {
        "html", "head", "meta", "title", "style", "body", "a", "header", "main", "noscript", "footer", "div", "script",
    }  # fmt: skip
    found = scripts(render.page(report))
    assert len(found) == 2 + len(report.details)
    code = [content for attributes, content in found if "type" not in attributes]
    assert len(code) == 1 and code[0].startswith("(() => {")
    assert "document.title='owned'" not in code[0]
    assert any("document.title='owned'" in content for _, content in found)  # it is there, as data


def test_data_elements_hold_just_what_was_collected(reader: Reader) -> None:
    report = reader.read()
    found = scripts(render.page(report))
    stored = {attributes["data-run"]: content for attributes, content in found if "data-run" in attributes}
    assert {one: json.loads(content) for one, content in stored.items()} == {
        one: json.loads(text) for one, text in report.details.items()
    }
    index = next(json.loads(content) for attributes, content in found if attributes.get("id") == "index")
    assert index == report.index | {"live": None}


JSON = st.recursive(
    st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_value_survives_embedding_and_cannot_end_its_element(value: object) -> None:
    text = render.embedded(json.dumps(value, ensure_ascii=False))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    page = f'<script type="application/json">{text}</script><p>'
    assert [tag for tag, _ in Elements(page).found] == ["script", "p"]


@given(st.text())
def test_a_visible_text_holds_nothing_that_acts(text: str) -> None:
    shown = visible(text)
    assert all(
        character.isprintable() or character in "\n\t" or character == "\u3000" or character.isspace()
        for character in shown
    )
    assert not set("\x00\x07\x1b\x7f\x9b\u200b\u202e\u2066\u2028\r") & set(shown)


def test_a_long_text_is_cut_with_a_word() -> None:
    assert visible("a" * 50, most=10) == "aaaaaaaaaa ... (40 more characters)"
    assert plain({"\x1bk": ["\x1b", 1, None, float("nan")]}) == {r"\u{1b}k": [r"\u{1b}", 1, None, "nan"]}


def test_hostile_title_is_escaped(reader: Reader) -> None:
    report = reader.read()
    index = dict(report.index, title=HOSTILE)
    text = render.page(Report(index=index, details={}))
    assert f"<title>{HOSTILE}" not in text
    titles = [
        content for (tag, _), content in zip(Elements(text).found, Elements(text).texts, strict=True) if tag == "title"
    ]
    assert [title.strip() for title in titles] == [HOSTILE]


def test_the_page_names_no_address_and_its_policy_forbids_the_network(reader: Reader) -> None:
    text = render.page(reader.read())
    elements = Elements(text)
    assert not [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "srcset")
    ]
    assert [attributes["href"] for _, attributes in elements.found if "href" in attributes] == ["#main"]
    code = (Path(render.__file__).parent / "page.css").read_text() + "".join(
        path.read_text() for path in (Path(render.__file__).parent / "js").glob("*.js")
    )
    assert set(re.findall(r"\w+://[^\"'\s]*", code)) == {
        "http://www.w3.org/2000/svg"
    }  # the name of SVG, never asked for
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|@import|url\((?!#)", code
    )
    policy = next(attributes["content"] for tag, attributes in elements.found if attributes.get("http-equiv"))
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:" and rules["media-src"] == "blob:"
    assert "unsafe" not in (policy or "") and "http" not in (policy or "")


def test_policy_allows_just_the_scripts_and_styles_of_the_page(reader: Reader) -> None:
    text = render.page(reader.read())
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in text.replace("&#39;", "'")


def test_every_module_of_the_page_is_in_it() -> None:
    assert sorted(render.SCRIPTS) == sorted(path.stem for path in (Path(render.__file__).parent / "js").glob("*.js"))


@pytest.fixture(scope="module")
def address(reader: Reader) -> Iterator[str]:
    server, address = serve.make_server(reader, 0, every_s=1)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield address
    server.shutdown()
    server.server_close()


def ask(address: str, path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, str, str]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request(method, path, headers={"Host": host or parts.netloc})
    answer = connection.getresponse()
    return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()


def test_a_served_page_holds_the_overview_and_fetches_the_rest(address: str, reported: Made, reader: Reader) -> None:
    path = urlsplit(address).path
    status, kind, text = ask(address, path)
    assert (
        status == 200
        and kind.startswith("text/html")
        and "data-run" not in {name for _, of in Elements(text).found for name in of}
    )
    assert "connect-src &#39;self&#39;" in text
    status, kind, text = ask(address, f"{path}index")
    assert status == 200 and {one["id"] for one in json.loads(text)["runs"]} == {
        one.id for one in reader.registry.runs()
    }
    status, _, text = ask(address, f"{path}run/{reported.sample.id}")
    assert status == 200 and json.loads(text)["clips"]["of"] == 6


def test_it_is_served_on_this_machine_alone(address: str) -> None:
    assert urlsplit(address).hostname == "127.0.0.1"
    assert len(urlsplit(address).path) > 20  # a name that nobody guesses


@pytest.mark.parametrize(
    "tail", ["..", "../../etc/passwd", "%2e%2e/", "run/", "run/../index", "run/nothing", "runs", "index/"]
)
def test_nothing_else_is_served(address: str, tail: str) -> None:
    status, _, text = ask(address, urlsplit(address).path + tail)
    assert (status, text) == (404, "not found\n")


@pytest.mark.parametrize("path", ["/", "/index", "/etc/passwd", "//", "/guess/"])
def test_without_the_drawn_name_nothing_is_served(address: str, path: str) -> None:
    assert ask(address, path)[0] == 404


def test_a_page_of_the_web_that_points_its_name_here_gets_nothing(address: str) -> None:
    path = urlsplit(address).path
    assert ask(address, path, host="evil.example:80")[0] == 404
    assert ask(address, path, host=f"localhost:{urlsplit(address).port}")[0] == 200


def test_only_asking_is_answered(address: str) -> None:
    assert ask(address, urlsplit(address).path, method="POST")[0] == 501


def run_tool(monkeypatch: pytest.MonkeyPatch, home: Path, *arguments: str) -> int:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(home))
    return report_tool.main(arguments)


def test_the_command_writes_one_file_and_says_which(
    monkeypatch: pytest.MonkeyPatch, reported: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_tool(monkeypatch, reported.home) == 0
    assert run_tool(monkeypatch, reported.home, reported.prior.id[:6], "--alone") == 0
    assert run_tool(monkeypatch, reported.home, reported.prior.id, "--out", "of.html") == 0
    names = ["report.html", f"report-{reported.prior.id[:6]}.html", "of.html"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert [(tmp_path / name).read_text().count("data-run=") - 1 for name in names] == [15, 1, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no run matches 'nothing'"),
        (["--alone"], "--alone needs the id of a run"),
        (["--newest", "0"], "--newest 0 must be 1 or more"),
        (["--clips", "-1"], "--clips -1 must be 0 or more"),
        (["--out", "/nowhere/a.html"], "--out /nowhere/a.html must be a file in a folder that exists"),
        (["--serve", "--port", "70000"], "--port 70000 must be 1 to 65535"),
        (["--serve", "--every", "0.1"], "--every 0.1 must be 1 or more seconds"),
    ],
)
def test_errors_of_the_user_name_the_option(
    monkeypatch: pytest.MonkeyPatch,
    reported: Made,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert run_tool(monkeypatch, reported.home, *arguments) == 2
    assert f"error: {words}" in capsys.readouterr().err


def test_an_empty_registry_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(monkeypatch, tmp_path) == 2
    assert "there are no runs in" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(address: str, reader: Reader) -> None:
    port = urlsplit(address).port or 0
    with pytest.raises(ValueError, match=f"--port {port} is not to be had"):
        serve.make_server(reader, port, every_s=1)
