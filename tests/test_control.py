"""The control socket, over real ones: what is asked arrives, and nothing brings the server down."""

import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inspectd import control
from inspectd.control import (
    LARGEST_PICTURE,
    MOST_PICTURES,
    ControlServer,
    PictureHeader,
    RemoveRequest,
    Reply,
    StatusRequest,
    TeachRequest,
    ask,
)
from inspectd.errors import ControlError, ReferencesError
from inspectd.payload import StatePayload
from inspectd.teaching import Refusal, Taught

PATIENCE_S = 20.0
STATE = StatePayload(
    state="judging",
    station="line1",
    program="connector",
    settings_hash="0123456789ab",
    versions={"inspectd": "1"},
    journal_id="journal",
    boot_id="boot",
    clock_synchronised=True,
    since=datetime(2026, 1, 1, tzinfo=UTC),
)


class Handler:
    """Keeps what was asked; does ``answer``, or else gives ``reply`` or raises it."""

    def __init__(self) -> None:
        self.asked = []
        self.reply: Reply | Exception = Reply(state=STATE)
        self.answer = self._answer

    def __call__(self, request, pictures):
        self.asked.append((request, list(pictures)))
        return self.answer(request, pictures)

    def _answer(self, request, pictures):
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path is at most 107 bytes long: pytest's own folders may be too deep."""
    with tempfile.TemporaryDirectory(prefix="inspectd-") as folder:
        yield Path(folder) / "control.sock"


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def server(path: Path, handler: Handler) -> Iterator[ControlServer]:
    server = ControlServer(path, handler)
    server.start()
    yield server
    server.stop()


