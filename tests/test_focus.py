"""`inspectd focus`: its own camera and a running service's, a terminal, lines and JSON."""

import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker import Subscriber
from rich.console import Console
from station import (
    PROGRAM,
    SIMULATED,
    TOPICS,
    Station,
    request,
    wait_for_state,
    wait_for_verdicts,
    wait_until_available,
    write_pictures,
)

from inspectd import config
from inspectd.camera.simulated import SimulatedCamera
from inspectd.commands import focus
from inspectd.commands.focus_view import Bar, FocusView
from inspectd.commands.private_broker import PrivateBroker
from inspectd.control import (
    ControlServer,
    LookRequest,
    Reply,
    StatusRequest,
    TeachRequest,
    ask,
)
from inspectd.errors import CameraLost, CameraTimeout, ControlError
from inspectd.looking import Figure, Look

Run = Callable[..., tuple[int, str, str]]
PATIENCE_S = 60.0


def look(**figures: Figure) -> Look:
    return Look(
        frame="7",
        captured_at=datetime(2026, 1, 1, tzinfo=UTC),
        width=320,
        height=240,
        figures=figures,
        verdict="NOT_JUDGED",
        reason="too dark",
        detail="mean grey 0.002",
    )


@pytest.fixture
def station() -> Iterator[Station]:
    """A socket's path is at most 107 bytes long: pytest's own folders may be too deep."""
    with tempfile.TemporaryDirectory(prefix="inspectd-") as folder:
        made = Station(Path(folder) / "station", camera=SIMULATED % 1000, trigger="{source: mqtt}")
        yield made
        made.clean_up()


