"""A small W&B server on this machine, which speaks as much of the protocol as wandb needs to send and resume runs.

It keeps what real clients sent: so tests see what would be drawn, and wandb's own code runs from end to end.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StoredRun:
    """One run as the server knows it."""

    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows by line number."""
    summary: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)
    """What the client said when it first opened the run."""
    preempting: bool = False
    exit_codes: list[int] = field(default_factory=list)

    def points(self, split: str) -> list[tuple[int, float]]:
        """Return the drawn (step, loss) of a split, in the order they came."""
        rows = [row for _, row in sorted(self.history.items()) if f"{split}/loss" in row]
        return [(row["train/step"], row[f"{split}/loss"]) for row in rows]


class Server:
    """The running server's memory."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, StoredRun] = {}
        self.projects: set[tuple[str, str]] = set()

    def answer(self, query: str, told: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        project = {"id": "p", "name": told.get("project"), "entity": {"id": "e", "name": told.get("entity") or "me"}}
        match operation and operation[1]:
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus":
                return {"model": project | {"bucket": self._bucket(told["name"])}}
            case "UpsertBucket":
                run = self.runs.setdefault(told["name"], StoredRun())
                run.opened = run.opened or told
                self.projects.add((told.get("entity") or "me", told["project"]))
                bucket = {"id": "b", "name": told["name"], "displayName": told["displayName"], "config": "{}"}
                lines = {"project": project, "historyLineCount": len(run.history)}
                return {"upsertBucket": {"bucket": bucket | lines, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in told["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        run = self.runs[name]
        tail = [json.dumps(row) for _, row in sorted(run.history.items())][-1:]
        return {
            "id": "b", "name": name, "displayName": name, "summaryMetrics": json.dumps(run.summary), "config": "{}",
            "logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0,
            "historyTail": json.dumps(tail), "eventsTail": "[]", "tags": [], "notes": "", "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def stream(self, name: str, body: dict[str, Any]) -> None:
        run = self.runs[name]
        files = body.get("files") or {}
        rows = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        run.history |= {rows["offset"] + place: json.loads(line) for place, line in enumerate(rows["content"])}
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        run.preempting |= body.get("preempting", False)
        if body.get("complete"):
            run.exit_codes.append(body.get("exitcode", 0))


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            if self.path.endswith("/graphql"):
                body = json.loads(content)
                self._reply({"data": server.answer(body["query"], body.get("variables") or {})})
                return
            if match := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.stream(match[1], json.loads(content))
            self._reply({})

        def do_PUT(self) -> None:
            self.do_POST()

        def _reply(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
