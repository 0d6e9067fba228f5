"""What is in a data set's store, from the files that preprocessing left: numbers, distributions, what was left out."""

from __future__ import annotations

from typing import Any

from experiments import files
from experiments.run import Run
from launch.array_progress import ArrayWatch

MOST_BAD = 500


def store(run: Run) -> dict[str, Any] | None:
    """Return the statistics and the bad clips of a preprocessing, of one at work the bad clips so far.

    None where it was never launched. Raises ValueError where a file is damaged.
    """
    statistics = files.read_json(run.folder / "store/statistics.json")
    bad = files.read_json(run.folder / "store/bad_clips.json")
    if bad is None:
        look = ArrayWatch(run).look()
        bad = None if look is None else look.bad
    if statistics is None and bad is None:
        return None
    statistics, bad = statistics or {}, bad or {}
    facts = [[name, value] for name, value in statistics.items() if isinstance(value, (int, float)) and name != "bad"]
    facts += [
        [f"{name} / {key}", value]
        for name in ("identities", "shortest", "short_clips", "joined_tokens", "frames_by_size")
        for key, value in (statistics.get(name) or {}).items()
    ]
    return {
        "facts": facts,
        "histograms": statistics.get("histograms") or {},
        "counts": {
            name: counts for name in ("frame_rates", "resolutions", "captions", "bad_reasons")
            if (counts := statistics.get(name))
        },
        "notes": statistics.get("notes") or [],
        "bad": {"of": len(bad), "shown": [[clip, bad[clip]] for clip in sorted(bad)[:MOST_BAD]]},
    }  # fmt: skip
