"""``inspectd demo`` as a new user runs it, and as an impatient one ends it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

from inspectd import cli
from inspectd.commands.demo import SHEET_WIDTH, wait_until_online
from inspectd.errors import PermanentError
from inspectd.mqtt.topics import Topics

EXIT_S = 60.0
LINE = re.compile(
    r"seq +(\d+)  part-(\d{4})  (PASS|FAIL|NOT_JUDGED) +score +(\d+\.\d\d|-) +\d+\.\d ms   "
    r"truth: (good|missing pin|bent pin|foreign object)"
)


@contextmanager
def demonstration(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demonstration as a process that makes its temporary files in a folder."""
    # Tests that are started in the background have SIGINT ignored, and so would their children;
    # what is handled here has its default there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "inspectd", "demo", "-o", folder / "output", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "120"},
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left_behind(folder: Path) -> list[str]:
    """Files of the demonstration, and processes that know of its folder."""
    found = [str(path) for path in folder.iterdir() if path.name != "output"]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if os.fsencode(folder) in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_demo(broker_directory: Path):
    with demonstration(broker_directory, "--parts", "6", "--references", "12") as process:
        out, err = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, err
    assert err == ""
    parts = LINE.findall(out)
    assert [(int(seq), int(part)) for seq, part, *_ in parts] == [(n, n) for n in range(1, 7)]
    table = out.partition("Truth against verdict")[2]
    # "good │ 5 │ 1 │ 0 │": the whole table counts every part once.
    assert sum(int(count) for count in re.findall(r"│ +(\d+) (?=│)", table)) == 6

    output = broker_directory / "output"
    heatmaps = [f"part-{number:04d}.png" for number in range(1, 7)]
    assert sorted(file.name for file in output.iterdir()) == ["contact-sheet.png", *heatmaps]
    assert all(cv2.imread(str(output / name)) is not None for name in heatmaps)
    assert cv2.imread(str(output / "contact-sheet.png")).shape[1] == 5 * SHEET_WIDTH
    assert left_behind(broker_directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(broker_directory: Path, number: signal.Signals):
    with demonstration(broker_directory, "--parts", "1000", "--references", "12") as process:
        assert process.stdout is not None
        assert any(LINE.match(line) for line in process.stdout), "no verdict was printed"
        process.send_signal(number)
        _, err = process.communicate(timeout=EXIT_S)
    assert process.returncode == 130
    assert err == "inspectd: interrupted\n"
    assert left_behind(broker_directory) == []


def test_a_service_that_ends_is_not_waited_for(tmp_path: Path):
    class Silent:
        def receive(self, timeout_s: float) -> None:
            pytest.fail("it waits for a service that has ended")

    service = subprocess.Popen([sys.executable, "-c", ""])
    service.wait()
    log = tmp_path / "log"
    log.write_text("what it said")
    with pytest.raises(PermanentError, match="what it said"):
        wait_until_online(Silent(), Topics("demo"), service, log)


def test_demo_refuses_at_once_what_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["inspectd", "demo", "-o", str(file)])
    # Its signals are for a process of its own.
    monkeypatch.setattr("inspectd.commands.demo.end_like_ctrl_c", lambda: None)
    assert cli.run_command_line() == 1
    assert capsys.readouterr().err == f"inspectd: cannot make the folder {file}: File exists\n"
    monkeypatch.setattr(sys, "argv", ["inspectd", "demo", "--references", "4"])
    assert cli.run_command_line() == 2
    assert "--references" in capsys.readouterr().err