def raw(path: Path, sent: bytes, *, close: bool = True) -> dict:
    """The answer to bytes as they are; ``close``: and then nothing more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        connection.sendall(sent)
        if close:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return json.loads(stream.readline())


def headers(pictures: list[bytes]) -> tuple[PictureHeader, ...]:
    return tuple(PictureHeader(f"{n}.png", len(one)) for n, one in enumerate(pictures))


# ---- requests ----------------------------------------------------------------------------------


def test_status_is_answered_with_the_state(path, server, handler):
    assert ask(path, StatusRequest()) == Reply(state=STATE)
    assert handler.asked == [(StatusRequest(), [])]


def test_teach_brings_the_pictures_byte_by_byte(path, server, handler):
    taught = Taught(
        added=("0.png",), duplicates=("1.png",), refused=(Refusal("2.png", "is empty"),), total=7
    )
    handler.reply = Reply(taught=taught)
    pictures = [os.urandom(300_000), b"\n{}\n", b"", bytes(range(256))]
    request = TeachRequest(program="connector", pictures=headers(pictures))
    handed = []
    assert ask(path, request, pictures, handed.append) == Reply(taught=taught)
    assert handler.asked == [(request, pictures)]
    assert handed == [1, 2, 3, 4]


@pytest.mark.parametrize("empty", [False, True])
def test_whether_the_station_is_empty_is_brought(path, server, handler, empty):
    for request in (
        TeachRequest(program="connector", frames=3, empty=empty),
        RemoveRequest(program="connector", names=("0011",), empty=empty),
    ):
        ask(path, request)
        assert handler.asked[-1] == (request, [])


def test_teach_from_the_camera_brings_none(path, server, handler):
    request = TeachRequest(program="connector", frames=12)
    ask(path, request)
    assert handler.asked == [(request, [])]


def test_as_many_pictures_as_are_allowed_can_be_announced(path, server, handler):
    long_name = "line1/2026-07-29/connector/" + "x" * 200 + "-{}.png"
    pictures = tuple(PictureHeader(long_name.format(n), 0) for n in range(MOST_PICTURES))
    ask(path, TeachRequest(program="connector", pictures=pictures))
    assert len(handler.asked[0][1]) == MOST_PICTURES


def test_remove_brings_the_names(path, server, handler):
    handler.reply = Reply(removed=("0011223344556677.png",))
    request = RemoveRequest(program="connector", names=("0011", "größe.png"))
    assert ask(path, request) == Reply(removed=("0011223344556677.png",))
    assert handler.asked == [(request, [])]


def test_several_ask_at_once(path, server, handler):
    """Each on a thread of its own: none is answered before all have asked."""
    together = threading.Barrier(4, timeout=PATIENCE_S)
    replies: dict[str, Reply | None] = {}

    def answer(request, pictures):
        together.wait()
        return Reply(removed=request.names)

    def client(name: str) -> None:
        replies[name] = ask(path, RemoveRequest(program="connector", names=(name,)))

    handler.answer = answer
    clients = [threading.Thread(target=client, args=(name,)) for name in "abcd"]
    for one in clients:
        one.start()
    for one in clients:
        one.join(PATIENCE_S)
    assert replies == {name: Reply(removed=(name,)) for name in "abcd"}


# ---- errors ------------------------------------------------------------------------------------


def test_a_refusal_reaches_who_asked(path, server, handler):
    handler.reply = ReferencesError("there is no reference '0011'")
    with pytest.raises(ControlError, match="there is no reference '0011'"):
        ask(path, RemoveRequest(program="connector", names=("0011",)))


def test_an_unexpected_error_is_answered_and_logged_but_not_shown(path, server, handler, caplog):
    handler.reply = ZeroDivisionError("secret of the house")
    with pytest.raises(ControlError, match="its log tells more") as caught:
        ask(path, StatusRequest())
    assert "secret" not in str(caught.value)
    assert "secret of the house" in caplog.text
    handler.reply = Reply(state=STATE)
    assert ask(path, StatusRequest()) == Reply(state=STATE)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "no whole line"),
        (b"\n", "not understood"),
        (b"\x00\xff\xfe garbage \n", "not understood"),
        (b"GET / HTTP/1.1\r\n\r\n", "not understood"),
        (b"[]\n", "not understood"),
        (b'{"request":"remove","program":"\xff","names":[]}\n', "not understood"),
        (b"{}\n", "not understood"),
        (b'{"request":"reboot"}\n', "reboot"),
        (b'{"request":"remove","program":"connector"}\n', "names"),
        (b'{"request":"teach","program":"connector","frames":-1}\n', "frames"),
        (b'{"request":"status"}', "no whole line"),
        (b'{"request":"stat', "no whole line"),
        (
            b'{"request":"teach","program":"p","pictures":[{"name":"a.png","length":9}]}\nshort',
            "within the picture a.png",
        ),
        (
            b'{"request":"teach","program":"p","pictures":[{"name":"a.png","length":-1}]}\n',
            "length",
        ),
    ],
)
def test_garbage_and_half_requests_are_answered_and_the_server_goes_on(
    path, server, handler, sent, words
):
    assert words in raw(path, sent)["error"]
    assert handler.asked == []
    assert ask(path, StatusRequest()) == Reply(state=STATE)


def test_a_line_without_end_is_refused(path, server, handler, monkeypatch):
    monkeypatch.setattr(control, "LONGEST_LINE", 1000)
    assert "at most 1000" in raw(path, b"x" * 1000, close=False)["error"]


def test_one_who_stops_talking_is_let_go(path, server, handler, monkeypatch):
    monkeypatch.setattr(control._Connection, "timeout", 0.05)
    for sent in (b"", b'{"request":"sta'):
        assert "did not come within 0.05 s" in raw(path, sent, close=False)["error"]
    assert ask(path, StatusRequest()) == Reply(state=STATE)


def test_one_who_hangs_up_before_the_answer_does_no_harm(path, server, handler, caplog, capfd):
    gone, answering = threading.Event(), threading.Event()
    threads = []

    def answer(request, pictures):
        threads.append(threading.current_thread())
        answering.set()
        assert gone.wait(PATIENCE_S)
        return Reply(removed=("x" * 1_000_000,))

    handler.answer = answer
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b'{"request":"status"}\n')
        assert answering.wait(PATIENCE_S)
    gone.set()
    threads[0].join(PATIENCE_S)
    assert caplog.records == []
    assert "Traceback" not in capfd.readouterr().err
    assert ask(path, StatusRequest()) == Reply(removed=("x" * 1_000_000,))


def test_a_refusal_before_the_pictures_were_read_still_says_why(path, server):
    """The service hangs up on a request it will not read, while its client is still sending."""
    too_large = PictureHeader("huge.png", LARGEST_PICTURE + 1)
    request = TeachRequest(program="connector", pictures=(too_large,))
    with pytest.raises(ControlError, match=r"not understood.*length"):
        ask(path, request, [bytes(1 << 20)] * 8)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without an answer"),
        (b'{"error":', "without an answer"),
        (b"{}garbage\n", "not understood"),
        (b'{"taught":7}\n', "not understood"),
    ],
)
def test_a_service_that_does_not_answer_properly_is_told_of(path, answer, words):
    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            stream.readline()
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        service = threading.Thread(target=serve)
        service.start()
        with pytest.raises(ControlError, match=words):
            ask(path, StatusRequest())
        service.join(PATIENCE_S)


def test_a_service_that_dies_while_it_is_spoken_to_is_told_of(path):
    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(10)
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        service = threading.Thread(target=serve)
        service.start()
        pictures = [bytes(1 << 20)] * 8
        with pytest.raises(ControlError, match="without an answer"):
            ask(path, TeachRequest(program="connector", pictures=headers(pictures)), pictures)
        service.join(PATIENCE_S)


# ---- the socket's file -------------------------------------------------------------------------


def test_nobody_there_is_no_error(path):
    assert ask(path, StatusRequest()) is None


def stale(path: Path) -> None:
    """What a killed service leaves behind."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_a_socket_that_nobody_listens_on_is_nobody_there(path):
    stale(path)
    assert ask(path, StatusRequest()) is None


