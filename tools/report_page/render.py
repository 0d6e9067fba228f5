"""One HTML file of a report: template, style, scripts and data in it, and a policy that forbids the page all else.

Scripts and style are allowed by their digests alone, so that no text in the data could ever be one; data lies in
elements that browsers do not run, in a form that cannot end them. Only a page that is served may ask its own server.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from tools.report_page.reading import Report

_FOLDER = Path(__file__).parent
SCRIPTS = (
    "dom", "format", "data", "scale", "chart", "charts", "lineage", "timeline", "figures", "clips", "previews", "store",
    "settings", "overview", "run", "compare", "main",
)  # fmt: skip
"""Modules in js/, in the order in which the page reads them; each uses those before it."""
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def page(report: Report, *, every_s: float | None = None) -> str:
    """Return the whole page.

    every_s: of a page that is served how often it asks for news; it then holds the overview alone. None: a file that
    holds everything.
    """
    script, style = _script(), (_FOLDER / "page.css").read_text()
    index = dict(report.index, live=every_s)
    return _template().render(
        title=report.index["title"],
        policy=policy(script, style, served=every_s is not None),
        style=Markup(style),
        script=Markup(script),
        index=Markup(embedded(json.dumps(index, separators=(",", ":"), ensure_ascii=False, allow_nan=False))),
        details={one: Markup(embedded(text)) for one, text in ({} if every_s else report.details).items()},
    )


def embedded(text: str) -> str:
    """Return JSON in a form that cannot end the element that holds it, nor open another: without <, > and &."""
    return text.translate(_ESCAPES)


def policy(script: str, style: str, *, served: bool) -> str:
    """Return the Content-Security-Policy of a page with these texts."""
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_digest(script)}'",
        "style-src": f"'sha256-{_digest(style)}'",
        "img-src": "data: blob:",
        "media-src": "blob:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script() -> str:
    """Return the scripts as one function, so that they share names among them and with nothing else."""
    parts = "\n".join((_FOLDER / "js" / f"{name}.js").read_text() for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


@functools.cache
def _template() -> jinja2.Template:
    environment: jinja2.Environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