@pytest.fixture
def run(run: Run, station: Station, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`inspectd focus`, without its pauses."""
    monkeypatch.setattr(focus.OwnCamera, "period_s", 0.0)
    monkeypatch.setattr(focus.Service, "period_s", 0.0)
    monkeypatch.setattr(focus, "RETRY_S", 0.0)
    return lambda *arguments: run("focus", *arguments, "-c", station.file)


# ---- lines and JSON ------------------------------------------------------------------------------


def test_without_a_terminal_each_reading_is_a_line(run: Run, station: Station):
    code, out, err = run("--count", "2")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert re.match(r"frame 0  brightness 0\.\d{3} ok  contrast 0\.\d{3} ok  black ", first)
    assert "100% of best" in first
    assert "NOT_JUDGED too few references" in first
    assert second.startswith("frame 1  ")
    station.teach()
    code, out, _ = run(PROGRAM, "--count", "1")
    assert code == 0
    assert re.search(r"focus .* of best, \d+% of references ok  match .* dx [+-]\d+\.\d px ok", out)
    assert out.endswith("  PASS\n")


def test_json_has_the_fields_of_a_look(run: Run, station: Station):
    station.teach()
    code, out, err = run("--json", "--count", "2")
    assert (code, err) == (0, "")
    looks = [json.loads(line) for line in out.splitlines()]
    assert [look["frame"] for look in looks] == ["0", "1"]
    assert looks[0]["figures"]["dx"].keys() == {"value", "unit", "usual", "low", "high"}
    assert looks[0]["verdict"] == "PASS"
    assert looks[0]["focus_ratio"] > 0.5


def test_a_recording_ends_it_and_a_camera_that_cannot_be_used_is_told(run: Run, station: Station):
    text = station.file.read_text()
    replay = "{driver: replay, path: parts, rate: 1000}"
    station.file.write_text(text.replace(SIMULATED % 1000, replay))
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "no such folder or file" in err
    write_pictures(station.folder / "parts", range(3))
    code, out, err = run()
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        f"frame {number}.png" for number in range(3)
    ]


def test_a_wrong_program_and_wrong_settings_are_told(run: Run, station: Station):
    code, _, err = run("conector")
    assert code == 1
    assert f"there is no program 'conector' beside {station.file}; there are: {PROGRAM}" in err
    station.file.write_text(station.file.read_text() + "queue: 0\n")
    code, _, err = run()
    assert code == 1
    assert f"{station.file}:7: queue:" in err
    assert run("--count", "0")[0] == 2


def test_a_mistake_in_another_programs_file_is_none_of_its_business(run: Run, station: Station):
    (station.folder / "programs" / "other.yaml").write_text("resolution: wide\n")
    assert run("--count", "1")[0] == 0


def test_who_reads_no_further_is_no_error(station: Station):
    command = [sys.executable, "-m", "inspectd", "focus", "--json", "-c", str(station.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["frame"] == "0"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 0


# ---- a camera that fails -------------------------------------------------------------------------


class FailingCamera(SimulatedCamera):
    """Fails at some captures, counted from 0; being lost, it must be opened again."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.captures = itertools.count()
        self.opened = 0

    def open(self) -> None:
        super().open()
        self.opened += 1

    def capture(self, *arguments, **named):
        match next(self.captures):
            case 1:
                raise CameraTimeout("no picture within 2 s")
            case 2:
                raise CameraLost("the camera went away")
        return super().capture(*arguments, **named)


def test_a_failing_camera_is_told_of_and_tried_again(
    run: Run, station: Station, monkeypatch: pytest.MonkeyPatch
):
    camera = FailingCamera(config.load(station.file).station.camera)
    monkeypatch.setattr(focus, "make_camera", lambda _settings: camera)
    code, out, _ = run("--count", "5")
    assert code == 1
    lines = out.splitlines()
    assert lines[1:3] == ["no picture: no picture within 2 s", "no picture: the camera went away"]
    for index in (0, 3, 4):
        assert "brightness" in lines[index]
    assert camera.opened == 2
    code, out, _ = run("--count", "1", "--json")
    assert code == 0
    camera.captures = itertools.count(1)
    assert json.loads(run("--count", "1", "--json")[1]) == {"error": "no picture within 2 s"}


# ---- a running service ---------------------------------------------------------------------------


def test_a_service_is_asked_and_its_errors_are_readings(run: Run, station: Station):
    """Though the camera that this command could open itself is there as well."""
    replies: Iterator[Reply | Exception] = iter(
        [CameraTimeout("no picture within 2 s"), Reply(), Reply(look=look())]
    )
    asked = []

    def answer(request, _pictures):
        if isinstance(request, StatusRequest):
            return Reply()
        asked.append(request)
        reply = next(replies, None)
        if reply is None:
            server.stop()  # which is how a service ends meanwhile
            return Reply(look=look())
        if isinstance(reply, Exception):
            raise reply
        return reply

    socket = config.load(station.file).control_socket
    socket.parent.mkdir(parents=True)
    server = ControlServer(socket, answer)
    server.start()
    try:
        code, out, _ = run("--count", "5")
    finally:
        server.stop()
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "no picture: no picture within 2 s"
    assert "answered something else" in lines[1]
    assert lines[2] == "frame 7  NOT_JUDGED too dark: mean grey 0.002"
    assert lines[3] == lines[2]
    assert "the service has stopped" in lines[4]
    assert asked == [LookRequest(program=PROGRAM)] * 4


def test_one_who_may_not_ask_is_told_so_at_once(run: Run, station: Station):
    (station.folder / "state").touch()
    code, out, err = run("--count", "1")
    assert (code, out) == (1, "")
    assert "cannot be used" in err


def test_a_running_station_looks_between_two_parts_and_gives_no_verdict_for_it(
    station: Station, broker: PrivateBroker, subscribe: Callable[[PrivateBroker], Subscriber]
):
    subscriber = subscribe(broker)
    station.file.write_text(station.file.read_text().replace("port: 1}", f"port: {broker.port}}}"))
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    socket = config.load(station.file).control_socket
    request(subscriber, {"part_id": "A-1"})
    (first,) = wait_for_verdicts(subscriber, 1)

    reply = ask(socket, LookRequest(program=PROGRAM))
    assert reply is not None
    assert reply.look is not None
    assert reply.look.verdict == "PASS"
    assert reply.look.figures.keys() >= {"brightness", "focus", "dx", "match", "score"}
    command = [sys.executable, "-m", "inspectd", "focus", "--json", "--count", "2"]
    seen = subprocess.run(
        [*command, "-c", str(station.file)], capture_output=True, timeout=PATIENCE_S, check=True
    )
    looks = [json.loads(line) for line in seen.stdout.splitlines()]
    with pytest.raises(ControlError, match="there is no program 'other'"):
        ask(socket, LookRequest(program="other"))

    request(subscriber, {"part_id": "A-2"})
    last = wait_for_verdicts(subscriber, 2)[-1]
    frames = [first["frame"], reply.look.frame, *(one["frame"] for one in looks), last["frame"]]
    assert frames == ["0", "1", "2", "3", "4"]  # one camera, in turn
    assert (last["seq"], last["part_id"]) == (2, "A-2")
    assert len(station.rows()) == 2
    assert service.stop() == 0, service.log
    subscriber.catch_up()
    for topic in (TOPICS.verdict, TOPICS.result, TOPICS.response("trigger")):
        assert len(subscriber.received(topic)) == 2


def test_a_running_station_looks_by_the_references_it_was_just_taught(
    station: Station, broker: PrivateBroker, subscribe: Callable[[PrivateBroker], Subscriber]
):
    subscriber = subscribe(broker)
    station.file.write_text(station.file.read_text().replace("port: 1}", f"port: {broker.port}}}"))
    station.teach(range(4))
    station.start()
    socket = config.load(station.file).control_socket
    wait_for_state(subscriber, "not_ready")

    def reason() -> str:
        reply = ask(socket, LookRequest(program=PROGRAM))
        assert reply is not None
        assert reply.look is not None
        return reply.look.reason

    assert reason() == "too few references"
    ask(socket, TeachRequest(program=PROGRAM, frames=4))
    assert reason() != "too few references"


# ---- the terminal --------------------------------------------------------------------------------


def read_until(
    process: subprocess.Popen[bytes], terminal: int, words: str, seen: bytes = b""
) -> bytes:
    """What comes from a terminal, until it holds the words; they must come before it ends."""
    while words.encode() not in seen:
        if not select.select([terminal], [], [], PATIENCE_S)[0]:
            process.send_signal(signal.SIGABRT)  # it then tells where each thread stands
            process.wait(PATIENCE_S)
            pytest.fail(f"{words!r} did not come: {os.read(terminal, 65536).decode()}")
        seen += os.read(terminal, 65536)
    return seen


def test_on_a_terminal_the_bars_stay_until_ctrl_c(station: Station):
    station.teach()
    command = [sys.executable, "-m", "inspectd", "focus", "-c", str(station.file)]
    try:
        terminal, inner = pty.openpty()
    except OSError as error:
        pytest.skip(f"needs a pseudo-terminal: {error}")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONFAULTHANDLER": "1"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
    ) as process:
        os.close(inner)
        try:
            seen = read_until(process, terminal, "frame 2 ")
            process.send_signal(signal.SIGINT)
            seen = read_until(process, terminal, "\x1b[?25h", seen)  # the cursor is back
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            os.close(terminal)
    text = seen.decode()
    assert text.count("\x1b[?25l") == 1
    assert "Traceback" not in text
    assert "█[██" in text
    assert "as the references" in text


