"""The pins of the Raspberry Pi: an edge that asks for a verdict, and outputs for a PLC without a
network. The only module that knows gpiozero and lgpio.

gpiozero would try one library after the other until one of them works after a fashion; here lgpio
is the one that is used (its edges carry the kernel's own time), unless the environment variable
``GPIOZERO_PIN_FACTORY`` names another, as ``mock`` in the tests. Pins are numbered as GPIO (BCM).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from inspectd.errors import GpioUnusable
from inspectd.records import Verdict
from inspectd.settings import GpioTrigger, LevelOutput, OutputSettings, PulseOutput

# ruff: noqa: PLC0415 - gpiozero and lgpio are imported only where there are pins: they are extras

_logger = logging.getLogger(__name__)

SHORTEST_S = 0.01
"""A verdict is shown for at least this long before the next one may end it (a shorter ``pulse_ms``
excepted): long enough for a PLC's input filter and its cycle."""
GAP_S = 0.01
"""Both outputs are inactive for this long between two verdicts, so that each is an edge."""
MOST_WAITING = 50
"""Verdicts that may wait to be shown: a second, at the fastest."""

_DEVICES = Path("/dev")


# ---- the edge ----------------------------------------------------------------------------------


class Debounce:
    """Tells the edges after which the level held from those that were a bounce.

    Without clock or thread: it is told of every change of the level, with its instant, and judges
    by the instants alone, however late it is told.
    """

    def __init__(self, level: bool, hold_ns: int) -> None:
        """``level``: at the beginning. ``hold_ns``: how long another must hold to be believed."""
        self.level = level
        self._hold_ns = hold_ns
        self._since_ns: int | None = None

    @property
    def due_ns(self) -> int | None:
        """When the edge that is in question will have held; None when none is."""
        return None if self._since_ns is None else self._since_ns + self._hold_ns

    def change(self, at_ns: int, level: bool) -> int | None:
        """The level became ``level``.

        Returns the instant of the edge before, where that one is seen only now to have held; the
        edge led to the other level than this change.
        """
        held_ns = None
        if self.due_ns is not None and level == self.level and at_ns >= self.due_ns:
            held_ns = self.settle()
        self._since_ns = at_ns if level != self.level else None
        return held_ns

    def settle(self) -> int:
        """The edge in question has held: its instant. `level` is from now on what it led to."""
        assert self._since_ns is not None
        held_ns, self._since_ns = self._since_ns, None
        self.level = not self.level
        return held_ns


