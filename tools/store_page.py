"""Write the page of a finished store again: after an update of this program, or to a file for the mail.

    python tools/store_page.py ID_OR_FOLDER [--out FILE]

ID: of a preprocess run, as in `python tools/runs.py list`; FOLDER: the run's, its store's, or a store copied alone.
The page is written into the store, or to FILE, and says the same wherever it is made. Exit code 2: there is no such
store, or what the page shows of it cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from jinja2 import UndefinedError

from dalle2_video.data.store import PAGE_FILE, SHARDS_FILE, Store
from dalle2_video.data.store_page import contact_sheet, example_size, page
from experiments.files import write_atomic
from launch.console import print_error
from tools.verify_store import find_target

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/store_page.py", description="Write the page of a store again.")
    parser.add_argument("store", metavar="ID_OR_FOLDER", help="a preprocess run's id or folder, or a store's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"file to write (default: {PAGE_FILE} in the store)")
    options = parser.parse_args(arguments)
    try:
        store = Store(find_target(options.store).store)
        out = store.path / PAGE_FILE if options.out is None else options.out.absolute()
        if not out.parent.is_dir() or out.is_dir():
            raise ValueError(f"--out {out} must be a file in a folder that exists")
        write_atomic(out, page_of(store).encode())
    except (ValueError, OSError) as error:
        print_error(error)
        return USER_ERROR
    print(out)
    return 0


def page_of(store: Store) -> str:
    """Return the page as `join` wrote it. Raises ValueError or OSError where the store is damaged."""
    size = example_size(store.config)
    examples = contact_sheet(
        store.frames(size),
        np.minimum(store.num_frames, store.config.frames_at(size)),
        lambda row: (store.clip_id(row), store.captions_of(row)),
    )
    try:
        shards = json.loads((store.path / SHARDS_FILE).read_text()).values()
        shard_bytes = {
            size: sum(of_task[str(size)]["bytes"] for of_task in shards if str(size) in of_task)
            for size in store.config.frame_sizes
        }
        return page(store.statistics(), store.config, examples, store.bad_clips(), shard_bytes)
    except (KeyError, TypeError, AttributeError, UndefinedError) as error:
        raise ValueError(
            f"the statistics of {store.path} are damaged ({error}); run python tools/verify_store.py {store.path}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
