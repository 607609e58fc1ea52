"""Taking secrets out of text that goes to others: settings, logs, what commands print.

Rather too much is masked than too little. It knows secrets by their form (credentials in an URL,
private keys, what follows a word such as `password`) and by their content, where that is given.
What a person has written about a secret in other words is not found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

MASK = "***"
SHORTEST = 4
"""A shorter secret is found in every other word, and is masked by its form only."""

_KEY_BLOCK = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----).*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_CREDENTIALS = r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<credentials>\S*)@"
_URL = re.compile(_CREDENTIALS)
_LOGIN = re.compile(r"[^\s:/@'\"=,{\[(]+:(?!//)[^\s@]+@(?=[\w\[])")
_WORDS = (
    r"pass(?:word|wd|phrase|code)|pwd|psk|secret|token|credentials?|authorization|bearer"
    r"|api[_-]?key|private[_-]?key|access[_-]?key"
)
_NAMED = re.compile(
    # Not of what names a file (password_file, /etc/x.password), nor where no value follows.
    rf"(?P<name>(?<![\w./-])[\w.-]{{0,64}}?(?:{_WORDS})(?![\w.-]*_file\b)[\w.-]{{0,64}}['\"]?"
    r"\s*[:=]\s*)(?:(?P<quote>['\"])(?:[^'\"\\]|\\.)*(?P=quote)(?=\s*(?:[,}\]]|$))|\S.*)",
    re.IGNORECASE | re.MULTILINE,
)


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with `MASK` in place of every secret.

    Args:
        text: of any kind and length.
        secrets: that are known, such as the content of a password file.
    """
    for form in sorted({form for one in secrets for form in _forms(one)}, key=len, reverse=True):
        text = text.replace(form, MASK)
    text = _KEY_BLOCK.sub(rf"\1 {MASK} \2", text)
    text = _URL.sub(rf"\g<scheme>{MASK}@", text)
    text = _LOGIN.sub(f"{MASK}@", text)
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    quote = found["quote"] or ""  # kept, so that JSON stays JSON
    return f"{found['name']}{quote}{MASK}{quote}"


def credentials_in(text: str) -> Iterator[str]:
    """User names and passwords in the URLs of a text, for masking them elsewhere too."""
    for found in _URL.finditer(text):
        user, _, password = found["credentials"].partition(":")
        yield from (one for one in (found["credentials"], user, password) if one)


def holds_secret(text: str) -> bool:
    """Whether anything would be masked by its form."""
    return mask(text) != text


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may be written."""
    for form in (secret, *secret.splitlines()):
        if len(form.strip()) >= SHORTEST:
            plain = form.strip()
            yield from (plain, unquote(plain), quote(plain, safe=""), json.dumps(plain)[1:-1])
