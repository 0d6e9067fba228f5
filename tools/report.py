"""One HTML file that shows runs: curves, attempts, clips, evaluations, data, settings, lineage. It needs no network.

    python tools/report.py                       the whole registry, into report.html
    python tools/report.py ID [ID ...]           these runs with all that they were made from and what was made of them
    python tools/report.py ID --alone            a run by itself
    python tools/report.py --out FILE            another file: mail it, copy it, open it anywhere
    python tools/report.py [ID ...] --serve      a live page on this machine alone, at the address that is printed

ID: the run's id, its folder's name or the start of either. Only reads. Exit code 2: an error of the user.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.files import write_atomic
from experiments.registry import Registry, default_home
from launch.console import print_error
from tools.report_page import serve
from tools.report_page.reading import MOST_CLIPS, Reader
from tools.report_page.render import page
from tools.report_page.selection import NEWEST, Selection

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        reader = Reader(
            registry=Registry(default_home()),
            selection=Selection(named=options.runs, alone=options.alone, newest=options.newest),
            most_clips=options.clips,
            show_progress=sys.stderr.isatty() and not options.serve,
        )
        if options.serve:
            return serve.serve(reader, options.port, every_s=options.every)
        out = (options.out or _default_file(options.runs)).absolute()
        if not out.parent.is_dir() or out.is_dir():
            raise ValueError(f"--out {out} must be a file in a folder that exists")
        write_atomic(out, page(reader.read()).encode())
    except (ValueError, OSError) as error:
        print_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    print(out)
    return 0


def _default_file(runs: Sequence[str]) -> Path:
    names = [name.rpartition("/")[2] for name in runs[:1]]
    return Path("-".join(["report", *names]) + ".html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/report.py", description="Show runs in one HTML file.")
    parser.add_argument(
        "runs", nargs="*", metavar="ID", help="a run's id, its folder's name or the start of either (default: all runs)"
    )
    parser.add_argument("--alone", action="store_true", help="leave out what the runs were made from, and made of them")
    parser.add_argument(
        "--newest",
        type=int,
        default=NEWEST,
        metavar="N",
        help=f"most runs of a registry, 1 or more (default: {NEWEST})",
    )
    parser.add_argument(
        "--clips", type=int, default=MOST_CLIPS, metavar="N",
        help=f"generated clips of a run that go into the page, 0 or more (default: {MOST_CLIPS})",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: report.html, report-ID.html)")
    where.add_argument("--serve", action="store_true", help="show a live page on 127.0.0.1 until Ctrl-C")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="of --serve, 1 to 65535 (default: one that is free)"
    )
    parser.add_argument(
        "--every", type=float, default=serve.EVERY_S, metavar="SECONDS",
        help=f"how often the page of --serve asks for news, 1 or more (default: {serve.EVERY_S:g})",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
