"""`--notify`: each event is told once, by real mail and a real POST; nothing is raised, no secret is written down."""

from __future__ import annotations

import json
import logging
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from registry_fixtures import make_spec

from experiments.registry import Registry
from experiments.run import Run
from launch.arguments import parse
from launch.stages import STAGES
from slurm import attempt, delivery, notify

SECRET = "T0PSECRET"


class Hook(BaseHTTPRequestHandler):
    """A chat server's webhook; `/moved` sends elsewhere, `/broken` fails."""

    received: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, self.headers["Content-Type"], body))
        code = 500 if "broken" in self.path else 302 if "moved" in self.path else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 - what a redirection makes of it

    def log_message(self, *_: object) -> None:
        pass


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as a mail takes."""

    received: list[tuple[list[str], str]]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        said: list[str] = []
        while line := self.rfile.readline().decode().strip():
            said.append(line)
            verb = line.split()[0].upper()
            if verb == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (text := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                    lines.append(text)
                self.received.append((said, "\n".join(lines)))
            self.wfile.write(b"221 bye\r\n" if verb == "QUIT" else b"250 fine\r\n")
            if verb == "QUIT":
                return


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, bytes]]]:
    received: list[tuple[str, str, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hook,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(delivery.WEBHOOK_VARIABLE, f"http://127.0.0.1:{server.server_port}/{SECRET}")
    yield received
    server.shutdown()
    server.server_close()


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[str], str]]]:
    received: list[tuple[list[str], str]] = []
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Here", (Mailbox,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(delivery.SMTP_VARIABLE, f"127.0.0.1:{server.server_address[1]}")
    yield received
    server.shutdown()
    server.server_close()


def make(registry: Registry, *targets: str, recipe: str = "tiny") -> Run:
    run = registry.create(make_spec(recipe=recipe))
    run.claim_intent(1, {"launcher": {}, "groups": [[]], "training": True, "placement": {"notify": list(targets)}})
    return run


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(delivery.WEBHOOK_VARIABLE, raising=False)
    monkeypatch.delenv(delivery.SMTP_VARIABLE, raising=False)
    return Registry(tmp_path / "home")


def test_a_webhook_gets_json_as_slack_and_mattermost_take_it(
    registry: Registry, hook: list[tuple[str, str, bytes]]
) -> None:
    run = make(registry, "webhook")
    assert notify.try_tell(run, "hang", "rank 1 hangs in <step 3> & waits", occasion="attempt-0003")
    ((path, kind, body),) = hook
    assert (path, kind) == (f"/{SECRET}", "application/json")
    said = json.loads(body)
    assert list(said) == ["text"]
    assert said["text"].startswith("clip/tiny-0123456789 hangs.\nrank 1 hangs in &lt;step 3&gt; &amp; waits\n")
    assert "python tools/runs.py why 0123456789" in said["text"]


def test_mail_goes_to_each_address_and_a_name_makes_no_header(
    registry: Registry, mailbox: list[tuple[list[str], str]]
) -> None:
    run = make(registry, "me@group.org", "you@group.org")
    assert delivery.send(["me@group.org"], "a name\nBcc: all@group.org\r\n\r\nspam", "text\n.\nafter the dot") == {}
    ((said, text),) = mailbox
    head, _, body = text.partition("\n\n")
    assert "Subject: [DALLE2-video] a name Bcc: all@group.org" in head and "\nBcc" not in head
    assert [line for line in said if line.lower().startswith("rcpt")] == ["rcpt TO:<me@group.org>"]
    assert body.splitlines()[-1] == "after the dot"
    mailbox.clear()
    assert notify.try_tell(run, "done")
    assert sorted(text.partition("To: ")[2].split("\n")[0] for _, text in mailbox) == ["me@group.org", "you@group.org"]
    assert all("clip/tiny-0123456789: done" in text for _, text in mailbox)


def test_an_event_is_told_once_by_whoever_is_first(registry: Registry, hook: list[tuple[str, str, bytes]]) -> None:
    run = make(registry, "webhook")
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: notify.try_tell(Run(run.folder), "done"), range(16)))
    assert told.count(True) == 1 and len(hook) == 1
    assert notify.try_tell(run, "hang", occasion="attempt-0001") and notify.try_tell(
        run, "hang", occasion="attempt-0002"
    )
    assert len(hook) == 3


def test_the_address_is_in_no_file_and_no_log(
    registry: Registry,
    hook: list[tuple[str, str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = make(registry, "webhook")
    good = os.environ[delivery.WEBHOOK_VARIABLE]
    broken = (f"{good}/broken", f"{good}/moved", f"http://127.0.0.1:1/{SECRET}", f"http://[{SECRET}", f"ftp://{SECRET}",
              f"http://no-such-host.invalid/{SECRET}", f"http://127.0.0.1:{SECRET}/")  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        for number, url in enumerate(broken):
            monkeypatch.setenv(delivery.WEBHOOK_VARIABLE, url)
            assert not notify.try_tell(run, "hang", occasion=str(number))
    warnings = [record.getMessage() for record in caplog.records if record.name == notify.log.name]
    assert len(warnings) == len(broken) and "the server answered 500" in warnings[0]
    assert [path for path, _, _ in hook if "elsewhere" in path] == []
    assert SECRET not in caplog.text
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert written and all(SECRET.encode() not in path.read_bytes() for path in written)


def test_what_a_node_could_not_send_is_sent_once_more_elsewhere(
    registry: Registry, hook: list[tuple[str, str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, good = make(registry, "webhook"), os.environ[delivery.WEBHOOK_VARIABLE]
    monkeypatch.setenv(delivery.WEBHOOK_VARIABLE, "http://127.0.0.1:1/")
    assert not notify.try_tell(run, "done") and notify.unsent(run) == ["done"]
    monkeypatch.setenv(delivery.WEBHOOK_VARIABLE, good)
    assert notify.try_again(run) == ["done"] and len(hook) == 1
    assert notify.try_again(run) == [] and notify.unsent(run) == [] and len(hook) == 1


def test_what_does_not_answer_holds_nobody_up_for_long(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.3)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv(delivery.WEBHOOK_VARIABLE, f"http://127.0.0.1:{silent.server_address[1]}/")
        monkeypatch.setenv(delivery.SMTP_VARIABLE, f"127.0.0.1:{silent.server_address[1]}")
        began_s = time.monotonic()
        assert not notify.try_tell(make(registry, "webhook", "me@group.org"), "done")
        assert time.monotonic() - began_s < 5
    assert "could not be told to me@group.org" in caplog.text and "could not be told to webhook" in caplog.text


def test_nothing_is_raised_whatever_is_wrong(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    run = make(registry, "me@group.org")
    (run.folder / "intent/0001.json").write_text("{")
    assert not notify.try_tell(run, "done")
    notify.try_tell_poisoned(run)
    assert caplog.text.count("WARNING") == 2
    (run.folder / "intent/0001.json").unlink()
    assert not notify.try_tell(run, "done")


def test_nobody_named_nobody_told(registry: Registry) -> None:
    run = make(registry)
    assert not notify.try_tell(run, "done") and not (run.folder / notify.FOLDER).exists()


def test_poison_is_told_once_a_launch(registry: Registry, hook: list[tuple[str, str, bytes]]) -> None:
    run = make(registry, "webhook")
    for _ in range(4):
        notify.try_tell_poisoned(run)
        run.claim_attempt({"intent": 1, "group": 0}).end("error", message="the same again")
    notify.try_tell_poisoned(run)
    ((_, _, body),) = hook
    assert "3 attempts in a row failed without a new commit; the last: the same again" in json.loads(body)["text"]


def test_sendmail_gets_the_mail_where_no_server_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat > {tmp_path}/mail\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    delivery.check(["me@group.org"])
    assert notify.try_tell(make(registry, "me@group.org"), "done")
    assert (tmp_path / "asked").read_text() == "-i -- me@group.org\n"
    assert "Subject: [DALLE2-video] clip/tiny-0123456789: done" in (tmp_path / "mail").read_text()
    program.write_text("#!/bin/sh\nexit 75\n")
    assert delivery.send(["me@group.org"], "s", "t") == {"me@group.org": "OSError"}


def secret_file(mode: int, text: str = f"https://chat.example.org/{SECRET}\n") -> Path:
    path = delivery.webhook_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_address_may_lie_in_a_file_that_only_its_user_reads(registry: Registry) -> None:
    secret_file(0o600)
    delivery.check(["webhook"])
    for mode in (0o640, 0o604, 0o660):
        with pytest.raises(ValueError, match=r"others may read .* chmod 600"):
            secret_file(mode)
            delivery.check(["webhook"])
    secret_file(0o600, "not an address")
    with pytest.raises(ValueError, match="no address that begins with https") as refused:
        delivery.check(["webhook"])
    assert "not an address" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("webhook", r"no address is known; write it into .*/dalle2_video/webhook and chmod 600"),
        ("me", "neither a mail address such as me@group.org nor `webhook`"),
        ("me@group.org, you@group.org", "neither a mail address"),
        ("-fme@group.org", "neither a mail address"),
        ("me@group.org\nBcc: you@group.org", "neither a mail address"),
        ("https://chat.example.org", "neither a mail address"),
        ("me@group.org", r"this machine has no `sendmail`.*export DALLE2_VIDEO_SMTP=HOST"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused_with_the_remedy(
    target: str, said: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_sendmail", lambda: None)
    with pytest.raises(ValueError, match=said):
        delivery.check([target])


def test_a_launcher_refuses_before_anything_is_made(registry: Registry) -> None:
    with pytest.raises(ValueError, match="no address is known"):
        parse(STAGES["preprocess"], ["--notify", "webhook"])


def test_a_mail_server_that_is_none_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(delivery.SMTP_VARIABLE, "smtp://host:port")
    with pytest.raises(ValueError, match="DALLE2_VIDEO_SMTP=smtp://host:port is not HOST or HOST:PORT"):
        delivery.check(["me@group.org"])


def test_an_error_that_poisons_is_told_by_whoever_records_it(
    registry: Registry, hook: list[tuple[str, str, bytes]]
) -> None:
    run = make(registry, "webhook")
    for number in range(3):
        assert len(hook) == 0
        try:
            raise RuntimeError(f"failure {number}")
        except RuntimeError as error:
            attempt.record_failure(run.claim_attempt({"intent": 1, "group": 0}), error)
    ((_, _, body),) = hook
    assert "is poisoned.\n3 attempts in a row" in json.loads(body)["text"] and "failure 2" in json.loads(body)["text"]


def test_a_hang_is_told_once_for_all_its_ranks(
    registry: Registry, hook: list[tuple[str, str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dalle2_video.training.watchdog import Hang
    from slurm import training_job

    run = make(registry, "webhook")
    (run.folder / "logs").mkdir()
    stuck = run.claim_attempt({"intent": 1, "group": 0})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(training_job, "HANGS_HEARD_S", 0.1)
        hang = Hang(phase="step 3", step=3, seconds=9.0, limit_s=5.0, in_collective=False, place="here", stack="stack")
        training_job._record_hang(stuck, hang)
    ((_, _, body),) = hook
    assert "hangs.\n" in json.loads(body)["text"] and "step 3" in json.loads(body)["text"]
