"""The pins of the Raspberry Pi, on gpiozero's own mock pins."""

import importlib.util
import math
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import gpiozero
import pytest
from broker import eventually
from gpiozero.pins.mock import MockFactory, MockPin
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from inspectd import gpio as module
from inspectd.errors import GpioUnusable
from inspectd.gpio import (
    GAP_S,
    MOST_WAITING,
    SHORTEST_S,
    Debounce,
    GpioEdge,
    GpioOutputs,
    VerdictPulses,
)
from inspectd.records import Verdict
from inspectd.settings import GpioTrigger, LevelOutput, OutputSettings, PulseOutput

PATIENCE_S = 20.0
MS = 1_000_000
FOREVER_MS = 60_000.0

ROOT = Path(__file__).parent.parent

needs_lgpio = pytest.mark.skipif(
    importlib.util.find_spec("lgpio") is None,
    reason="lgpio is not installed (pip install 'inspectd[gpio]')",
)
no_gpio_here = pytest.mark.skipif(
    Path("/dev/gpiochip0").exists(), reason="tells what happens without a GPIO, which is here"
)


@pytest.fixture
def no_factory(monkeypatch):
    """As in a fresh process, without gpiozero's environment variable."""
    monkeypatch.setattr(gpiozero.Device, "pin_factory", None)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "")  # so that it is restored whatever is set
    monkeypatch.delenv("GPIOZERO_PIN_FACTORY")


@pytest.fixture
def factory(no_factory, monkeypatch):
    """Mock pins, chosen as a user would."""
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "mock")
    gpiozero.Device.ensure_pin_factory()
    assert isinstance(gpiozero.Device.pin_factory, MockFactory)
    yield gpiozero.Device.pin_factory
    gpiozero.Device.pin_factory.close()


@pytest.fixture
def opened():
    """Opens outputs and starts triggers, and ends them with the test."""
    ended = []

    def open_or_start(thing):
        if isinstance(thing, GpioOutputs):
            ended.append(thing.close)
            thing.open()
        else:
            ended.append(thing.stop)
            thing.start()
        return thing

    yield open_or_start
    for end in ended:
        end()
    assert not {"gpio-edge", "gpio-outputs"} & {thread.name for thread in threading.enumerate()}


# ---- which edge held ---------------------------------------------------------------------------


def changes(debounce: Debounce, *steps: tuple[float, bool]) -> list[int | None]:
    return [debounce.change(round(at_ms * MS), level) for at_ms, level in steps]


def test_an_edge_that_held_is_told_with_its_own_instant_by_the_next_change():
    debounce = Debounce(False, 2 * MS)
    assert changes(debounce, (10, True), (12, False), (14.1, True)) == [None, 10 * MS, 12 * MS]
    assert debounce.level is False


def test_what_is_shorter_than_the_time_is_a_bounce():
    debounce = Debounce(False, 2 * MS)
    assert changes(debounce, (10, True), (11.9, False)) == [None, None]
    assert debounce.due_ns is None
    assert debounce.level is False


def test_the_edge_is_the_last_of_its_bounces():
    debounce = Debounce(False, 2 * MS)
    assert changes(debounce, (10, True), (10.3, False), (10.5, True)) == [None] * 3
    assert debounce.due_ns == 12_500_000
    assert debounce.settle() == 10_500_000
    assert debounce.level is True


def test_a_short_dip_in_a_level_that_holds_makes_no_second_edge():
    debounce = Debounce(True, 2 * MS)
    assert changes(debounce, (10, False), (11, True), (50, False), (51, True)) == [None] * 4
    assert debounce.level is True


def test_with_a_change_lost_in_between_the_time_begins_anew():
    debounce = Debounce(False, 2 * MS)
    assert changes(debounce, (10, True), (30, True)) == [None, None]
    assert debounce.due_ns == 32 * MS


