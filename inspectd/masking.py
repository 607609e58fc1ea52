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
    r"pass(?:word|wort|wd|phrase|code)|kennwort|pwd|psk|secret|token|credentials?|authorization"
    r"|bearer|api[_-]?key|private[_-]?key|access[_-]?key"
)
# Parts of other words, so that they count only when they stand alone, or behind a - or _.
_SHORT = r"(?:[\w.-]{0,64}[_.-])?(?:pw|pass)"
# Not of what names a file (password_file, /etc/x.password).
_NAME = (
    rf"(?<![\w./-])(?:[\w.-]{{0,64}}?(?:{_WORDS})(?![\w.-]*_file\b)[\w.-]{{0,64}}|{_SHORT})['\"]?"
)
# A verdict is no password, and neither is how many there are.
_NO_COUNT = r"(?<!\bPASS)(?<!\bPASS['\"])(?<!\"pass\")"
_NAMED = re.compile(
    rf"(?P<name>(?i:{_NAME}){_NO_COUNT}\s*[:=]\s*)"
    r"(?:(?P<quote>['\"])(?:[^'\"\\]|\\.)*(?P=quote)(?=\s*(?:[,}\]]|$))|\S.*)",
    re.MULTILINE,
)
_BLOCK = re.compile(  # of YAML: the lines below that are indented deeper, or empty
    rf"^(?P<indent>[ \t]*(?:#[ \t]*)?)(?P<name>(?:-[ \t]+)*(?i:{_NAME})[ \t]*:)[ \t]*[|>].*\n"
    r"(?:(?P=indent)[ \t]+\S.*(?:\n|\Z)|[ \t]*#?[ \t]*\n)+",
    re.MULTILINE,
)
_ARGUMENT = r"(?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|\S+)"
_OPTIONS = re.compile(
    # --password X, --pw X, as `_NAMED` knows --password=X; what names a file again is none.
    rf"(?P<long>(?<!\S)--?(?i:pw|[\w-]{{0,64}}(?:{_WORDS})(?![\w-]*file\b)[\w-]{{0,64}})\s+)"
    rf"(?!-){_ARGUMENT}"
    # -u NAME:PASSWORD, as of curl.
    rf"|(?P<login>(?<!\S)(?:-[uU]|--(?:proxy-)?user)[ =]?)"
    r"(?:'[^'\n]*:[^'\n]*'|\"[^\"\n]*:[^\"\n]*\"|[^\s:'\"]+:\S+)"
    # -P PASSWORD, as of Mosquitto's clients: elsewhere it is something else, such as a port.
    r"|(?P<short>(?:\bmosquitto_\w+|(?<!\S)-u)\s(?:[^\n\\]|\\\n|\\.)*?(?<!\S)-P\s*)"
    rf"{_ARGUMENT}",
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
    text = _BLOCK.sub(rf"\g<indent>\g<name> {MASK}\n", text)
    text = _OPTIONS.sub(_without_argument, text)
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    quote = found["quote"] or ""  # kept, so that JSON stays JSON
    return f"{found['name']}{quote}{MASK}{quote}"


def _without_argument(found: re.Match[str]) -> str:
    return f"{found['long'] or found['login'] or found['short']}{MASK}"


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
