"""Looking without judging for the line: what a frame is like, for whoever mounts the camera."""

from __future__ import annotations

import threading
from datetime import datetime
from math import isfinite

import msgspec

from inspectd.imaging import preprocess
from inspectd.inspector import Inspector
from inspectd.payload import VerdictName
from inspectd.records import Exposure, Frame, PictureHealth, Pose, View
from inspectd.settings import Program, Settings
from inspectd.teaching import learn_program

UNITS = {"rotation": "deg"}
"""Of what the gate measures; the others are shares and ratios."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure of a picture, against what is usual and what is allowed.

    Attributes:
        unit: ``px`` for frame pixels, ``deg`` for degrees; empty for shares and ratios.
        usual: the references' own; None where there is none to compare with.
        low, high: the bounds in force; None where there is none.
    """

    value: float
    unit: str = ""
    usual: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def word(self) -> str:
        """``ok``, ``low`` or ``high``; empty where nothing is demanded."""
        if self.low is not None and self.value < self.low:
            return "low"
        if self.high is not None and self.value > self.high:
            return "high"
        return "" if self.low is None and self.high is None else "ok"


class Look(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one frame is like.

    Attributes:
        frame: the camera's name of the picture.
        captured_at: UTC.
        width, height: of the picture as the camera gives it, in its own pixels.
        view: what of the frame it shows, in frame pixels; None for the whole, pixel by pixel.
        exposure: as the camera measured it; None where it tells nothing.
        figures: by name. ``brightness``, ``contrast``, ``black`` and ``white`` whenever there is a
            picture of the region of interest, ``focus`` where there is anything to be sharp in it;
            with references all that the gate compares with them (see `imaging.gate.compare` and
            `compare_place`), and ``dx`` and ``dy`` where the part was found; ``score`` where it was
            judged.
        focus_ratio: sharpness over the references' median; None without references.
        verdict: what the picture would be given, with its ``reason`` and ``detail``; nothing was
            asked of the line, and none is given.
    """

    frame: str
    captured_at: datetime
    width: int
    height: int
    view: View | None = None
    exposure: Exposure | None = None
    figures: dict[str, Figure]
    focus_ratio: float | None = None
    verdict: VerdictName
    reason: str = ""
    detail: str = ""


class Looker:
    """Looks at frames by the programs of a station, each learned when it is first asked for.

    Has inspectors of its own, since each serves one thread; may be asked from any thread.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inspectors: dict[str, Inspector] = {}
        self._lock = threading.Lock()

    def adopt(self, settings: Settings) -> None:
        """Follow other settings."""
        with self._lock:
            if settings.programs != self._settings.programs:
                self._inspectors.clear()
            self._settings = settings

    def look(self, frame: Frame, program: str) -> Look:
        """What a frame is like for a program, one of the settings' own."""
        with self._lock:
            if program not in self._inspectors:
                self._inspectors[program] = learn_program(self._settings, program).inspector
            return look_at(frame, self._inspectors[program])

    def forget(self, program: str) -> None:
        """Learn a program anew when it is next asked for: its references have changed."""
        with self._lock:
            self._inspectors.pop(program, None)


def look_at(frame: Frame, inspector: Inspector) -> Look:
    """Measure everything about a frame that can be measured, fit to be judged or not.

    Args:
        frame: of any size and content.
        inspector: of the program, taught or not; serves one thread.
    """
    inspection = inspector.inspect(frame.pixels, frame.view)
    health = inspection.health
    if health is None:  # of another size than the references: nothing compares with them
        untaught = Inspector(inspector.program, ())
        health = untaught.inspect(frame.pixels, frame.view).health
    figures = _of_picture(health, inspector.program) if health else {}
    if "shift" in figures and inspection.alignment:
        extent = preprocess.shown(frame.pixels, inspector.program.roi, frame.view)
        figures |= _of_place(inspection.alignment.pose, extent, inspector.program)
    if inspection.score is not None:
        figures["score"] = Figure(inspection.score, high=1.0)
    height, width = frame.pixels.shape[:2]
    return Look(
        frame=frame.name,
        captured_at=frame.captured_at,
        width=width,
        height=height,
        view=frame.view,
        exposure=frame.exposure,
        # JSON has no word for a figure that is no number.
        figures={name: _rounded(one) for name, one in figures.items() if isfinite(one.value)},
        focus_ratio=_ratio(figures.get("focus")),
        verdict=inspection.verdict.value,
        reason=inspection.reason.value if inspection.reason else "",
        detail=inspection.detail,
    )


def _of_picture(health: PictureHealth, program: Program) -> dict[str, Figure]:
    """The picture's own figures, and all that is compared with the references."""
    bounds = program.health
    figures = {
        "brightness": Figure(
            health.brightness, low=bounds.min_brightness, high=bounds.max_brightness
        ),
        "contrast": Figure(health.contrast, low=bounds.min_contrast),
        "black": Figure(health.black, high=bounds.max_clipped),
        "white": Figure(health.white, high=bounds.max_clipped),
        "focus": Figure(health.focus),
    }
    for measure in health.measures:
        figures[measure.name] = Figure(
            measure.value,
            UNITS.get(measure.name, ""),
            usual=measure.usual,
            low=measure.low,
            high=measure.high,
        )
    if health.contrast < bounds.min_contrast:
        del figures["focus"]
    if program.alignment.mode == "none":
        figures.pop("match", None)  # which was not measured
    return figures


def _of_place(pose: Pose, extent: View, program: Program) -> dict[str, Figure]:
    """The shift in frame pixels, to either side; its bounds are those of the shift as a whole."""
    reach = program.alignment.shift_limit * max(extent.width, extent.height)
    return {
        "dx": Figure(pose.dx, "px", usual=0.0, low=-reach, high=reach),
        "dy": Figure(pose.dy, "px", usual=0.0, low=-reach, high=reach),
    }


def _ratio(figure: Figure | None) -> float | None:
    return round(figure.value / figure.usual, 4) if figure and figure.usual else None


def _rounded(figure: Figure) -> Figure:
    """To what means anything."""
    return Figure(
        round(figure.value, 4),
        figure.unit,
        usual=_round(figure.usual),
        low=_round(figure.low),
        high=_round(figure.high),
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
