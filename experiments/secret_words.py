"""What looks like a secret, so that it is refused or left out where something is stored or shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
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


def redactor() -> Callable[[str], str]:
    """Return what takes out of texts what seems to be a secret and this process's own, as its environment names them.

    For many texts: the environment is looked through once.
    """
    named = (os.environ.get(name, "") for name in list(os.environ) if NAMES.search(name))
    values = [value for value in named if len(value) >= _LEAST_CHARACTERS and not value.startswith("/")]
    # As they are and as Python and JSON quote them; the longer ones first, since one may begin with another.
    forms = {form for value in values for form in (value, repr(value)[1:-1], json.dumps(value)[1:-1])}
    own = sorted(forms, key=len, reverse=True)

    def without_secrets(text: str) -> str:
        for value in own:
            text = text.replace(value, LEFT_OUT)
        return _VALUES.sub(LEFT_OUT, text)

    return without_secrets


def redacted(text: str) -> str:
    """Return a text without what `redactor` takes out."""
    return redactor()(text)


def redacted_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose texts are redacted."""
    return {key: redacted(value) if isinstance(value, str) else value for key, value in record.items()}
