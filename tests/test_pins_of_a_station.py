"""A station on GPIO alone: an edge asks, OK or NG answers. On gpiozero's own mock pins."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import gpiozero
import numpy as np
import pytest
from broker import eventually
from gpiozero.pins.mock import MockFactory
from station import Station, good_part

from inspectd import config
from inspectd.camera.simulated import render
from inspectd.errors import GpioUnusable, JournalError
from inspectd.journal import Journal
from inspectd.payload import VerdictPayload, decode_verdict
from inspectd.records import Defect
from inspectd.service import Service
from inspectd.settings import SimulatedCamera
from inspectd.trigger import TriggerLine

TRIGGER, OK, NG, BUSY, READY = 17, 5, 6, 13, 19
OUTPUTS = (
    f"outputs: {{ok: {{pin: {OK}, pulse_ms: 0}}, ng: {{pin: {NG}, active: low, pulse_ms: 0}}, "
    f"busy: {{pin: {BUSY}}}, ready: {{pin: {READY}}}}}\n"
)


class Plc:
    """The other end of the wires."""

    def __init__(self, factory: MockFactory) -> None:
        self._factory = factory

    def edge(self) -> None:
        pin = self._factory.pin(TRIGGER)
        pin.drive_high()
        pin.drive_low()

    def reads(self, pin: int) -> bool:
        """The level of an output."""
        return bool(self._factory.pin(pin).state)

    @property
    def answer(self) -> str:
        """OK and NG as they stand; NG is active low."""
        names = {"OK": self.reads(OK), "NG": not self.reads(NG)}
        return " ".join(name for name, active in names.items() if active)

    def wait_for(self, answer: str) -> None:
        assert eventually(lambda: self.answer == answer and not self.reads(BUSY)), self.answer


@pytest.fixture
def plc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plc]:
    monkeypatch.setattr(gpiozero.Device, "pin_factory", None)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "mock")
    gpiozero.Device.ensure_pin_factory()
    yield Plc(gpiozero.Device.pin_factory)
    gpiozero.Device.pin_factory.close()


@pytest.fixture
def station(tmp_path: Path, plc: Plc) -> Station:
    """It sees a good part, one without a pin, and nothing but darkness."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    camera = SimulatedCamera(width=320, height=240, seed=3)
    shown = [
        good_part(3),
        render(camera, 40, Defect.MISSING_PIN)[0],
        np.zeros((240, 320), np.uint8),
    ]
    for number, pixels in enumerate(shown):
        assert cv2.imwrite(str(pictures / f"{number}.png"), pixels)
    made = Station(
        tmp_path,
        camera=f"{{driver: replay, path: {pictures}, rate: 1000, loop: true}}",
        trigger=f"{{source: gpio, pin: {TRIGGER}, debounce_ms: 0}}",
        extra=OUTPUTS,
    )
    made.teach(range(12))
    return made


class Running:
    """The service within this process, where the mock pins are."""

    def __init__(self, station: Station) -> None:
        self.service = Service(config.load(station.file))
        self._thread = threading.Thread(target=self.service.run)

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.request_stop()
        self._thread.join()


def verdicts(station: Station) -> list[VerdictPayload]:
    with Journal.open(station.journal) as journal:
        return [decode_verdict(row.payload) for row in journal.read(1, 99)]


def test_an_edge_is_answered_on_the_pins(station: Station, plc: Plc):
    with Running(station):
        assert eventually(lambda: plc.reads(READY))
        assert plc.answer == ""
        for count, answer in enumerate(("OK", "NG", "NG"), 1):
            plc.edge()
            # The answer before stands until then, and may be the same.
            assert eventually(lambda count=count: len(station.rows()) == count)
            plc.wait_for(answer)
    assert not plc.reads(READY)
    assert plc.answer == ""
    found = verdicts(station)
    assert [one.verdict for one in found] == ["PASS", "FAIL", "NOT_JUDGED"]
    assert {one.trigger for one in found} == {"gpio"}
    assert all(one.timings_ms["total"] >= one.timings_ms["capture"] >= 0 for one in found)


