"""What looks like a secret, so that it is refused or left out where something is stored or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

LEFT_OUT = "[left out: a secret]"
_NAME = r"(?:API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK)"
NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK", re.IGNORECASE)
"""In names of variables that hold secrets."""
_VALUES = re.compile(
    r"\bhf_\w{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|(?<=://)[^\s/@:\"']+:[^\s/@\"']+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"
)
"""Values by the marks that their issuers give them, and passwords in addresses."""
_ASSIGNED = re.compile(rf"\w*{_NAME}\w*=(?![\"']?\$|[\"']?\s|[\"']?$)", re.IGNORECASE)
"""A value given in a line of shell; one that is read from elsewhere, `$(cat FILE)`, is none."""
_LEAST_CHARACTERS = 8
"""Of the value of a variable: a shorter one would be found in words that are none."""


def holds_secret(text: str) -> bool:
    """Return whether a value, or a line of shell, seems to hold a secret."""
    return bool(_VALUES.search(text) or _ASSIGNED.search(text))


def redacted(text: str) -> str:
    """Return a text without what seems to be a secret and without this process's own, as its environment names them."""
    for name, value in os.environ.items():
        if NAMES.search(name) and len(value) >= _LEAST_CHARACTERS and not value.startswith("/"):
            text = text.replace(value, LEFT_OUT)
    return _VALUES.sub(LEFT_OUT, text)


def redacted_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose texts are redacted."""
    return {key: redacted(value) if isinstance(value, str) else value for key, value in record.items()}