def test_without_a_time_every_edge_counts():
    debounce = Debounce(False, 0)
    assert changes(debounce, (1, True), (1, False), (2, True)) == [None, 1 * MS, 1 * MS]


# ---- the trigger's pin -------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["rising", "falling"])
def test_each_edge_of_the_kind_counts_and_none_of_the_other(factory, opened, edge):
    edges = []
    watched = opened(GpioEdge(GpioTrigger(pin=17, edge=edge, debounce_ms=0), edges.append))
    pin = factory.pin(17)
    assert pin.pull == ("down" if edge == "rising" else "up")
    there, back = pin.drive_high, pin.drive_low
    if edge == "falling":
        there, back = back, there
    there()
    assert eventually(lambda: len(edges) == 1)
    back()
    there()
    assert eventually(lambda: len(edges) == 2)
    back()
    watched.stop()
    assert len(edges) == 2


@pytest.mark.parametrize(
    ("pull", "is_pull"), [("up", "up"), ("down", "down"), ("none", "floating")]
)
def test_the_resistor_is_as_the_settings_have_it(factory, opened, pull, is_pull):
    opened(GpioEdge(GpioTrigger(pin=17, edge="falling", pull=pull), lambda _: None))
    assert factory.pin(17).pull == is_pull


def test_the_instant_is_that_of_the_edge_not_of_the_end_of_debouncing(factory, opened):
    edges = []
    opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=50), edges.append))
    before_ns = time.monotonic_ns()
    factory.pin(17).drive_high()
    after_ns = time.monotonic_ns()
    assert eventually(lambda: len(edges) == 1)
    assert time.monotonic_ns() >= edges[0] + 50 * MS
    assert before_ns - 1000 <= edges[0] <= after_ns + 1000  # ticks are seconds, as floats


def test_a_pulse_too_short_is_no_edge(factory, opened):
    edges = []
    watched = opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=FOREVER_MS), edges.append))
    for _ in range(3):
        factory.pin(17).drive_high()
        factory.pin(17).drive_low()
    factory.pin(17).drive_high()
    watched.stop()
    assert edges == []


def test_a_level_that_holds_at_the_start_is_no_edge(factory, opened):
    edges = []
    factory.pin(17).drive_high()
    watched = opened(GpioEdge(GpioTrigger(pin=17, pull="none", debounce_ms=0), edges.append))
    factory.pin(17).drive_low()
    watched.stop()
    assert edges == []


def test_a_glitch_whose_end_is_on_its_way_is_no_edge(factory, opened):
    """The change back is told late: meanwhile the time runs out, but the pin shows it."""
    reads = []

    class Pin(MockPin):
        def _get_state(self):
            reads.append(self._state)
            return super()._get_state()

    factory.pin_class = Pin
    edges = []
    watched = opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=1), edges.append))
    tell = factory.pin(17).when_changed
    reads.clear()
    rise = time.monotonic()
    tell(rise, True)  # the pin itself is low again
    assert eventually(lambda: reads == [False])
    tell(rise + 0.0005, False)
    watched.stop()
    assert edges == []


def test_a_slow_taker_loses_no_edge_and_spoils_no_instant(factory, opened):
    free = threading.Event()
    edges = []

    def take(edge_ns):
        assert free.wait(PATIENCE_S)
        edges.append(edge_ns)

    watched = opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=0), take))
    for _ in range(200):
        factory.pin(17).drive_high()
        factory.pin(17).drive_low()
    driven_ns = time.monotonic_ns()
    free.set()
    watched.stop()
    assert len(edges) == 200
    assert edges == sorted(edges)
    assert edges[-1] <= driven_ns + 1000


def test_a_taker_that_fails_is_told_of_the_next_edge_too(factory, opened, caplog):
    edges = []

    def take(edge_ns):
        edges.append(edge_ns)
        raise RuntimeError("no room")

    watched = opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=0), take))
    for _ in range(2):
        factory.pin(17).drive_high()
        factory.pin(17).drive_low()
    watched.stop()
    assert len(edges) == 2
    assert [record.exc_info[1].args for record in caplog.records] == [("no room",)] * 2


