"""Draws the plots of `variance.py` with matplotlib, in the plots' own environment: figures on stdin, files written.

python variance_plots.py FILE.svg|FILE.png ... < {"found": ..., "norms": ..., "steps": [...], "warmup": ...}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found]

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {
    "fixed": "#777777",
    "fixed_small": "#aaaaaa",
    "fixed_large": "#555555",
    "ours": "#0072b2",
    "residual": "#009e73",
    "old": "#d55e00",
    "old_channels": "#e69f00",
    "full_bound": "#cc79a7",
}
"""Distinguishable without red and green (Okabe & Ito 2008)."""
VARIANCES = [name for name in COLOURS if name != "fixed"]
TRAININGS = [name for name in COLOURS if not name.startswith("fixed_")]
MOST = 1000
"""Steps of the bound that is not in the name of its keys."""
GAINS = ["fixed_small", "ours", "residual"]


def label(name: str) -> str:
    """Name for people."""
    names = {"ours": "range", "old_channels": "old, right axis"}
    return names.get(name, name.replace("_", " "))


def draw(content: dict[str, Any]) -> Any:
    """Return the figure."""
    found, steps = content["found"], content["steps"]
    pyplot.rcParams.update({"font.size": 8, "axes.titlesize": 9, "svg.fonttype": "none"})
    figure, ((norms, spikes, bits), (gains, distance, error)) = pyplot.subplots(
        2, 3, figsize=(12, 6.6), layout="constrained"
    )
    for name in TRAININGS:
        norms.semilogy(content["norms"][name], color=COLOURS[name], label=label(name), linewidth=0.8)
    norms.axvline(content["warmup"], color="black", linewidth=0.5, linestyle=":")
    norms.set(title="Gradient norm, seed 0 (learned on top of fixed)", xlabel="step (dotted: end of the warm-up)")
    norms.legend(fontsize=6, ncols=2)

    places = range(len(TRAININGS))
    for key, shift, alpha in (("p99_over_median", -0.2, 0.5), ("max_over_median", 0.2, 1.0)):
        spikes.bar(
            [place + shift for place in places],
            [found[f"{key}_{name}"] for name in TRAININGS],
            0.4,
            yerr=[found[f"{key}_{name}_sd"] for name in TRAININGS],
            color=[COLOURS[name] for name in TRAININGS],
            alpha=alpha,
            ecolor="black",
            error_kw={"linewidth": 0.7},
        )
    spikes.axhline(10, color="black", linewidth=0.5, linestyle=":")
    spikes.set_yscale("log")
    spikes.set(title="Gradient norm over its median: p99 (pale), maximum")
    spikes.set_xticks(list(places), [label(name) for name in TRAININGS], rotation=20, ha="right")

    rows = range(len(VARIANCES))
    of_kl = [found[f"bpd_kl_{name}"] for name in VARIANCES]
    of_last = [found[f"bpd_t0_{name}"] for name in VARIANCES]
    colours = [COLOURS[name] for name in VARIANCES]
    bits.barh(rows, of_kl, color=colours)
    bits.barh(
        rows,
        of_last,
        left=of_kl,
        color=colours,
        alpha=0.5,
        xerr=[found[f"bpd_{name}_sd"] for name in VARIANCES],
        error_kw={"linewidth": 0.7},
    )
    for row, name in enumerate(VARIANCES):
        bits.text(found[f"bpd_{name}"], row, f"  {found[f'bpd_{name}']:.2f}", va="center")
    bits.margins(x=0.2)
    bits.set_yticks(list(rows), [label(name) for name in VARIANCES])
    bits.invert_yaxis()
    bits.set(title="Bits a dimension, 1000 steps: KL, t = 0 (pale)")

    for axis, key, title, names, counts in (
        (gains, "gain", "Bits saved over the large variance, same mean", GAINS, [*steps, MOST]),
        (distance, "frechet", "Fréchet distance of samples", VARIANCES, steps),
    ):
        for name in names:
            keys = [f"{key}_{name}" if count == MOST else f"{key}_{count}_{name}" for count in counts]
            axis.errorbar(
                counts,
                [found[key] for key in keys],
                yerr=[found[f"{key}_sd"] for key in keys],
                color=COLOURS[name],
                label=label(name),
                capsize=2,
                linewidth=1,
            )
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set(title=title, xlabel="ddpm steps")
        axis.legend(fontsize=6)
    if "finished_mean_mse" in found:
        for variance, colour in (("small", COLOURS["fixed_small"]), ("learned", "black")):
            infixes = [*(f"{count}_" for count in steps), ""]
            saved = [
                found[f"finished_bpd_{infix}large"] - found[f"finished_bpd_{infix}{variance}"] for infix in infixes
            ]
            gains.plot([*steps, MOST], saved, "--", color=colour, label=f"finished decoder, {variance}", linewidth=1)
        gains.legend(fontsize=6)
    gains.axhline(0, color=COLOURS["fixed_large"], linewidth=0.7, linestyle=":")

    error.bar(
        places,
        [found[f"mean_mse_{name}"] for name in TRAININGS],
        yerr=[found[f"mean_mse_{name}_sd"] for name in TRAININGS],
        color=[COLOURS[name] for name in TRAININGS],
        error_kw={"linewidth": 0.7},
    )
    error.set_xticks(list(places), [label(name) for name in TRAININGS], rotation=20, ha="right")
    error.set(title="Squared error of the mean, held-out windows")
    return figure


if __name__ == "__main__":
    drawn = draw(json.load(sys.stdin))
    for file in map(Path, sys.argv[1:]):
        drawn.savefig(file, dpi=90)
