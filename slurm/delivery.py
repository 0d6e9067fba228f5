"""Handing a message to mail and to a webhook: within a few seconds or not at all, and never with the webhook's address.

A webhook's address is a secret: it is read where and when it is used, from DALLE2_VIDEO_WEBHOOK or a file that only
its user may read, and is in no run file, job script, log or message.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WEBHOOK = "webhook"
WEBHOOK_VARIABLE = "DALLE2_VIDEO_WEBHOOK"
SMTP_VARIABLE = "DALLE2_VIDEO_SMTP"
TIMEOUT_S = 10.0
"""Time for one message; a name server that does not answer counts too."""
_ADDRESS = re.compile(r"[\w.+%'=~#&/?^{|}!$*][\w.+%'=~#&/?^{|}!$*-]*@[\w-]+(\.[\w-]+)*", re.ASCII)
_SENDMAIL_PLACES = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


def webhook_file() -> Path:
    """File that may hold the webhook's address."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dalle2_video" / "webhook"


def check(targets: Sequence[str]) -> None:
    """Raise ValueError with the remedy where a target is none, or could not be reached from this machine."""
    for target in targets:
        if target == WEBHOOK:
            _webhook_url()
        elif not _ADDRESS.fullmatch(target):
            raise ValueError(f"--notify {target!r} is neither a mail address such as me@group.org nor `{WEBHOOK}`")
        elif not os.environ.get(SMTP_VARIABLE):
            if _sendmail() is None:
                raise ValueError(
                    f"--notify {target}: this machine has no `sendmail`; name a mail server: "
                    f"export {SMTP_VARIABLE}=HOST[:PORT]"
                )
        else:
            _smtp_server()


def send(targets: Sequence[str], subject: str, text: str) -> dict[str, str]:
    """Send a message to all targets at once; return why it did not reach those that it did not reach."""
    failures = dict.fromkeys(targets, f"no answer within {TIMEOUT_S:.0f} s")

    def one(target: str) -> None:
        try:
            _post(text) if target == WEBHOOK else _mail(target, subject, text)
            failures.pop(target, None)
        except Exception as error:
            failures[target] = in_short(error)

    # Threads, since no time limit of a socket covers the search for a host's address; a process does not wait for them.
    threads = [threading.Thread(target=one, args=(target,), daemon=True) for target in failures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S + 1)
    return dict(failures)


def _webhook_url() -> str:
    """Return the webhook's address. The ValueError where there is none, or none that is safe, does not quote it."""
    url, source = os.environ.get(WEBHOOK_VARIABLE, "").strip(), WEBHOOK_VARIABLE
    path = webhook_file()
    if not url:
        source = str(path)
        try:
            with path.open() as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                url = file.read().strip()
        except FileNotFoundError:
            raise ValueError(
                f"--notify {WEBHOOK}: no address is known; write it into {path} and chmod 600 that, or "
                f"export {WEBHOOK_VARIABLE}=https://..."
            ) from None
        if mode & 0o077:
            raise ValueError(f"--notify {WEBHOOK}: others may read {path}, which holds a secret: chmod 600 {path}")
    if not re.fullmatch(r"https?://[^\s/]+\S*", url):
        raise ValueError(f"--notify {WEBHOOK}: what {source} holds is no address that begins with https://")
    return url


# What sends is imported where it is used: a training that is at work needs none of it.
def _post(text: str) -> None:
    """Send JSON as Slack and Mattermost take it."""
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """Another host shall not be told what this one was."""

        def redirect_request(self, *_: Any) -> None:
            return None

    # As Slack has it: what is no markup of ours shall not be taken for such.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    request = urllib.request.Request(
        _webhook_url(), json.dumps({"text": escaped}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
        answer.read(1024)


def _mail(address: str, subject: str, text: str) -> None:
    import smtplib
    from email.message import EmailMessage

    host = socket.getfqdn()
    mail = EmailMessage()
    mail["Subject"] = _one_line(f"[DALLE2-video] {subject}")
    mail["From"] = _one_line(f"{_user()}@{host}")
    mail["To"] = _one_line(address)
    mail.set_content(text)
    if os.environ.get(SMTP_VARIABLE):
        with smtplib.SMTP(*_smtp_server(), timeout=TIMEOUT_S) as server:
            server.send_message(mail)
        return
    program = _sendmail()
    if program is None:
        raise FileNotFoundError("no sendmail on this machine")
    # -i: a line with a dot alone does not end the mail.
    answer = subprocess.run(
        [program, "-i", "--", address], input=mail.as_bytes(), capture_output=True, timeout=TIMEOUT_S, check=False
    )
    if answer.returncode:
        raise OSError(f"sendmail ended with exit code {answer.returncode}")


def _smtp_server() -> tuple[str, int]:
    named = os.environ[SMTP_VARIABLE]
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?", named)
    if match is None:
        raise ValueError(f"{SMTP_VARIABLE}={named} is not HOST or HOST:PORT")
    return match[1].strip("[]"), int(match[2] or 25)


def _sendmail() -> str | None:
    found: Callable[[str], str | None] = shutil.which
    return next(filter(None, map(found, ("sendmail", *_SENDMAIL_PLACES))), None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have a number and no name
        return f"uid{os.getuid()}"


def _one_line(text: str) -> str:
    """Return a header's value: a line break in a name begins no header of its own."""
    return "".join(character if character.isprintable() else " " for character in text)


def in_short(error: Exception) -> str:
    """Return what went wrong without the words of a library, which may quote the address."""
    if isinstance(error, ValueError) and str(error).startswith(("--notify", SMTP_VARIABLE)):
        return str(error)
    import urllib.error

    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    code = getattr(cause, "strerror", None) if isinstance(cause, OSError) else None
    return f"{type(cause).__name__}{f' ({code})' if code else ''}"