def test_edges_stamped_with_the_time_of_day_are_taken_to_be_now(factory, opened):
    edges = []
    opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=0), edges.append))
    pin = factory.pin(17)
    before_ns = time.monotonic_ns()
    pin._change_state(True)
    pin.when_changed(time.time(), True)
    assert eventually(lambda: len(edges) == 1)
    assert before_ns <= edges[0] <= time.monotonic_ns()


def test_a_stopped_trigger_is_silent_and_can_be_started_again(factory, opened):
    edges = []
    watched = opened(GpioEdge(GpioTrigger(pin=17, debounce_ms=0), edges.append))
    watched.stop()
    factory.pin(17).drive_high()
    factory.pin(17).drive_low()
    watched.start()
    factory.pin(17).drive_high()
    watched.stop()
    assert len(edges) == 1


# ---- which output is active when ---------------------------------------------------------------


def test_a_pulse_ends_by_itself():
    pulses = VerdictPulses({"ok": 0.1, "ng": 0.2})
    pulses.show("ok")
    assert pulses.advance(5.0) == 5.1
    assert pulses.active == "ok"
    assert pulses.advance(5.09) == 5.1
    assert pulses.active == "ok"
    assert pulses.advance(5.1) is None
    assert pulses.active is None


def test_without_a_length_it_is_held_until_the_next_trigger():
    pulses = VerdictPulses({"ok": math.inf})
    pulses.show("ok")
    assert pulses.advance(5.0) is None
    assert pulses.advance(5000.0) is None
    assert pulses.active == "ok"
    pulses.trigger()
    assert pulses.advance(5000.0) is None
    assert pulses.active is None


def test_a_trigger_does_not_end_a_pulse():
    pulses = VerdictPulses({"ok": 0.1})
    pulses.show("ok")
    pulses.advance(5.0)
    pulses.trigger()
    assert pulses.advance(5.05) == 5.1
    assert pulses.active == "ok"


@pytest.mark.parametrize("second", ["ok", "ng"])
@pytest.mark.parametrize("length_s", [0.1, math.inf])
def test_the_next_verdict_ends_the_one_that_is_shown_and_follows_after_a_gap(second, length_s):
    pulses = VerdictPulses({"ok": length_s, "ng": length_s})
    pulses.show("ok")
    pulses.advance(5.0)
    pulses.show(second)
    assert pulses.advance(5.05) == 5.05 + GAP_S
    assert pulses.active is None
    assert pulses.waiting
    pulses.advance(5.05 + GAP_S)
    assert pulses.active == second
    assert not pulses.waiting


def test_a_verdict_is_shown_long_enough_to_be_seen():
    pulses = VerdictPulses({"ok": 0.1, "ng": 0.1})
    pulses.show("ok")
    pulses.advance(5.0)
    pulses.show("ng")
    assert pulses.advance(5.001) == 5.0 + SHORTEST_S
    assert pulses.active == "ok"


def test_an_output_that_is_not_there_still_ends_the_other():
    pulses = VerdictPulses({"ng": 0.1})
    pulses.show("ng")
    pulses.advance(5.0)
    pulses.show("ok")
    assert pulses.advance(5.05) is None
    assert pulses.active is None
    assert not pulses.waiting


def test_when_too_many_wait_the_oldest_two_become_one_and_never_a_good_one_of_a_bad():
    pulses = VerdictPulses({"ok": 0.1, "ng": 0.1})
    assert pulses.show("ng")
    assert all(pulses.show("ok") for _ in range(MOST_WAITING - 1))
    assert not pulses.show("ok")
    shown = [verdict for verdict, _, _ in play(pulses, [])]
    assert shown == ["ng", *["ok"] * (MOST_WAITING - 1)]


