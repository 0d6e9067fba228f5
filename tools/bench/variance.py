"""Learned variance on captioned motion with the real decoder: is it stable, does it leave the mean alone, does it pay?

    python tools/bench/variance.py [--quick] [--json FILE] [--report FILE.html] [--png FILE.png]

For several seeds the decoder of recipe `tiny` learns from the same samples, noise and initial weights with a fixed
variance, with ours (`learned_variance` range and residual) and with two controls (`variance_old.py`): the setup that
failed, as it was (`old`) and with the output halved along the right axis (`old_channels`), and the whole bound without
a stop-gradient (`full_bound`). Bits a dimension and samples are of EMA weights, windows are held out, samples unguided.
Each training is a file: a bench that was killed goes on, and more --seeds add to what is there. Keys of the JSON, with
X one of ours (range), residual, fixed_small, fixed_large (both of the setup `fixed`), old, old_channels, full_bound:

    bpd_X                bound of 1000 steps, bits a dimension, of which bpd_t0_X the last step's and bpd_kl_X all
                         others'; bpd_old* with probabilities cut off at 1e-12 as that code has it, bpd_exact_old*
                         without, the least of the seeds; bpd_N_X: of 10, 25 and 50 steps; gain_X, gain_N_X: bits less
                         than with the large variance on the same mean
    spikes_X             share of steps after the warm-up whose gradient norm is over 10 times the median (fixed, not
                         fixed_*); p99_over_median_X, max_over_median_X, non_finite_X (steps): of the same norms
    mean_mse_X           squared error of the prediction; mean_change_X (X learned): relative change from fixed,
                         seed by seed; unclipped_difference_X: largest difference of a step's loss of the mean
                         from fixed in a training without clipping; clipped_X: share of steps beyond the limit
    frechet_N_X          distance of samples of N steps from held-out windows, see `variance_measures.Appearance`;
                         frechet_real: of other held-out windows
    colour_N_X, direction_N_X   share of samples whose colour, direction is that of the window they are conditioned on
    finished_...         of --decoder, by variance: small, large, learned
    ..._sd               standard deviation over the seeds
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from experiments.recipes import tiny
from tools.bench import variance_report
from tools.bench.peers import cache
from tools.bench.timing import BenchArguments
from tools.bench.variance_data import prepare
from tools.bench.variance_judging import (
    bound_calls,
    finished_calls,
    judge_bounds,
    judge_finished,
    judge_samples,
    sample_calls,
)
from tools.bench.variance_measures import PARTS, gradient_figures
from tools.bench.variance_runs import INERT, SETUPS, TRAINED_STEPS, Amounts, Bench

QUICK = Amounts(
    clips=48,
    clip_steps=5,
    dim=8,
    steps=26,
    unclipped_steps=6,
    batch=4,
    bound_windows=4,
    bound_terms=8,
    sampled=8,
    sample_steps=(10,),
    seeds=2,
)
TRAININGS = {
    "fixed": "fixed", "ours": "range", "residual": "residual", "old": "old",
    "old_channels": "old_channels", "full_bound": "full_bound",
}  # fmt: skip
"""Name in the JSON to setup."""
VARIANCES = {
    "fixed_small": ("fixed", "small"), "fixed_large": ("fixed", "large"), "ours": ("range", "learned"),
    "residual": ("residual", "learned"), "old": ("old", "learned"),
    "old_channels": ("old_channels", "learned"), "full_bound": ("full_bound", "learned"),
}  # fmt: skip
"""Name in the JSON to setup and the variance that its mean is judged with."""
Shown = tuple[str, list[str], list[list[str]]]
"""Title, column names and rows of a table."""
Work = Callable[[str, int, Path, Callable[[], None]], None]
Kept = dict[tuple[str, int], dict[str, Any]]
"""What each setup and seed left."""


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments, Amounts):
    """Compare learned variances; --quick replaces the amounts by tiny ones, which prove nothing."""

    store: Path | None = None
    """Store with frames of 16 px instead of sample data; its clips must be captioned motion."""
    decoder: Path | None = None
    """Run folder of a finished decoder of captioned motion with learned variance, to be judged too: trained for longer
    than the bench's own."""
    folder: Path | None = None
    """Where trainings are kept; default: in the user's cache."""
    report: Path | None = None
    """File for the report with plots, one HTML file."""
    png: Path | None = None
    """File for the plots as a picture."""

    def amounts(self) -> Amounts:
        """Return how much is trained and measured."""
        return QUICK if self.quick else Amounts(**{field.name: getattr(self, field.name) for field in fields(Amounts)})


