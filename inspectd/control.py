"""The local control socket: how a command on this machine speaks to the running service.

A request is one line of JSON, followed by the bytes of the pictures that it announces; the answer
is one line of JSON. Who may connect is decided by the permissions of the socket's file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from inspectd.errors import ControlError, InspectdError
from inspectd.looking import Look
from inspectd.payload import StatePayload
from inspectd.settings import SOCKET_NAME
from inspectd.teaching import Taught
from inspectd.typed_json import JsonError, JsonReader

_logger = logging.getLogger(__name__)

LARGEST_PICTURE = 256 << 20
MOST_PICTURES = 10_000
LONGEST_LINE = 8 << 20
"""Room for the headers of so many pictures."""
STALLED_S = 30.0
"""A client that sends nothing for so long in the middle of a request is let go."""


class PictureHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image file that follows the request's line: its name and its length in bytes."""

    name: str
    length: Annotated[int, Meta(ge=0, le=LARGEST_PICTURE)]


class TeachRequest(msgspec.Struct, frozen=True, tag_field="request", tag="teach", kw_only=True):
    """Take pictures as references, or of the empty station: those that follow, or ``frames`` from
    the camera.
    """

    program: str
    empty: bool = False
    frames: Annotated[int, Meta(ge=0, le=MOST_PICTURES)] = 0
    pictures: Annotated[tuple[PictureHeader, ...], Meta(max_length=MOST_PICTURES)] = ()


class RemoveRequest(msgspec.Struct, frozen=True, tag_field="request", tag="remove", kw_only=True):
    """Take references out, or pictures of the empty station."""

    program: str
    empty: bool = False
    names: tuple[str, ...]


class StatusRequest(msgspec.Struct, frozen=True, tag_field="request", tag="status"):
    """Ask how the station is."""


class LookRequest(msgspec.Struct, frozen=True, tag_field="request", tag="look", kw_only=True):
    """Ask what the camera sees at the moment; no part is judged for it."""

    program: str