def play(pulses: VerdictPulses, events: list[tuple[float, str]]):
    """Which output was active from when until when; an event is (after so many seconds, what)."""
    intervals = []
    now_s = 100.0
    active, since_s = None, now_s

    def look(due_s):
        nonlocal active, since_s
        if pulses.active != active:
            if active is not None:
                intervals.append((active, since_s, now_s))
            active, since_s = pulses.active, now_s
        return due_s

    due_s = look(pulses.advance(now_s))
    for wait_s, what in [*events, (1e6, "trigger")]:
        end_s = now_s + wait_s
        while due_s is not None and due_s <= end_s:
            now_s = due_s
            due_s = look(pulses.advance(now_s))
        now_s = end_s
        if what == "trigger":
            pulses.trigger()
        else:
            pulses.show(what)
        due_s = look(pulses.advance(now_s))
    assert active is None, "an output stays active"
    return intervals


@hypothesis_settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.15), st.sampled_from(["ok", "ng", "trigger"])),
        max_size=MOST_WAITING,
    ),
    st.sampled_from([0.1, 0.02, 0.004, math.inf]),
    st.sampled_from([0.1, math.inf]),
)
def test_every_verdict_is_an_edge_of_its_own_in_order_whenever_it_comes(events, ok_s, ng_s):
    intervals = play(VerdictPulses({"ok": ok_s, "ng": ng_s}), events)
    assert [shown for shown, _, _ in intervals] == [what for _, what in events if what != "trigger"]
    rounding_s = 1e-9
    for shown, since_s, until_s in intervals:
        length_s = {"ok": ok_s, "ng": ng_s}[shown]
        assert until_s - since_s >= min(length_s, SHORTEST_S) - rounding_s
        assert until_s - since_s <= length_s + rounding_s
    for (_, _, until_s), (_, since_s, _) in pairwise(intervals):
        assert since_s - until_s >= GAP_S - rounding_s


# ---- the outputs' pins -------------------------------------------------------------------------

OK, NG, READY, BUSY = 5, 6, 13, 19


def outputs(pulse_ms: float = FOREVER_MS, active="high") -> OutputSettings:
    return OutputSettings(
        ok=PulseOutput(pin=OK, active=active, pulse_ms=pulse_ms),
        ng=PulseOutput(pin=NG, active=active, pulse_ms=pulse_ms),
        ready=LevelOutput(pin=READY, active=active),
        busy=LevelOutput(pin=BUSY, active=active),
    )


@pytest.fixture
def written(factory):
    """Every change of a pin since it became an output, in order: (GPIO, level)."""
    changes = []

    class Pin(MockPin):
        def _set_state(self, value):
            if value != self._state:
                changes.append((self._number, bool(value)))
            super()._set_state(value)

    factory.pin_class = Pin
    return changes


def levels(factory) -> dict[int, bool]:
    return {pin: factory.pin(pin).state for pin in (OK, NG, READY, BUSY)}


@pytest.mark.parametrize("active", ["high", "low"])
def test_all_outputs_are_inactive_from_the_beginning_and_after_the_end(factory, opened, active):
    inactive = dict.fromkeys((OK, NG, READY, BUSY), active == "low")
    pins = opened(GpioOutputs(outputs(active=active)))
    assert levels(factory) == inactive
    assert all(factory.pin(pin).function == "output" for pin in inactive)
    pins.ready(True)
    pins.busy(True)
    pins.verdict(Verdict.PASS)
    expected = {pin: (level if pin == NG else not level) for pin, level in inactive.items()}
    assert eventually(lambda: levels(factory) == expected)
    pins.close()
    assert levels(factory) == inactive


