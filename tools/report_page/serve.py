"""The report as a live page for a browser on this machine.

It listens on 127.0.0.1 alone, answers three kinds of addresses and no others, and only below a name that is drawn anew
at each start: on a login node other people share the machine, and a page on the web must not get at it either.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tools.report_page.reading import Reader, Report
from tools.report_page.render import page

EVERY_S = 5.0
ADDRESS = "127.0.0.1"
HTML, JSON = "text/html; charset=utf-8", "application/json; charset=utf-8"


class LiveReport:
    """The newest report, read anew when somebody asks and the last one is old."""

    def __init__(self, reader: Reader, every_s: float) -> None:
        """every_s: seconds, 1 or more, for which a report counts as new. Raises ValueError otherwise."""
        if not every_s >= 1:
            raise ValueError(f"--every {every_s:g} must be 1 or more seconds")
        self.reader, self.every_s = reader, every_s
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._read_at = 0.0

    def report(self) -> Report:
        """Return it. Raises ValueError or OSError where the registry cannot be read."""
        with self._lock:
            if self._report is None or time.monotonic() - self._read_at > self.every_s / 2:
                self._report = self.reader.read()
                self._read_at = time.monotonic()
            return self._report

    def answer(self, path: str) -> tuple[str, str] | None:
        """Return type and text of what lies at a path below the drawn name; None: nothing does."""
        report = self.report()
        if path == "":
            return HTML, page(report, every_s=self.every_s)
        if path == "index":
            return JSON, json.dumps(report.index, ensure_ascii=False, allow_nan=False)
        kind, _, one = path.partition("/")
        text = report.details.get(unquote(one)) if kind == "run" else None
        return None if text is None else (JSON, text)


def make_server(reader: Reader, port: int, *, every_s: float) -> tuple[ThreadingHTTPServer, str]:
    """Return a server that is not running yet, and the address to open.

    port: 0 for one that is free. Raises ValueError where it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must be 1 to 65535")
    live, name = LiveReport(reader, every_s), secrets.token_urlsafe(16)
    live.report()  # an error is told here and now

    class Handler(_Handler):
        pass

    Handler.live, Handler.prefix = live, f"/{name}/"
    try:
        server = ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise ValueError(f"--port {port} is not to be had ({error.strerror}); leave it out for a free one") from error
    server.daemon_threads = True
    return server, f"http://{ADDRESS}:{server.server_port}/{name}/"


def serve(reader: Reader, port: int, *, every_s: float) -> int:
    """Serve until Ctrl-C; return the exit code."""
    server, address = make_server(reader, port, every_s=every_s)
    port = server.server_port
    print(f"{address}\nfrom another machine first: ssh -L {port}:{ADDRESS}:{port} HOST; Ctrl-C ends it", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


class _Handler(BaseHTTPRequestHandler):
    live: LiveReport
    prefix: str

    def do_GET(self) -> None:
        """Answer what the page asks for."""
        # A name on the web that was pointed at this machine comes with its own name as Host.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (ADDRESS, "localhost") or not self.path.startswith(self.prefix):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "not found\n")
            return
        try:
            found = self.live.answer(self.path.removeprefix(self.prefix))
        except (ValueError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", f"{error}\n")
            return
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "not found\n")
        else:
            self._send(HTTPStatus.OK, *found)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Frame-Options": "DENY",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address holds the drawn name."""