def drawn(view: FocusView, width: int = 100) -> list[str]:
    """The lines of a view."""
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(view)
    return [line.rstrip() for line in capture.get().splitlines()]


def row(lines: list[str], name: str) -> str:
    (found,) = [line for line in lines if line.startswith(name)]
    return found


def test_the_sharpest_picture_so_far_is_the_yardstick():
    view = FocusView(PROGRAM)
    assert drawn(view) == [f"{PROGRAM}: waiting for the first picture"]
    bars = []
    for focus_now in (2.0, 8.0, 4.0):
        view.take(look(focus=Figure(focus_now)))
        bars.append(row(drawn(view), "focus"))
    assert "100% of best" in bars[0]
    assert "100% of best" in bars[1]
    assert "50% of best" in bars[2]
    full, half = (bar.rindex("█") - bar.index("█") for bar in bars[1:])
    assert full == pytest.approx(2 * half, abs=2)
    assert bars[2].index("|") == bars[1].index("|") > bars[2].rindex("█")


def test_the_rows_stay_while_there_is_nothing_to_show_in_them():
    view = FocusView(PROGRAM)
    view.take(look(brightness=Figure(0.4, low=0.1), focus=Figure(2.0), clipped=Figure(0.1, high=1)))
    full = drawn(view)
    view.take(look(brightness=Figure(0.0, low=0.1)))
    dark = drawn(view)
    view.take("the camera went away")
    error = drawn(view)
    names = ["brightness", "clipped", "focus"]
    for lines in (full, dark, error):
        assert [line.split()[0] for line in lines[1:4]] == names
    assert row(dark, "brightness").endswith("0.000 low")
    assert row(dark, "focus") == "focus"
    assert dark[-1] == "NOT_JUDGED too dark: mean grey 0.002"
    assert error[1:4] == names  # nothing old is shown as if it were of now
    assert error[-1] == "no picture: the camera went away"
    assert view.line == "no picture: the camera went away"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_look_fits_the_terminal(width: int):
    view = FocusView(PROGRAM)
    shift = Figure(-3.0, "px", usual=0.0, low=-20.0, high=20.0)
    view.take(look(dx=shift, focus=Figure(8.0, usual=9.0, low=3.6)))
    assert all(len(line) <= width for line in drawn(view, width))


@pytest.mark.parametrize(
    ("bar", "shown"),
    [
        (Bar(0, 1, Figure(0.45)), "#####-----"),
        (Bar(0, 1, Figure(0.0)), "#---------"),
        (Bar(0, 1, Figure(7.0)), "##########"),
        (Bar(0, 1, Figure(0.45, low=0.25, high=0.85)), "##[##---]."),
        (Bar(0, 1, Figure(0.95, low=0.25, high=0.85)), "##[#####]#"),
        (Bar(0, 1, Figure(0.15, usual=0.55, low=0.25)), "##[--:----"),
        (Bar(0, 1, Figure(0.15), best=0.95), "##-------|"),
        (Bar(-1, 1, Figure(0.5, low=-0.7, high=0.7)), ".[---###]."),
        (Bar(-1, 1, Figure(-0.9, usual=0.0, low=-0.7, high=0.7)), "#[###:--]."),
        (Bar(-180, 180, Figure(-90.0, "deg", usual=0.0)), "--###:----"),
        (Bar(-1, 1, Figure(-9.0, low=-0.7, high=0.7)), "#[####--]."),
    ],
)
def test_bars(bar: Bar, shown: str):
    assert bar.drawn(10, ascii_only=True) == shown
    assert bar.drawn(10) == shown.translate(str.maketrans("#-.", "█─·"))