@pytest.mark.parametrize(
    ("verdict", "pin"), [(Verdict.PASS, OK), (Verdict.FAIL, NG), (Verdict.NOT_JUDGED, NG)]
)
def test_a_verdict_is_a_pulse_that_ends_when_nothing_else_happens(written, opened, verdict, pin):
    pins = opened(GpioOutputs(outputs(pulse_ms=1)))
    pins.verdict(verdict)
    assert eventually(lambda: written == [(pin, True), (pin, False)])


def test_two_verdicts_alike_are_two_pulses(written, opened):
    pins = opened(GpioOutputs(outputs()))
    pins.verdict(Verdict.FAIL)
    pins.verdict(Verdict.FAIL)
    assert eventually(lambda: written == [(NG, True), (NG, False), (NG, True)])


def test_the_two_outputs_are_never_active_together(written, opened):
    pins = opened(GpioOutputs(outputs()))
    for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.PASS):
        pins.verdict(verdict)
    expected = [(OK, True), (OK, False), (NG, True), (NG, False), (OK, True)]
    assert eventually(lambda: written == expected)


def test_a_held_verdict_ends_with_the_next_trigger(written, opened):
    pins = opened(GpioOutputs(outputs(pulse_ms=0)))
    pins.verdict(Verdict.PASS)
    assert eventually(lambda: written == [(OK, True)])
    pins.busy(True)
    assert eventually(lambda: sorted(written[1:]) == [(OK, False), (BUSY, True)])


def test_busy_ends_when_the_verdict_stands_at_its_output(written, opened):
    pins = opened(GpioOutputs(outputs()))
    for verdict in (Verdict.PASS, Verdict.FAIL):
        pins.busy(True)
        pins.verdict(verdict)
        pins.busy(False)
    assert eventually(lambda: written[-1:] == [(BUSY, False)] and (NG, True) in written)
    for pin in (OK, NG):
        assert written.index((pin, True)) < len(written) - 1
    busy = False
    for pin, level in written:
        assert not level or pin == BUSY or busy, f"GPIO {pin} became active without BUSY"
        busy = level if pin == BUSY else busy


def test_ready_tells_whether_the_station_can_judge(written, opened):
    pins = opened(GpioOutputs(outputs()))
    pins.ready(True)
    pins.ready(True)
    pins.ready(False)
    assert eventually(lambda: written == [(READY, True), (READY, False)])


def test_only_the_outputs_that_are_set_are_claimed(factory, opened):
    pins = opened(GpioOutputs(OutputSettings(ng=PulseOutput(pin=NG, pulse_ms=0))))
    pins.ready(True)
    pins.busy(True)
    pins.verdict(Verdict.PASS)
    pins.verdict(Verdict.FAIL)
    assert eventually(lambda: factory.pin(NG).state)
    assert [info.name for info in factory.pins] == [f"GPIO{NG}"]


def test_without_outputs_nothing_is_loaded_and_nothing_happens(no_factory, opened):
    pins = opened(GpioOutputs(OutputSettings()))
    pins.ready(True)
    pins.verdict(Verdict.FAIL)
    pins.close()
    assert gpiozero.Device.pin_factory is None


def test_no_call_waits_for_a_pin(factory, opened):
    free = threading.Event()

    class Pin(MockPin):
        def _set_state(self, value):
            if value:
                assert free.wait(PATIENCE_S)
            super()._set_state(value)

    factory.pin_class = Pin
    pins = opened(GpioOutputs(outputs()))
    pins.ready(True)
    pins.busy(True)
    for _ in range(3):
        pins.verdict(Verdict.FAIL)
    assert not factory.pin(READY).state
    free.set()
    assert eventually(lambda: factory.pin(READY).state and factory.pin(NG).state)