def carry_out(arguments: Arguments) -> Kept:
    """Train and judge what is missing, and return all of it."""
    amounts, recipe = arguments.amounts(), tiny.recipe()
    folder = arguments.folder or cache() / "variance"
    store = arguments.store and arguments.store.resolve()
    key = hashlib.sha256(json.dumps([asdict(replace(amounts, seeds=0)), str(store)]).encode()).hexdigest()[:10]
    runs = folder / f"trainings-{key}"
    runs.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in range(amounts.seeds) for name in SETUPS]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("data", total=100)
        material = prepare(
            folder,
            recipe,
            clips=amounts.clips,
            clip_steps=amounts.clip_steps,
            store=store,
            on_progress=lambda share: bar.update(task, completed=int(100 * share)),
        )
        decoder = replace(recipe.decoder, unet=replace(recipe.decoder.unet, dim=amounts.dim))
        bench = Bench(decoder, material, amounts)

        def parts(name: str) -> dict[str, tuple[Work, int]]:
            """Return what is done, how, and its length on the bar."""
            found: dict[str, tuple[Work, int]] = {
                "trained": (bench.train, amounts.steps),
                "bounds": (partial(judge_bounds, bench), bound_calls(amounts)),
                "samples": (partial(judge_samples, bench), sample_calls(name, amounts)),
            }
            return found | ({"unclipped": (bench.train_unclipped, amounts.unclipped_steps)} if name in INERT else {})

        bar.reset(task, total=sum(length for name, _ in jobs for _, length in parts(name).values()))
        kept: Kept = {}
        for name, seed in jobs:
            bar.update(task, description=f"{name}, seed {seed}")
            kept[name, seed] = {}
            for what, (work, length) in parts(name).items():
                file = runs / f"{name}-{seed}.{what}.json"
                if file.is_file():
                    bar.advance(task, length)
                else:
                    work(name, seed, runs, lambda: bar.advance(task))
                kept[name, seed] |= json.loads(file.read_text())
        if arguments.decoder is not None:
            run = arguments.decoder.resolve()
            file = runs / f"decoder-{run.name}.json"
            if not file.is_file():
                bar.reset(task, total=finished_calls(amounts), description=run.name)
                judge_finished(run, amounts, file, lambda: bar.advance(task))
            kept["finished", 0] = json.loads(file.read_text())
    return kept


def figures(kept: Kept, seeds: int, warmup: int, limit: float) -> dict[str, float]:
    """Return the flat object of `--json`; limit: on the gradient norm."""
    found: dict[str, float] = {"seeds": float(seeds)}

    def put(key: str, values: list[float]) -> None:
        found[key] = statistics.fmean(values)
        found[f"{key}_sd"] = statistics.stdev(values)

    for name, setup in TRAININGS.items():
        runs = [kept[setup, seed] for seed in range(seeds)]
        norms = [run["norm"][warmup:] for run in runs]
        for key in ("spikes", "p99_over_median", "max_over_median", "non_finite"):
            put(f"{key}_{name}", [gradient_figures(of_run)[key] for of_run in norms])
        put(f"clipped_{name}", [sum(norm > limit for norm in of_run) / len(of_run) for of_run in norms])
        put(f"mean_mse_{name}", [run["mean_mse"] for run in runs])
        if setup in INERT[1:]:
            fixed = [kept["fixed", seed] for seed in range(seeds)]
            pairs = list(zip(runs, fixed, strict=True))
            put(f"mean_change_{name}", [run["mean_mse"] / of_fixed["mean_mse"] - 1 for run, of_fixed in pairs])
            found[f"unclipped_difference_{name}"] = max(
                abs(mine - theirs)
                for run, of_fixed in pairs
                for mine, theirs in zip(run["unclipped_mean_loss"], of_fixed["unclipped_mean_loss"], strict=True)
            )
    for name, (setup, variance) in VARIANCES.items():
        runs = [kept[setup, seed] for seed in range(seeds)]
        for steps in runs[0]["bounds"]:
            of_steps = "" if steps == str(TRAINED_STEPS) else f"{steps}_"
            parts = [run["bounds"][steps][variance] for run in runs]
            totals = [sum(part[key] for key in PARTS) for part in parts]
            put(f"bpd_{of_steps}{name}", totals)
            if name != "fixed_large":
                large = [run["bounds"][steps]["large"] for run in runs]
                gains = [sum(of[key] for key in PARTS) - mine for of, mine in zip(large, totals, strict=True)]
                put(f"gain_{of_steps}{name}", gains)
            if not of_steps:
                put(f"bpd_t0_{name}", [part["last"] for part in parts])
                put(f"bpd_kl_{name}", [part["steps"] for part in parts])
                found["bpd_prior"] = statistics.fmean(part["prior"] for part in parts)
                if "exact" in runs[0]["bounds"][steps]:
                    exact = [sum(run["bounds"][steps]["exact"][key] for key in PARTS) for run in runs]
                    # in fp32 it may be infinite, for which JSON has no number
                    found[f"bpd_exact_{name}"] = min([*exact, sys.float_info.max])
        for key in runs[0]["samples"]:
            if key.startswith(f"{variance} "):
                steps = key.split()[1]
                for figure in ("frechet", "colour", "direction"):
                    put(f"{figure}_{steps}_{name}", [run["samples"][key][figure] for run in runs])
    found["frechet_real"] = kept["fixed", 0]["samples"]["real"]["frechet"]
    if ("finished", 0) in kept:
        found |= _finished(kept["finished", 0])
    return found