class GpioEdge:
    """Calls back for each edge of the configured kind, after which the level held.

    Pin factories differ in what they mean by debouncing (lgpio reports a stable edge, at the end
    of the time; RPi.GPIO the first of a burst, and then nothing for a while; the mock pins do none
    at all), so that every change is taken as it comes, with the kernel's time, and `Debounce`
    decides. Where it cannot, because no further change came, the pin is read: a change that is
    still on its way must not make a glitch look like a part.
    """

    def __init__(self, settings: GpioTrigger, on_edge: Callable[[int], None]) -> None:
        """``on_edge`` is given the edge's own instant, `time.monotonic_ns`, on a thread that does
        nothing else; edges that come meanwhile wait.
        """
        self._settings = settings
        self._on_edge = on_edge
        self._device: Any = None
        self._factory: Any = None
        self._changes: queue.SimpleQueue[tuple[int, bool] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch the pin. A level that holds already is no edge.

        Raises GpioUnusable.
        """
        settings = self._settings
        pull = settings.pull or ("down" if settings.edge == "rising" else "up")
        self._changes = queue.SimpleQueue()
        try:
            with _in_words("trigger.pin", settings.pin):
                self._device = _input_device(settings.pin, pull)
                self._factory = self._device.pin_factory
                debounce = Debounce(self._level(), round(settings.debounce_ms * 1e6))
                self._device.pin.when_changed = self._changed
        except GpioUnusable:
            self.stop()
            raise
        self._thread = threading.Thread(
            target=self._run, args=(debounce,), name="gpio-edge", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Edges that have held until now are still called back for; then no more."""
        if self._thread is not None:
            self._device.pin.when_changed = None
            self._changes.put(None)
            self._thread.join()
            self._thread = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _changed(self, ticks: Any, state: Any) -> None:
        """Called by the pin factory's own thread, for both kinds of edge."""
        age_s = self._factory.ticks_diff(self._factory.ticks(), ticks)
        # Kernels before 5.7 stamp edges with the time of day: then the edge is taken to be now.
        self._changes.put((time.monotonic_ns() - round(max(age_s, 0.0) * 1e9), bool(state)))

    def _run(self, debounce: Debounce) -> None:
        due_ns: int | None = None
        while True:
            try:
                wait_s = None if due_ns is None else max(0, due_ns - time.monotonic_ns()) / 1e9
                change = self._changes.get(timeout=wait_s)
            except queue.Empty:
                self._settle(debounce)
                due_ns = None  # unless it is settled, the change that is on its way decides
                continue
            if change is None:
                if debounce.due_ns is not None and debounce.due_ns <= time.monotonic_ns():
                    self._settle(debounce)
                return
            at_ns, level = change
            held_ns = debounce.change(at_ns, level)
            if held_ns is not None:
                self._report(held_ns, not level)
            due_ns = debounce.due_ns

    def _settle(self, debounce: Debounce) -> None:
        """The time of the edge in question is over: it has held if the pin shows so."""
        try:
            held = self._level() != debounce.level
        except Exception:
            _logger.exception("GPIO %d of the trigger cannot be read", self._settings.pin)
            return
        if held:
            self._report(debounce.settle(), debounce.level)

    def _level(self) -> bool:
        return bool(self._device.pin.state)

    def _report(self, edge_ns: int, level: bool) -> None:
        if level != (self._settings.edge == "rising"):
            return
        try:
            self._on_edge(edge_ns)
        except Exception:
            _logger.exception("unexpected error while taking an edge of the trigger's pin")


# ---- the outputs -------------------------------------------------------------------------------

Shown = Literal["ok", "ng"]


class VerdictPulses:
    """Which of the outputs for verdicts is active when.

    Without clock, thread or pins: times are seconds of any one clock. Verdicts are shown one after
    the other, in order, never two at once, with a gap between: two alike are two edges. One that
    waits ends the one that is shown, though not before that has been seen (`SHORTEST_S`).
    """

    def __init__(self, lengths_s: Mapping[Shown, float]) -> None:
        """``lengths_s``: of the outputs there are; infinite: until the next trigger."""
        self.active: Shown | None = None
        self._lengths_s = lengths_s
        self._waiting: deque[Shown] = deque()
        self._since_s = 0.0
        self._until_s = 0.0
        self._free_s = -math.inf

    @property
    def waiting(self) -> bool:
        """Whether a verdict has still to be shown."""
        return bool(self._waiting)

    def show(self, verdict: Shown) -> bool:
        """A verdict comes.

        Returns False where so many wait that the oldest two became one, NG if either was: a pulse
        that comes ever later would belong to another part.
        """
        self._waiting.append(verdict)
        if len(self._waiting) <= MOST_WAITING:
            return True
        oldest: set[Shown] = {self._waiting.popleft(), self._waiting.popleft()}
        self._waiting.appendleft("ng" if "ng" in oldest else "ok")
        return False

    def trigger(self) -> None:
        """A part comes: what is held until then ends."""
        if math.isinf(self._until_s):
            self._until_s = self._since_s + SHORTEST_S

    def advance(self, now_s: float) -> float | None:
        """Brings `active` up to date; returns when it is to be called again, None for never."""
        while self._waiting and self._waiting[0] not in self._lengths_s and self.active is None:
            self._waiting.popleft()  # shown by the other output's being inactive
        if self.active is not None:
            if self._waiting:
                self._until_s = min(self._until_s, self._since_s + SHORTEST_S)
            if now_s < self._until_s:
                return None if math.isinf(self._until_s) else self._until_s
            self.active = None
            self._free_s = now_s + GAP_S
            return self.advance(now_s)
        if not self._waiting:
            return None
        if now_s < self._free_s:
            return self._free_s
        self.active = self._waiting.popleft()
        self._since_s = now_s
        self._until_s = now_s + self._lengths_s[self.active]
        return self.advance(now_s)


Order = Verdict | tuple[Literal["ready", "busy"], bool] | Literal["close"]


class GpioOutputs:
    """The outputs OK, NG, BUSY and READY, as many of them as are configured.

    Every call only leaves an order for the thread that owns the pins, so that none ever waits for
    one. Orders are carried out in turn: after ``verdict`` and then ``busy(False)``, BUSY becomes
    inactive when the verdict stands at its output, not before. If that thread fails, all outputs
    become inactive, READY among them.
    """

    def __init__(self, settings: OutputSettings) -> None:
        self._outputs: dict[str, LevelOutput] = {
            name: output
            for name in ("ok", "ng", "ready", "busy")
            if (output := getattr(settings, name)) is not None
        }
        self._lengths_s: dict[Shown, float] = {}
        if settings.ok is not None:
            self._lengths_s["ok"] = _length_s(settings.ok)
        if settings.ng is not None:
            self._lengths_s["ng"] = _length_s(settings.ng)
        self._devices: dict[str, Any] = {}
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Claim the pins; all are inactive. Without any configured this does nothing.

        Raises GpioUnusable.
        """
        if not self._outputs:
            return
        self._orders = queue.SimpleQueue()
        try:
            for name, output in self._outputs.items():
                with _in_words(f"outputs.{name}.pin", output.pin):
                    self._devices[name] = _output_device(output)
        except GpioUnusable:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="gpio-outputs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """All outputs are inactive at once, whatever was to be shown. The pins are inputs then."""
        if self._thread is not None:
            self._orders.put("close")
            self._thread.join()
            self._thread = None
        self._release()

    def ready(self, on: bool) -> None:
        """The station can judge, or cannot."""
        self._order(("ready", on))

    def busy(self, on: bool) -> None:
        """A trigger is not yet answered, or all are. ``on`` ends what is held until a trigger."""
        self._order(("busy", on))

    def verdict(self, verdict: Verdict) -> None:
        """OK for PASS; NG for everything else, since a part that was not judged is not good."""
        self._order(verdict)

    def _order(self, order: Order) -> None:
        thread = self._thread  # which another one may be closing
        if thread is not None and thread.is_alive():
            self._orders.put(order)

    def _run(self) -> None:
        try:
            self._carry_out_orders()
        except Exception:
            _logger.exception("the GPIO outputs failed and are inactive now; READY is too")
        finally:
            self._set_all_inactive()

    def _carry_out_orders(self) -> None:
        pulses = VerdictPulses(self._lengths_s)
        ready = busy = unanswered = behind = False
        due_s: float | None = None
        while True:
            match self._next_order(due_s):
                case "close":
                    return
                case ("ready", on):
                    ready = on
                case ("busy", on):
                    unanswered = on
                    if on:
                        pulses.trigger()
                case Verdict() as verdict:
                    fits = pulses.show("ok" if verdict is Verdict.PASS else "ng")
                    if not fits and not behind:
                        _logger.warning(
                            "verdicts come faster than the outputs ok and ng can show them: some "
                            "are shown two as one, NG if either is"
                        )
                    behind = behind or not fits
            due_s = pulses.advance(time.monotonic())
            behind = behind and pulses.waiting
            busy = unanswered or (busy and pulses.waiting)
            self._set("ok", pulses.active == "ok")
            self._set("ng", pulses.active == "ng")
            self._set("ready", ready)
            self._set("busy", busy)

    def _next_order(self, due_s: float | None) -> Order | None:
        """None when something is due first."""
        wait_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        try:
            return self._orders.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _set(self, name: str, active: bool) -> None:
        device = self._devices.get(name)
        if device is not None and bool(device.value) != active:
            device.value = active

    def _set_all_inactive(self) -> None:
        for name in self._devices:
            try:
                self._set(name, False)
            except Exception:
                _logger.exception("the GPIO output %s could not be made inactive", name)

    def _release(self) -> None:
        for name, device in self._devices.items():
            try:
                device.close()
            except Exception:
                _logger.exception("the pin of the GPIO output %s could not be given back", name)
        self._devices.clear()


def _length_s(output: PulseOutput) -> float:
    return output.pulse_ms / 1000 if output.pulse_ms else math.inf


# ---- gpiozero and lgpio ------------------------------------------------------------------------


def _input_device(pin: int, pull: str) -> Any:
    factory = _pin_factory()
    import gpiozero

    pull_up = {"up": True, "down": False, "none": None}[pull]
    active_state = True if pull_up is None else None  # gpiozero wants it then; levels are read raw
    return gpiozero.InputDevice(
        pin, pull_up=pull_up, active_state=active_state, pin_factory=factory
    )


def _output_device(output: LevelOutput) -> Any:
    """An inactive one."""
    factory = _pin_factory()
    import gpiozero

    return gpiozero.OutputDevice(
        output.pin, active_high=output.active == "high", pin_factory=factory
    )


def _pin_factory() -> Any:
    """That of this process, loaded the first time."""
    import gpiozero

    if gpiozero.Device.pin_factory is None:
        _load_pin_factory(gpiozero.Device)
    return gpiozero.Device.pin_factory


def _load_pin_factory(device: Any) -> None:
    name = os.environ.setdefault("GPIOZERO_PIN_FACTORY", "lgpio")
    with _folder_for_lgpio():
        device.ensure_pin_factory()
    if name.lower() == "lgpio":
        device.pin_factory.pin_class = _lgpio_pin()


@contextlib.contextmanager
def _folder_for_lgpio() -> Iterator[None]:
    """While it is imported, lgpio makes a named pipe in the folder ``LG_WD`` (or else in the
    working directory, which a service may not write to), opens it, and makes that folder the
    process's working directory. The pipe needs no name any longer then, nor the folder to stay.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="inspectd-lgpio-") as folder:
        os.environ["LG_WD"] = folder
        try:
            yield
        finally:
            del os.environ["LG_WD"]
            os.chdir(before)


def _lgpio_pin() -> Any:
    """A pin as gpiozero's, but without the instant at which an output is low before it is given its
    level: for an output that is active low, that would be a verdict nobody reached.
    """
    import lgpio
    from gpiozero.pins.lgpio import LGPIOPin

    class Pin(LGPIOPin):  # type: ignore[misc]  # gpiozero has no types
        def output_with_state(self, state: bool) -> None:
            lgpio.gpio_claim_output(self.factory._handle, self._number, int(state))

    return Pin


@contextlib.contextmanager
def _in_words(key: str, pin: int) -> Iterator[None]:
    """What gpiozero, lgpio and the system raise, as GpioUnusable."""
    try:
        yield
    except Exception as error:
        raise GpioUnusable(f"{key}: GPIO {pin} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """For a technician: what is wrong, and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name in {"gpiozero", "lgpio"}:
        return (
            f"the Python package {error.name} is missing; install it: pip install 'inspectd[gpio]' "
            "(on Raspberry Pi OS: apt install python3-gpiozero python3-lgpio)"
        )
    import gpiozero

    words: tuple[tuple[bool, str], ...] = (
        (
            isinstance(error, ImportError),
            f"{error}; correct the environment variable GPIOZERO_PIN_FACTORY, or remove it",
        ),
        (isinstance(error, gpiozero.PinInvalidPin), "this Raspberry Pi has no such pin"),
        (
            isinstance(error, gpiozero.PinFixedPull),
            "a resistor on the board pulls it up; set trigger.pull: up, or take another pin",
        ),
        (
            isinstance(error, gpiozero.GPIOPinInUse),
            "this process uses it already for something else",
        ),
        (
            isinstance(error, gpiozero.PinUnknownPi) or "gpiochip" in str(error),
            _no_chip() or f"this is no Raspberry Pi that gpiozero knows ({error})",
        ),
        (
            "busy" in str(error),
            "another program or a device tree overlay holds it; `gpioinfo` tells which",
        ),
    )
    return next((text for applies, text in words if applies), str(error))


def _no_chip() -> str:
    """Why the GPIO as a whole cannot be opened; empty when it can."""
    chips = sorted(_DEVICES.glob("gpiochip*"))
    if not chips:
        return (
            f"this machine has none (no {_DEVICES}/gpiochip*); it takes a Raspberry Pi, and a "
            "container or a sandbox must be allowed to see the device"
        )
    if not any(os.access(chip, os.R_OK | os.W_OK) for chip in chips):
        return (
            f"no right to use {chips[0]}; add the user that runs inspectd to the group gpio (sudo "
            "usermod -aG gpio USER) and start it again"
        )
    return ""