def test_a_stale_socket_is_replaced(path, handler):
    stale(path)
    server = ControlServer(path, handler)
    server.start()
    try:
        assert ask(path, StatusRequest()) == Reply(state=STATE)
    finally:
        server.stop()


def test_stopping_takes_the_socket_away_and_it_can_start_again(path, handler):
    server = ControlServer(path, handler)
    for _ in range(2):
        server.start()
        assert ask(path, StatusRequest()) == Reply(state=STATE)
        server.stop()
        assert not path.exists()
        assert ask(path, StatusRequest()) is None
    server.stop()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_owner_and_group_may_connect_and_nobody_else(path, handler, mask):
    before = os.umask(mask)
    server = ControlServer(path, handler)
    try:
        server.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert os.umask(mask) == mask  # left as it was
    finally:
        server.stop()
        os.umask(before)


@pytest.fixture
def somebody_else(path: Path) -> Iterator[None]:
    """One who has no right to the socket; root becomes somebody for the while."""
    if os.geteuid() != 0:
        path.chmod(0o000)
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_one_who_may_not_connect_is_told_so(path, server, somebody_else):
    with pytest.raises(ControlError, match="Permission denied; run this as the service's user"):
        ask(path, StatusRequest())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.parent / "missing" / "control.sock", "No such file or directory"),
        (lambda path: path.parent / ("x" * 120), "too long"),
        (lambda path: path.parent, "directory"),
    ],
    ids=["no folder", "path too long", "a folder"],
)
def test_a_socket_that_cannot_be_made_is_told_of(path, handler, make: Callable, words):
    wanted = make(path)
    with pytest.raises(ControlError, match=words) as caught:
        ControlServer(wanted, handler).start()
    assert str(wanted) in str(caught.value)


def test_a_path_that_no_socket_can_have_is_told_of_when_asking(path):
    with pytest.raises(ControlError, match="too long"):
        ask(path.parent / ("x" * 120), StatusRequest())