def test_if_a_pin_fails_all_outputs_are_inactive_and_the_station_not_ready(factory, opened, caplog):
    class Pin(MockPin):
        def _set_state(self, value):
            if value and self._number == NG:
                raise OSError("GPIO write error")
            super()._set_state(value)

    factory.pin_class = Pin
    pins = opened(GpioOutputs(outputs()))
    pins.ready(True)
    assert eventually(lambda: factory.pin(READY).state)
    pins.verdict(Verdict.FAIL)
    assert eventually(lambda: not factory.pin(READY).state)
    pins.close()
    pins.verdict(Verdict.FAIL)
    (record,) = caplog.records
    assert "the GPIO outputs failed and are inactive now" in record.getMessage()
    assert record.exc_info[1].args == ("GPIO write error",)


def test_verdicts_that_come_too_fast_are_warned_of_once(factory, opened, caplog):
    pins = opened(GpioOutputs(outputs()))
    for _ in range(2 * MOST_WAITING):
        pins.verdict(Verdict.FAIL)
    assert eventually(lambda: bool(caplog.records))
    pins.close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "come faster than the outputs ok and ng can show them" in record.getMessage()


def test_a_pin_that_cannot_be_given_back_keeps_none_of_the_others(factory, opened, caplog):
    pins = opened(GpioOutputs(outputs()))
    errors = [OSError("GPIO free error")]
    close = factory.pin(OK).close

    def fail_once():
        if errors:
            raise errors.pop()
        close()

    factory.pin(OK).close = fail_once
    pins.close()
    (record,) = caplog.records
    assert "output ok could not be given back" in record.getMessage()
    assert factory.pin(READY).function == "input"


def test_closed_outputs_can_be_opened_again(written, opened):
    pins = opened(GpioOutputs(outputs()))
    pins.close()
    pins.ready(True)
    pins.open()
    pins.busy(True)
    assert eventually(lambda: written == [(BUSY, True)])


# ---- what a technician is told -----------------------------------------------------------------


def told(thing) -> str:
    with pytest.raises(GpioUnusable) as raised:
        thing.open() if isinstance(thing, GpioOutputs) else thing.start()
    return str(raised.value)


def test_a_pin_in_use_is_named_with_its_key_and_the_others_are_given_back(factory, opened):
    opened(GpioEdge(GpioTrigger(pin=NG), lambda _: None))
    assert told(GpioOutputs(outputs())) == (
        f"outputs.ng.pin: GPIO {NG} cannot be used: this process uses it already for something else"
    )
    opened(GpioEdge(GpioTrigger(pin=OK), lambda _: None))


def test_a_pin_with_a_resistor_on_the_board_says_what_to_set(factory, opened):
    assert told(GpioEdge(GpioTrigger(pin=2), lambda _: None)) == (
        "trigger.pin: GPIO 2 cannot be used: a resistor on the board pulls it up; set "
        "trigger.pull: up, or take another pin"
    )
    opened(GpioEdge(GpioTrigger(pin=2, pull="up"), lambda _: None))


def test_a_pin_that_the_board_lacks_is_told(no_factory, monkeypatch):
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "mock")
    monkeypatch.setenv("GPIOZERO_MOCK_REVISION", "0002")  # the first Raspberry Pi, with 26 contacts
    assert told(GpioEdge(GpioTrigger(pin=27), lambda _: None)) == (
        "trigger.pin: GPIO 27 cannot be used: this Raspberry Pi has no such pin"
    )


def test_an_unknown_pin_factory_is_told_with_its_variable(no_factory, monkeypatch):
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "mok")
    message = told(GpioEdge(GpioTrigger(pin=17), lambda _: None))
    assert "'mok'" in message
    assert "correct the environment variable GPIOZERO_PIN_FACTORY" in message