Request = TeachRequest | RemoveRequest | StatusRequest | LookRequest


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer; ``error`` is for a person, and empty when all went well.

    Attributes:
        settings: the station file that the service runs by, with ``state``.
    """

    error: str = ""
    settings: str = ""
    taught: Taught | None = None
    removed: tuple[str, ...] = ()
    state: StatePayload | None = None
    look: Look | None = None


_REQUEST: JsonReader[Request] = JsonReader(Request)
_REPLY: JsonReader[Reply] = JsonReader(Reply)

Handler = Callable[[Request, Sequence[bytes]], Reply]
"""Answers a request with the contents of its pictures; may raise InspectdError."""


class ControlServer:
    """Listens on the socket, each connection on a thread of its own."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Prepare; `start` listens.

        Args:
            path: of the socket; its folder exists. One left over by a killed service is replaced:
                the journal's lock has ensured that no other service of this station runs.
            handler: answers the requests.
        """
        self._path = path
        self._handler = handler
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            ControlError: the socket cannot be made.
        """
        try:
            self._path.unlink(missing_ok=True)
            # Owner and group may connect, from the first moment.
            mask = os.umask(0o117)
            try:
                self._server = _Server(str(self._path), self._handler)
            finally:
                os.umask(mask)
        except OSError as error:
            raise ControlError(
                f"the control socket {self._path} cannot be made: {error.strerror or error}"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="control", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        self._server = None


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, handler: Handler) -> None:
        self.handler = handler
        super().__init__(path, _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: _Server
    timeout = STALLED_S

    def handle(self) -> None:
        try:
            request = _read_request(self.rfile)
            reply = self.server.handler(request, _read_pictures(self.rfile, request))
        except InspectdError as error:
            reply = Reply(error=str(error))
        except TimeoutError:
            reply = Reply(error=f"the rest of the request did not come within {self.timeout:g} s")
        except Exception:
            _logger.exception("unexpected error while answering a request on the control socket")
            reply = Reply(error="the service met an unexpected error; its log tells more")
        with contextlib.suppress(ConnectionError, TimeoutError):  # it waits no longer
            self.wfile.write(msgspec.json.encode(reply) + b"\n")


def _read_request(stream: BufferedIOBase) -> Request:
    line = stream.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise ControlError(
            f"the request is no whole line: it ends after {len(line)} bytes, at most "
            f"{LONGEST_LINE} are read"
        )
    try:
        request = _REQUEST.read(line)
    except JsonError as error:
        raise ControlError(f"the request is not understood: {error}") from error
    return request


def _read_pictures(stream: BufferedIOBase, request: Request) -> list[bytes]:
    if not isinstance(request, TeachRequest):
        return []
    pictures = []
    for header in request.pictures:
        content = stream.read(header.length)
        if len(content) < header.length:
            raise ControlError(f"the connection ended within the picture {header.name}")
        pictures.append(content)
    return pictures


def ask(
    path: Path,
    request: Request,
    pictures: Sequence[bytes] = (),
    progress: Callable[[int], None] = lambda _count: None,
) -> Reply | None:
    """Send a request to the service that listens on a socket.

    Args:
        path: of the socket.
        request: announces the pictures.
        pictures: their contents.
        progress: called with the number of pictures handed over so far.

    Returns:
        The answer; None if no service listens there.

    Raises:
        ControlError: the service refused, or ended without an answer, or may not be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise ControlError(
                f"the service's control socket {path} cannot be used: {error.strerror or error}; "
                "run this as the service's user or a member of its group, or with sudo"
            ) from error
        try:
            # A service that refuses need not read all of it, but still says why.
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(msgspec.json.encode(request) + b"\n")
                for count, content in enumerate(pictures, start=1):
                    connection.sendall(content)
                    progress(count)
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except ConnectionError:
            line = b""
    return _read_reply(line)


def find_service(settings: Path) -> Reply | None:
    """The state of the service that runs by a station file, whatever the file says by now.

    Where its socket is, the file names: no help while a typo is in it, or another name of the
    station, which takes effect at the next start. So each service of this machine is asked for its
    file; the kernel knows all sockets, and one of ours lies beside a journal.

    Returns:
        None if there is none, or none that this user can see.
    """
    for path in _sockets():
        if not os.path.exists(path.with_name("journal.db")):  # noqa: PTH110 (Path's may raise)
            continue
        try:
            reply = ask(path, StatusRequest())
        except ControlError as error:
            _logger.debug("%s is passed over: %s", path, error)
            continue
        if reply is not None and reply.settings and _is_same(Path(reply.settings), settings):
            return reply
    return None


def _sockets() -> list[Path]:
    """The control sockets that somebody listens on, of whatever program."""
    try:
        table = Path("/proc/net/unix").read_bytes()
    except OSError as error:
        _logger.debug("the kernel's list of sockets cannot be read: %s", error)
        return []
    # Number, references, protocol, flags, type, state, inode, and the path if it has one.
    rows = (line.split(maxsplit=7) for line in table.splitlines()[1:])
    paths = {os.fsdecode(row[-1]) for row in rows}
    return sorted(Path(path) for path in paths if path.endswith(f"/{SOCKET_NAME}"))


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths mean one file, which need not be there."""
    return os.path.realpath(one) == os.path.realpath(other)


def _read_reply(line: bytes) -> Reply:
    """Raises ControlError when it is none, or tells of an error."""
    if not line.endswith(b"\n"):
        raise ControlError("the service ended the connection without an answer; see its log")
    try:
        reply = _REPLY.read(line)
    except JsonError as error:
        raise ControlError(
            f"the service's answer is not understood ({error}): it may be of another version; "
            "restart it"
        ) from error
    if reply.error:
        raise ControlError(reply.error)
    return reply
