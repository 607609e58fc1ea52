"""``inspectd demo``: the whole product in a minute, without hardware.

A private broker, a simulated camera, the real service as a process of its own, and a subscriber
that prints what it receives; at the end what was said of each part stands beside what it was.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inspectd import config
from inspectd.camera.simulated import truth_of
from inspectd.commands.inspect import COLOURS
from inspectd.commands.interruption import end_like_ctrl_c
from inspectd.commands.private_broker import HOST, PrivateBroker
from inspectd.commands.subscriber import Subscriber
from inspectd.commands.teach import teach_from_camera
from inspectd.errors import PermanentError
from inspectd.mqtt.topics import Topics
from inspectd.payload import TriggerRequest, VerdictPayload, decode_verdict, encode
from inspectd.records import Truth, Verdict
from inspectd.settings import Settings, SimulatedCamera

STATION = "demo"
PROGRAM = "terminal-block"
START_S = 60.0
"""The first start compiles the kernels."""
VERDICT_S = 10.0
STOP_S = 5.0
PAUSE_S = 0.1
"""Between two parts, so that a person can follow."""
SHEET_COLUMNS = 5
SHEET_WIDTH = 320
"""Pixels of one heatmap on the contact sheet."""

STATION_FILE = """\
station: {station}
program: {program}
camera: {{driver: simulated, seed: {seed}, defect_rate: {defect_rate}}}
trigger: {{source: mqtt}}
mqtt: {{host: {host}, port: {port}}}
storage: {{directory: {directory}}}
"""
PROGRAM_FILE = """\
description: terminal block with 27 pins
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One part: what was said of it and what it was."""

    verdict: VerdictPayload
    truth: Truth
    heatmap: Path | None


def demo(*, parts: int, defect_rate: float, references: int, seed: int, output: Path) -> int:
    """Teach, judge, and compare with the truth.

    Args:
        parts: how many to judge.
        defect_rate: share of them that carry a defect.
        references: good parts to teach.
        seed: of the simulated parts.
        output: folder for the heatmaps and the contact sheet.

    Raises:
        InspectdError: there is no Mosquitto, the output folder cannot be made, or the service did
            not start or answer.
    """
    end_like_ctrl_c()
    make_folder(output)
    with tempfile.TemporaryDirectory(prefix="inspectd-demo-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # a broker that root starts becomes another user
        with PrivateBroker(work / "broker") as broker:
            typer.echo(f"broker    Mosquitto on {HOST}:{broker.port}, for this demonstration only")
            station = write_settings(work, broker.port, seed, defect_rate=0.0)
            typer.echo(f"teaching  {references} good parts from the simulated camera")
            if teach_from_camera(station, PROGRAM, references):
                raise PermanentError("the simulated camera gave pictures that were refused")
            station = write_settings(work, broker.port, seed + 1, defect_rate)
            settings = config.load(station)
            topics = Topics(STATION)
            with Subscriber(HOST, broker.port, f"{topics.base}/#") as subscriber:
                typer.echo(f"service   inspectd run -c {station}")
                with running_service(station, work / "service.log") as service:
                    wait_until_online(subscriber, topics, service, work / "service.log")
                    typer.echo(f"judging   {parts} parts, one request/trigger each\n")
                    outcomes = judge_parts(subscriber, settings, parts, output)
    print_confusion(outcomes)
    sheet = output / "contact-sheet.png"
    write_contact_sheet(outcomes, sheet)
    typer.echo(f"heatmaps       {output}/part-NNNN.png, as received by MQTT")
    typer.echo(f"contact sheet  {sheet}")
    return 0


def make_folder(output: Path) -> None:
    """Raises PermanentError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermanentError(f"cannot make the folder {output}: {error.strerror}") from error


def write_settings(work: Path, port: int, seed: int, defect_rate: float) -> Path:
    """The station file and its program; returns the station file's path."""
    station = work / "inspectd.yaml"
    station.write_text(
        STATION_FILE.format(
            station=STATION,
            program=PROGRAM,
            seed=seed,
            defect_rate=defect_rate,
            host=HOST,
            port=port,
            directory=work / "state",
        ),
        encoding="utf-8",
    )
    programs = work / "programs"
    programs.mkdir(exist_ok=True)
    (programs / f"{PROGRAM}.yaml").write_text(PROGRAM_FILE, encoding="utf-8")
    return station