def test_no_edge_is_lost_while_a_part_is_judged(station: Station, plc: Plc):
    with Running(station):
        assert eventually(lambda: plc.reads(READY))
        for _ in range(30):
            plc.edge()
        assert eventually(lambda: len(station.rows()) == 30)
        assert eventually(lambda: not plc.reads(BUSY))
    overruns = [one for one in verdicts(station) if one.reason == "overrun"]
    assert all("16 triggers were waiting" in one.detail for one in overruns)


def test_edges_that_wait_when_the_station_stops_are_in_the_journal(station: Station, plc: Plc):
    with Running(station) as running:
        assert eventually(lambda: plc.reads(READY))
        for _ in range(10):
            plc.edge()
        running.service.request_stop()
    assert len(verdicts(station)) == 10


def test_busy_stays_for_an_edge_that_comes_as_the_last_part_is_done(
    station: Station, plc: Plc, monkeypatch: pytest.MonkeyPatch
):
    """The edge comes after it was seen that nothing waits, and before BUSY is taken back."""
    busy: list[bool] = []

    def announce(on: bool) -> None:
        busy.append(on)

    class Line(TriggerLine):
        edge_due = True

        @property
        def has_parts(self) -> bool:
            found = super().has_parts
            if busy and self.edge_due:
                self.edge_due = False
                now_ns = time.monotonic_ns()
                edge = threading.Thread(target=running.service._on_edge, args=(0.0, now_ns))
                edge.start()
                edge.join(0.2)  # where it waits, until BUSY is settled
            return found

    monkeypatch.setattr("inspectd.service.TriggerLine", Line)
    running = Running(station)
    monkeypatch.setattr(running.service._outputs, "busy", announce)
    with running:
        assert eventually(lambda: plc.reads(READY))
        busy.clear()
        running.service._on_edge(0.0, time.monotonic_ns())
        assert eventually(lambda: len(station.rows()) == 2)
        assert eventually(lambda: busy[-1] is False)
    told = list(itertools.dropwhile(lambda level: not level, busy))
    # Each part is announced by its edge and when it is looked at.
    assert told[:6] == 2 * [True, True, False], "BUSY was taken back from an edge that waits"


def test_what_cannot_be_committed_is_ng(
    station: Station, plc: Plc, monkeypatch: pytest.MonkeyPatch
):
    def full(_verdict: VerdictPayload) -> VerdictPayload:
        raise JournalError("the disk is full")

    with Running(station) as running:
        assert eventually(lambda: plc.reads(READY))
        monkeypatch.setattr(running.service._journal, "commit", full)
        plc.edge()
        plc.wait_for("NG")
        assert eventually(lambda: not plc.reads(READY))


def test_a_part_that_comes_after_a_delay_is_not_looked_at_before(station: Station, plc: Plc):
    """The simulated camera gives the frame after the instant that it is asked for."""
    text = station.file.read_text()
    text = text.replace("debounce_ms: 0", "debounce_ms: 0, delay_ms: 300")
    camera = text.splitlines()[2]
    station.file.write_text(
        text.replace(camera, "camera: {driver: simulated, width: 320, height: 240, rate: 100}")
    )
    with Running(station):
        assert eventually(lambda: plc.reads(READY))
        plc.edge()
        assert eventually(lambda: len(station.rows()) == 1)
    (only,) = verdicts(station)
    assert (only.captured_at - only.triggered_at).total_seconds() >= 0.3
    assert only.timings_ms["capture"] >= 300


@pytest.mark.parametrize(("pin", "key"), [(OK, "outputs.ok.pin"), (TRIGGER, "trigger.pin")])
def test_a_pin_that_is_in_use_keeps_the_station_from_starting(
    station: Station, plc: Plc, pin: int, key: str
):
    taken = gpiozero.LED(pin)
    service = Service(config.load(station.file))
    failed: list[Exception] = []

    def run() -> None:
        try:
            service.run()
        except GpioUnusable as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert key in str(failed[0])
    taken.close()