@pytest.mark.parametrize("missing", ["gpiozero", "lgpio"])
def test_a_missing_library_is_told_with_what_to_install(no_factory, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "gpiozero.pins.lgpio", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    message = told(GpioOutputs(outputs()))
    assert message.startswith(f"outputs.ok.pin: GPIO {OK} cannot be used: the Python package")
    assert f"{missing} is missing; install it: pip install 'inspectd[gpio]'" in message


# ---- lgpio itself ------------------------------------------------------------------------------


START = """
import os, sys
from inspectd.errors import GpioUnusable
from inspectd.gpio import GpioEdge
from inspectd.settings import GpioTrigger

try:
    GpioEdge(GpioTrigger(pin=17), print).start()
except GpioUnusable as error:
    print(error)
print(os.listdir(), os.environ.get("LG_WD"), "lgpio" in sys.modules)
"""


@needs_lgpio
@no_gpio_here
def test_a_machine_without_gpio_is_told_so_in_one_line_and_nothing_is_left_behind(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("GPIOZERO_PIN_FACTORY", None)
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    message, rest = done.stdout.splitlines()
    assert message.startswith("trigger.pin: GPIO 17 cannot be used: this machine has none (no /dev")
    assert rest == "[] None True"


@pytest.fixture
def chip(no_factory, monkeypatch):
    """The real pins on lgpio, down to the calls of that library: what outputs are set to is kept,
    as (GPIO, level).
    """
    with module._folder_for_lgpio():
        import lgpio
    from gpiozero.pins.lgpio import LGPIOFactory

    kept = []
    out = set()

    def claim_output(_chip, pin, level=0, _flags=0):
        out.add(pin)
        kept.append((pin, level))

    monkeypatch.setattr(lgpio, "gpiochip_open", lambda _: 0)
    monkeypatch.setattr(lgpio, "gpiochip_close", lambda _: 0)
    monkeypatch.setattr(lgpio, "gpio_free", lambda _, pin: 0)
    monkeypatch.setattr(lgpio, "gpio_read", lambda _, pin: 0)
    monkeypatch.setattr(lgpio, "gpio_write", lambda _, pin, level: kept.append((pin, level)))
    monkeypatch.setattr(lgpio, "gpio_claim_output", claim_output)
    monkeypatch.setattr(lgpio, "gpio_claim_input", lambda _, pin, *flags: out.discard(pin))
    monkeypatch.setattr(lgpio, "gpio_get_mode", lambda _, pin: 2 if pin in out else 0)
    monkeypatch.setattr(LGPIOFactory, "_get_revision", lambda _: 0xA02082)
    yield kept
    if gpiozero.Device.pin_factory is not None:
        gpiozero.Device.pin_factory.close()


@needs_lgpio
def test_on_lgpio_an_output_that_is_active_low_is_never_low_before_its_time(chip):
    pins = GpioOutputs(OutputSettings(ok=PulseOutput(pin=OK, active="low")))
    pins.open()
    assert type(gpiozero.Device.pin_factory).__name__ == "LGPIOFactory"
    assert chip == [(OK, 1)]
    pins.close()


@needs_lgpio
def test_a_pin_that_another_program_holds_is_told(chip, monkeypatch):
    import lgpio

    def busy(*_):
        raise lgpio.error("GPIO busy")

    monkeypatch.setattr(lgpio, "gpio_claim_input", busy)
    assert told(GpioEdge(GpioTrigger(pin=17), lambda _: None)) == (
        "trigger.pin: GPIO 17 cannot be used: another program or a device tree overlay holds it; "
        "`gpioinfo` tells which"
    )


@needs_lgpio
def test_without_the_right_to_the_chip_it_says_how_to_get_it(chip, monkeypatch, tmp_path):
    import lgpio

    def refused(_chip):
        raise lgpio.error("can not open gpiochip")

    (tmp_path / "gpiochip0").touch()
    monkeypatch.setattr(module, "_DEVICES", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, who may run this, has every right
    monkeypatch.setattr(lgpio, "gpiochip_open", refused)
    assert told(GpioEdge(GpioTrigger(pin=17), lambda _: None)) == (
        f"trigger.pin: GPIO 17 cannot be used: no right to use {tmp_path}/gpiochip0; add the user "
        "that runs inspectd to the group gpio (sudo usermod -aG gpio USER) and start it again"
    )