@contextmanager
def running_service(station: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process of its own; stopped in order however this ends."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "inspectd", "run", "-c", str(station)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            process_group=0,  # Ctrl-C is for the demonstration, which then stops the service
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_online(
    subscriber: Subscriber, topics: Topics, service: subprocess.Popen[bytes], log: Path
) -> None:
    """Raises PermanentError with the service's log if it does not come up."""
    give_up_at = time.monotonic() + START_S
    while service.poll() is None and time.monotonic() < give_up_at:
        message = subscriber.receive(1.0)
        if message == (topics.availability, b"online"):
            return
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise PermanentError(f"the service did not become ready; its log:\n{said}")


def judge_parts(
    subscriber: Subscriber, settings: Settings, parts: int, output: Path
) -> list[Outcome]:
    """Ask for one verdict after the other and print each as it comes.

    Raises:
        PermanentError: a request stays without verdict.
    """
    camera = settings.station.camera
    assert isinstance(camera, SimulatedCamera)
    topics = Topics(settings.station.station)
    console = Console(highlight=False)
    outcomes = []
    for number in range(1, parts + 1):
        part_id = f"part-{number:04d}"
        subscriber.publish(topics.request("trigger"), encode(TriggerRequest(part_id=part_id)))
        verdict, heatmap = receive_verdict(subscriber, topics, part_id)
        truth = truth_of(camera, int(verdict.frame)) if verdict.frame else Truth()
        path = None
        if heatmap is not None:
            path = output / f"{part_id}.png"
            path.write_bytes(heatmap)
        outcome = Outcome(verdict, truth, path)
        console.print(line_for(outcome))
        outcomes.append(outcome)
        time.sleep(PAUSE_S)
    return outcomes


def receive_verdict(
    subscriber: Subscriber, topics: Topics, part_id: str
) -> tuple[VerdictPayload, bytes | None]:
    """The verdict on a part and its heatmap; raises PermanentError if no verdict comes."""
    verdict: VerdictPayload | None = None
    heatmap: bytes | None = None
    while verdict is None or heatmap is None:
        message = subscriber.receive(VERDICT_S)
        if message is None:
            break
        topic, payload = message
        if topic == topics.verdict:
            received = decode_verdict(payload)
            verdict = received if received.part_id == part_id else verdict
        elif topic == topics.heatmap and verdict is not None:
            heatmap = payload
    if verdict is None:
        raise PermanentError(f"no verdict came for {part_id} within {VERDICT_S:.0f} s")
    return verdict, heatmap


def line_for(outcome: Outcome) -> Text:
    """A verdict on one line, the truth beside it."""
    verdict, truth = outcome.verdict, outcome.truth
    colour = COLOURS[Verdict(verdict.verdict)]
    score = "  -  " if verdict.score is None else f"{verdict.score:5.2f}"
    return Text.assemble(
        f"seq {verdict.seq:4d}  {verdict.part_id}  ",
        (f"{verdict.verdict:10s}", colour),
        f"  score {score}  {verdict.timings_ms.get('total', 0):6.1f} ms   truth: ",
        truth.defect.value.replace("_", " ") if truth.defect else "good",
        f"   {verdict.reason}" if verdict.verdict == Verdict.NOT_JUDGED else "",
    )


def print_confusion(outcomes: Sequence[Outcome]) -> None:
    """What each kind of part was judged."""
    counts = Counter(
        (outcome.truth.defect.value if outcome.truth.defect else "good", outcome.verdict.verdict)
        for outcome in outcomes
    )
    table = Table(title="\nTruth against verdict")
    table.add_column("truth")
    for verdict in Verdict:
        table.add_column(verdict.value, justify="right")
    for truth in sorted({truth for truth, _ in counts}, key=lambda truth: (truth != "good", truth)):
        table.add_row(
            truth.replace("_", " "), *(str(counts[truth, verdict.value]) for verdict in Verdict)
        )
    Console().print(table)


def write_contact_sheet(outcomes: Sequence[Outcome], path: Path) -> None:
    """All heatmaps on one picture, the truth written under each.

    Raises:
        PermanentError: it cannot be written.
    """
    tiles = [tile(outcome) for outcome in outcomes if outcome.heatmap is not None]
    if not tiles:
        raise PermanentError("no heatmap was received")
    height = max(len(picture) for picture in tiles)
    rows = math.ceil(len(tiles) / SHEET_COLUMNS)
    sheet = np.full((rows * height, SHEET_COLUMNS * SHEET_WIDTH, 3), 255, np.uint8)
    for index, picture in enumerate(tiles):
        top, left = index // SHEET_COLUMNS * height, index % SHEET_COLUMNS * SHEET_WIDTH
        sheet[top : top + len(picture), left : left + SHEET_WIDTH] = picture
    if not cv2.imwrite(str(path), sheet):
        raise PermanentError(f"cannot write {path}")


def tile(outcome: Outcome) -> NDArray[np.uint8]:
    """One heatmap reduced, with its part and truth in a line below."""
    heatmap = cv2.imread(str(outcome.heatmap))
    assert heatmap is not None
    height = round(heatmap.shape[0] * SHEET_WIDTH / heatmap.shape[1])
    reduced = cv2.resize(heatmap, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA)
    framed = cv2.copyMakeBorder(reduced, 0, 22, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    truth = outcome.truth.defect.value.replace("_", " ") if outcome.truth.defect else "good"
    cv2.putText(
        framed,
        f"{outcome.verdict.part_id}: {truth}",
        (6, height + 15),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.42,
        (60, 60, 60),
        1,
        cv2.LINE_AA,
    )
    return np.asarray(framed, np.uint8)
