"""systemd, which starts and watches the service: its notify protocol, and journald's native one.

Both are a few lines over a datagram socket. They are our own, since python3-systemd comes without
wheels and would tie each release to a compiler or to the system's Python. Where nobody listens,
nothing happens.

Protocols: sd_notify(3), https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping

_logger = logging.getLogger(__name__)

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "inspectd"
SEND_WITHIN_S = 0.2
"""A log line must not hold up a verdict for longer; one that journald does not take is counted."""
NOTIFY_WITHIN_S = 1.0
LONGEST_STATUS = 1000
"""In bytes, of what `systemctl status` shows in one line."""

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Manager:
    """The service manager that started this process, if one did and wants to be told.

    Nothing is raised and, for more than a moment, nothing waited for: what cannot be told is
    logged, and the manager will draw its conclusions. May be used from a signal handler.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """Args:
        address: of its socket, an abstract one with a leading ``@``; None: there is no manager.
        watchdog_s: it wants to be told within such intervals that the service gets on.
        """
        self._address = _socket_address(address) if address else None
        self.watchdog_s = watchdog_s if address else None
        self._status = ""
        self._was_ready = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Manager:
        """As ``$NOTIFY_SOCKET``, ``$WATCHDOG_USEC`` and ``$WATCHDOG_PID`` name it."""
        watchdog_s = None
        usec = environment.get("WATCHDOG_USEC", "")
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            watchdog_s = int(usec) / 1e6 if usec.isdecimal() and int(usec) else None
        return cls(environment.get("NOTIFY_SOCKET") or None, watchdog_s)

    @property
    def is_there(self) -> bool:
        return self._address is not None

    @property
    def was_ready(self) -> bool:
        """Whether it has been told that the service is up."""
        return self._was_ready

    def status(self, words: str) -> None:
        """What the service does at present, for `systemctl status`; the same again is not sent."""
        words = _one_line(words)
        if words != self._status and self._send(f"STATUS={words}"):
            self._status = words

    def ready(self) -> bool:
        """The service is up, or has dealt with the request to reload; whether it could be told."""
        told = self._send("READY=1")
        self._was_ready = self._was_ready or told
        return told

    def reloading(self) -> None:
        """It reads its settings anew; to be followed by `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """The start, or the stop, may take so long from now, if its own time is over sooner."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def feed_watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def set_watchdog(self, seconds: float) -> None:
        """From now on this is the interval; not before `ready`, for it counts at once."""
        self._send(f"WATCHDOG_USEC={round(seconds * 1e6)}")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            with _datagrams(NOTIFY_WITHIN_S) as connection:
                connection.sendto(message.encode(), self._address)
        except OSError as error:
            _logger.warning("systemd could not be told %s: %s", message.partition("\n")[0], error)
            return False
        return True


class JournalHandler(logging.Handler):
    """Gives log records to journald with their fields, which `journalctl FIELD=VALUE` finds.

    A record may bring its own in ``extra={"fields": {...}}``: names in capitals, None is left out.
    """

    def __init__(self, address: str = JOURNAL_SOCKET) -> None:
        """``address`` is the path of journald's socket."""
        super().__init__()
        self._address = address
        self._lost = 0
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = self._fields(record)
        except Exception:  # noqa: BLE001 - as every handler: a wrong log call must not end its caller
            self.handleError(record)
            return
        try:
            send_to_journal(fields, self._address)
        except OSError:
            self._lost += 1
        else:
            self._lost = 0

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        message = self.format(record)
        if self._lost:
            message += f" ({self._lost} lines before this one are lost: journald did not take them)"
        return {
            "MESSAGE": message,
            "PRIORITY": next(number for level, number in _PRIORITIES if record.levelno >= level),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            "LOGGER": record.name,
            "THREAD_NAME": record.threadName,
            **getattr(record, "fields", {}),
        }


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether what is written to a file descriptor goes to journald, as ``$JOURNAL_STREAM`` says.

    Whoever has redirected it since, or merely inherited the variable, wants the lines where they
    go.
    """
    stream = environment.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def encode_entry(fields: Mapping[str, object]) -> bytes:
    """One journal entry: a line for each field, with its length before it where it has lines of
    its own. What is None is left out.
    """
    return b"".join(
        _encode_field(name, str(value)) for name, value in fields.items() if value is not None
    )


def send_to_journal(fields: Mapping[str, object], address: str = JOURNAL_SOCKET) -> None:
    """Hand an entry to journald; one too large for a datagram goes in a file in memory.

    Raises:
        OSError: journald is not there, or does not take it in time.
    """
    entry = encode_entry(fields)
    with _datagrams(SEND_WITHIN_S) as connection:
        try:
            connection.sendto(entry, address)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
        else:
            return
        with _sealed(entry) as descriptor:
            rights = struct.pack("i", descriptor)
            connection.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, address)


def _encode_field(name: str, value: str) -> bytes:
    content = value.encode(errors="backslashreplace")
    if b"\n" not in content:
        return b"%s=%s\n" % (name.encode(), content)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(content)), content)


@contextlib.contextmanager
def _sealed(content: bytes) -> Iterator[int]:
    """A file in memory that nobody can change any more, as journald demands."""
    descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield descriptor


@contextlib.contextmanager
def _datagrams(timeout_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        yield connection


def _socket_address(name: str) -> str:
    return f"\0{name[1:]}" if name.startswith("@") else name


def _one_line(words: str) -> str:
    """Cut to what is worth showing; the manager refuses what is not whole UTF-8."""
    content = " ".join(words.split()).encode(errors="backslashreplace")
    if len(content) <= LONGEST_STATUS:
        return content.decode()
    return content[: LONGEST_STATUS - 3].decode(errors="ignore") + "..."
