"""The report of `variance.py`: tables and plots in one HTML file without scripts or network, and the plots as a PNG.

matplotlib is installed into an environment of its own (`variance_requirements.txt`), never into the product's.
"""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from experiments.recipes import tiny
from tools.bench.peers import PeersMissing, peers_python
from tools.bench.variance_runs import Amounts

_HERE = Path(__file__).resolve().parent
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Learned variance</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em }
table { border-collapse: collapse; margin: 0 0 2em; display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
figure { background: white; margin: 1em 0; overflow-x: auto } svg { max-width: 100%; height: auto }
</style>
<h1>Learned variance on captioned motion, with the real decoder</h1>
<p>{{ seeds }} seeds a setup; ± is the standard deviation over seeds. Budget: {{ amounts }}. {{ machine }}.</p>
<p>ours and residual: the product's <code>learned_variance</code> range and residual. fixed small and large: fixed
variances on the mean of the setup fixed. old: the setup that failed (floor log(1e-20), no limits of the share, weight
0.001, shared trunk, output halved along the frames), its probabilities cut off at 1e-12 as that code has it; old
channels: the same, halved along the channels. full bound: the whole bound without a stop-gradient.</p>
<figure>{{ svg }}</figure>
{% for title, columns, rows in tables %}
<h2>{{ title }}</h2>
<table><tr>{% for name in columns %}<th scope="col">{{ name }}{% endfor %}
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}
{% endfor %}</table>
{% endfor %}
</html>
"""


def write(
    page: Path | None,
    png: Path | None,
    amounts: Amounts,
    found: dict[str, float],
    tables: list[tuple[str, list[str], list[list[str]]]],
    norms: dict[str, list[float]],
) -> None:
    """Write the page and the picture as far as they are wanted.

    norms: a training's gradient norms by setup. Raises ValueError where matplotlib cannot be installed.
    """
    try:
        python = peers_python("variance_requirements.txt")
    except PeersMissing as error:
        raise ValueError(f"--report and --png need matplotlib: {error}") from error
    content = {
        "found": found,
        "norms": norms,
        "steps": amounts.sample_steps,
        "warmup": tiny.recipe().decoder.optim.warmup_steps,
    }
    with tempfile.TemporaryDirectory() as scratch:
        svg, picture = Path(scratch) / "plots.svg", Path(scratch) / "plots.png"
        subprocess.run(
            [python, _HERE / "variance_plots.py", svg, picture], input=json.dumps(content), text=True, check=True
        )
        if png is not None:
            # a third of the bytes, with no difference to be seen
            Image.open(picture).convert("RGB").quantize(128).save(png, optimize=True)
        if page is not None:
            drawn = svg.read_text()
            text = (
                jinja2.Environment(autoescape=True)
                .from_string(_PAGE)
                .render(
                    seeds=int(found["seeds"]),
                    amounts=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(amounts).items()),
                    machine=f"{platform.machine()}, Python {platform.python_version()}, one thread",
                    svg=Markup(drawn[drawn.index("<svg") :]),
                    tables=tables,
                )
            )
            page.write_text(text)