def _finished(of_run: dict[str, Any]) -> dict[str, float]:
    found = {"finished_mean_mse": of_run["mean_mse"], "finished_frechet_real": of_run["samples"]["real"]["frechet"]}
    for steps, by_variance in of_run["bounds"].items():
        of_steps = "" if steps == str(TRAINED_STEPS) else f"{steps}_"
        for variance, parts in by_variance.items():
            found[f"finished_bpd_{of_steps}{variance}"] = sum(parts[key] for key in PARTS)
            if not of_steps:
                found[f"finished_bpd_t0_{variance}"] = parts["last"]
    for key, measured in of_run["samples"].items():
        if key != "real":
            variance, steps = key.split()
            found |= {f"finished_{figure}_{steps}_{variance}": value for figure, value in measured.items()}
    return found


def tables(found: dict[str, float], sample_steps: tuple[int, ...]) -> list[Shown]:
    """Return title, column names and rows of what people read; a cell is mean ± standard deviation over seeds."""

    def cell(key: str, digits: int) -> str:
        return f"{found[key]:.{digits}f} ± {found[f'{key}_sd']:.{digits}f}"

    training = [
        [
            name,
            *(f"{found[f'{key}_{name}']:.2f}" for key in ("p99_over_median", "max_over_median")),
            *(f"{found[f'{key}_{name}']:.2%}" for key in ("spikes", "clipped")),
            f"{found[f'non_finite_{name}']:.1f}",
            cell(f"mean_mse_{name}", 4),
        ]
        for name in TRAININGS
    ]
    bits = [
        [
            name,
            *(cell(f"bpd_{n}_{name}", 2) for n in sample_steps),
            *(cell(f"bpd_{part}{name}", 2) for part in ("", "t0_", "kl_")),
        ]
        for name in VARIANCES
    ]
    samples = [
        [
            name,
            *(cell(f"frechet_{n}_{name}", 2) for n in sample_steps),
            *(f"{found[f'{figure}_{n}_{name}']:.0%}" for figure in ("colour", "direction") for n in sample_steps[-1:]),
        ]
        for name in VARIANCES
    ]
    of_steps = [f"{n} steps" for n in sample_steps]
    last = of_steps[-1]
    return [
        (
            "Gradient norms after the warm-up, and the mean",
            ["setup", "p99 / median", "max / median", "spikes > 10 x", "clipped", "not finite", "error of the mean"],
            training,
        ),
        (
            f"Bits a dimension by ddpm steps (prior term {found['bpd_prior']:.4f})",
            ["variance", *of_steps, f"{TRAINED_STEPS} steps", "of it t = 0", "of it KL"],
            bits,
        ),
        (
            f"Fréchet distance of appearance (real windows {found['frechet_real']:.2f}), agreement with the condition",
            ["variance", *of_steps, f"colour, {last}", f"direction, {last}"],
            samples,
        ),
        *([_finished_table(found, sample_steps)] if "finished_mean_mse" in found else []),
    ]


def _finished_table(found: dict[str, float], sample_steps: tuple[int, ...]) -> Shown:
    error, real = found["finished_mean_mse"], found["finished_frechet_real"]
    keys = [*(f"finished_bpd_{n}_" for n in sample_steps), "finished_bpd_", "finished_bpd_t0_"]
    keys += [f"finished_frechet_{n}_" for n in sample_steps]
    columns = ["variance", *(f"bits, {n} steps" for n in (*sample_steps, TRAINED_STEPS)), "of it t = 0"]
    return (
        f"The finished decoder, one run: error of the mean {error:.4f}, Fréchet distance of real windows {real:.2f}",
        [*columns, *(f"Fréchet, {n} steps" for n in sample_steps)],
        [[name, *(f"{found[key + name]:.2f}" for key in keys)] for name in ("small", "large", "learned")],
    )


def main(arguments: Arguments) -> None:
    """Train, judge, print and publish. Raises ValueError with a remedy."""
    optim, amounts = tiny.recipe().decoder.optim, arguments.amounts()
    if amounts.seeds < 2:
        raise ValueError(f"--seeds {amounts.seeds}: must be 2 or more, or there is no spread")
    if amounts.steps <= optim.warmup_steps:
        raise ValueError(f"--steps {amounts.steps}: must be more than the warm-up's {optim.warmup_steps}")
    torch.set_num_threads(1)
    kept = carry_out(arguments)
    found = figures(kept, amounts.seeds, optim.warmup_steps, optim.max_grad_norm)
    console = Console()
    for title, columns, rows in (shown := tables(found, amounts.sample_steps)):
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for name in ("ours", "residual"):
        console.print(
            f"{name}: error of the mean against fixed {found[f'mean_change_{name}']:+.2%} ± "
            f"{found[f'mean_change_{name}_sd']:.2%}; without clipping the losses of the mean differ by at most "
            f"{found[f'unclipped_difference_{name}']:g}",
            highlight=False,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.report is not None or arguments.png is not None:
        norms = {name: kept[setup, 0]["norm"] for name, setup in TRAININGS.items()}
        variance_report.write(arguments.report, arguments.png, amounts, found, shown, norms)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
