"""Table of what happened to jobs on the cluster and what it cost, in Markdown.

DALLE2_SLURM_REPORT=events.jsonl python -m pytest tests/slurm -m "slow or not slow"
python tests/slurm/event_table.py events.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADER = ("event", "stage", "steps lost", "nodes free after", "first step after", "equal to the bit")


def table(strikes: list[dict[str, Any]]) -> str:
    """Return the table; of an event that was tried several times with a stage the worst counts."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for strike in strikes:
        key = strike["event"], strike["stage"]
        known = worst.setdefault(key, dict(strike))
        for figure in ("lost_steps", "freed_s", "first_step_s"):
            known[figure] = max((value for value in (known[figure], strike[figure]) if value is not None), default=None)
        known["equal"] = known["equal"] and strike["equal"]
    rows = [HEADER, ("---",) * len(HEADER)]
    for (event, stage), strike in worst.items():
        seconds = [
            "-" if strike[figure] is None else f"{strike[figure]:.1f} s" for figure in ("freed_s", "first_step_s")
        ]
        rows.append((event, stage, str(strike["lost_steps"]), *seconds, "yes" if strike["equal"] else "no"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
