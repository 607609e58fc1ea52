"""The records that the layers hand to each other: frames, triggers, inspections.

Frozen, without behaviour beyond small derived values. Durations are monotonic nanoseconds or
milliseconds; instants that leave the process are UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

GreyImage: TypeAlias = NDArray[np.uint8]
"""uint8 (height, width)."""
Image: TypeAlias = NDArray[np.uint8]
"""uint8 (height, width) grey or (height, width, 3) in OpenCV's order blue, green, red."""
FloatMap: TypeAlias = NDArray[np.float32]
"""float32 (rows, cols)."""


class Verdict(StrEnum):
    """What a trigger is answered with; nothing else exists."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_JUDGED = "NOT_JUDGED"


class Reason(StrEnum):
    """Why a verdict is not PASS."""

    ABOVE_LIMIT = "above limit"
    TOO_DARK = "too dark"
    TOO_BRIGHT = "too bright"
    NO_CONTRAST = "no contrast"
    CLIPPED = "clipped"
    OUT_OF_FOCUS = "out of focus"
    LIGHT_CHANGED = "light changed"
    WRONG_SIZE = "wrong size"
    MISPLACED = "part not in place"
    NOT_IN_VIEW = "part not in view"
    NO_PART = "no part"
    TOO_FEW_REFERENCES = "too few references"
    NOT_FINITE = "score not finite"
    CAMERA_TIMEOUT = "camera timeout"
    CAMERA_LOST = "camera lost"
    NOT_SETTLED = "exposure not settled"
    FROZEN = "frozen picture"
    OVERRUN = "overrun"
    STALE_TRIGGER = "stale trigger"
    STOPPING = "stopping"
    JOURNAL_UNAVAILABLE = "journal unavailable"
    INTERNAL_ERROR = "internal error"


class Defect(StrEnum):
    """What the simulated camera can do to its part."""

    MISSING_PIN = "missing_pin"
    BENT_PIN = "bent_pin"
    FOREIGN_OBJECT = "foreign_object"


@dataclass(frozen=True, slots=True)
class Truth:
    """What a simulated frame really shows.

    Attributes:
        defect: None for a good part, and without any.
        box: x0, y0, x1, y1 of the defect in frame pixels; None without.
        empty: there is no part.
    """

    defect: Defect | None = None
    box: tuple[float, float, float, float] | None = None
    empty: bool = False

    @property
    def good(self) -> bool:
        return self.defect is None and not self.empty


@dataclass(frozen=True, slots=True)
class View:
    """The part of the whole frame that a picture shows, in frame pixels.

    A camera may cut out what is of interest and reduce it before the picture is copied; places in
    verdicts and settings stay in pixels of the whole frame.
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """How a picture was exposed, as the camera itself measured it; None where it does not tell.

    Attributes:
        exposure_us: exposure time in microseconds.
        gain: analogue gain.
        digital_gain: what the camera multiplied in after the sensor.
        white_balance: gains of red and blue.
        temperature_c: of the sensor.
    """

    exposure_us: float | None = None
    gain: float | None = None
    digital_gain: float | None = None
    white_balance: tuple[float, float] | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture, copied out of the camera's buffer.

    Attributes:
        pixels: uint8 (height, width) or (height, width, 3) in the order blue, green, red.
        name: the camera's own name of the picture: a file name, or the frame's number.
        captured_at: UTC.
        captured_ns: `time.monotonic_ns` at the end of the exposure.
        copied_ns: `time.monotonic_ns` when the pixels had been copied out of the camera's buffer.
        view: what the pixels show; None for the whole frame, pixel by pixel.
        exposure: as the camera measured it; None where it tells nothing.
        whole: the same view at the camera's full resolution, uint8 (height, width) or (height,
            width, 3), where it was asked for and is more than `pixels`.
        truth: what the frame shows, where the camera knows it; never read by the inspector.
    """

    pixels: Image
    name: str
    captured_at: datetime
    captured_ns: int
    copied_ns: int
    view: View | None = None
    exposure: Exposure | None = None
    whole: Image | None = None
    truth: Truth | None = None


class TriggerSource(StrEnum):
    """What asked for a verdict."""

    INTERVAL = "interval"
    CONTINUOUS = "continuous"
    MQTT = "mqtt"
    GPIO = "gpio"

    @property
    def from_outside(self) -> bool:
        """Whether someone waits for the answer, whatever becomes of the station."""
        return self in {TriggerSource.MQTT, TriggerSource.GPIO}


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Trigger:
    """One demand for a verdict.

    Attributes:
        requested_at: UTC.
        requested_ns: `time.monotonic_ns`.
        delay_ns: how long after the request the part is in front of the camera.
        part_id: the part's own id as the requester gave it; echoed in the verdict.
        transaction: the requester's name for this request; the same one asked again gets the
            same answer.
        response_topic: MQTT 5 response topic, where the requester gave one.
        correlation_data: MQTT 5 correlation data, echoed.
        program: the one in force when it was asked, which judges it; None for the one in force
            when its turn comes.
        queued: it waited at the broker, nobody knows for how long: the part is gone.
        sent_after_ns: `time.monotonic_ns` before which it was not sent, where it may have waited
            for a moment on its way; None: it came at once.
        acknowledge: called when it is answered; from then on the requester need not ask again.
    """

    source: TriggerSource
    requested_at: datetime
    requested_ns: int
    delay_ns: int = 0
    part_id: str | None = None
    transaction: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    program: str | None = None
    queued: bool = False
    sent_after_ns: int | None = None
    acknowledge: Callable[[], None] = field(default=_nothing, compare=False, repr=False)

    @property
    def due_ns(self) -> int:
        """`time.monotonic_ns` from which on a picture shows the part."""
        return self.requested_ns + self.delay_ns

    @property
    def stale_from_ns(self) -> int:
        """`time.monotonic_ns` from which on its age counts: as old as it may be."""
        return self.due_ns if self.sent_after_ns is None else min(self.due_ns, self.sent_after_ns)


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a picture, against what is usual and what is allowed.

    Attributes:
        name: what is measured, such as ``focus``.
        usual: the references' median.
        low, high: the bounds in force; None where there is none.
    """

    name: str
    value: float
    usual: float
    low: float | None = None
    high: float | None = None

    @property
    def within(self) -> bool:
        """Whether it keeps to its bounds; a value that is no number keeps to none."""
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return above and below


@dataclass(frozen=True, slots=True)
class PictureHealth:
    """Measurements of the picture itself, apart from the part.

    Attributes:
        brightness: mean grey value, 0 to 1.
        contrast: standard deviation of the grey values, 0 to 0.5.
        black, white: shares of the pixels at either end of the scale, before the reduction.
        focus: sharpness before the reduction, without unit (see `imaging.gate.focus_measure`).
        measures: all that is compared with the references; empty without any.
    """

    brightness: float
    contrast: float
    black: float
    white: float
    focus: float
    measures: tuple[Measure, ...] = ()

    def measure(self, name: str) -> Measure | None:
        """One of the measures; None where it was not compared."""
        return next((measure for measure in self.measures if measure.name == name), None)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Where the patches of a map lie in the inspected picture.

    Patch (i, j) covers the rows from i * step to i * step + extent, the columns likewise; all pairs
    are (rows, columns) in pixels of the inspected picture.
    """

    rows: int
    cols: int
    step: tuple[int, int]
    extent: tuple[int, int]

    def centre(self, row: float, column: float) -> tuple[float, float]:
        """The x and y of a patch's centre, where 0 is the edge of the first pixel."""
        return (
            column * self.step[1] + self.extent[1] / 2,
            row * self.step[0] + self.extent[0] / 2,
        )


@dataclass(frozen=True, slots=True)
class Pose:
    """How a part lies in the inspected picture, against the references.

    What the references show at x lies in the picture at R(rotation) (x - c) + c + shift, where c is
    the middle of the picture and x and y point right and down.

    Attributes:
        dx: shift to the right, pixels of the inspected picture.
        dy: shift down.
        rotation: radians, from the x axis towards the y axis (clockwise for the eye).
    """

    dx: float = 0.0
    dy: float = 0.0
    rotation: float = 0.0


@dataclass(frozen=True, slots=True)
class Alignment:
    """What the adjustment of the part's place came to.

    Attributes:
        pose: as adjusted; zero where no adjustment improved the match.
        match: correlation with the references' common picture after the adjustment, -1 to 1.
        match_before: the same without it.
        within: whether the part was found within the allowed shift and rotation.
    """

    pose: Pose
    match: float
    match_before: float
    within: bool


@dataclass(frozen=True, slots=True)
class RegionScore:
    """How one named region of the program came out; ``score`` is in units of its own limit."""

    name: str
    score: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Peak:
    """The most abnormal place: frame pixels (the centre of the patch) and its score."""

    x: float
    y: float
    score: float


@dataclass(frozen=True, slots=True)
class Blob:
    """A connected place above the limit: its box in frame pixels and its largest score."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """The judgement of one frame by one program.

    Attributes:
        reason: None exactly when the verdict is PASS.
        detail: the figures behind the reason, for a person.
        score: abnormality in units of the limit, 1.0 is the limit; None when not judged.
        limit: the limit at the peak, in the method's raw units, the thresholds included.
        blobs: the connected places above the limit, the worst first.
        map: float32 (rows, cols) in units of the limit, each patch by its region's threshold,
            ignored patches 0; None when not judged.
        picture: uint8 (height, width), the reduced grey picture that was judged, aligned; None when
            the frame could not be reduced.
        alignment: how the part lay, in frame pixels; None when it was not looked for.
        timings_ms: stage name to milliseconds.
    """

    verdict: Verdict
    reason: Reason | None = None
    detail: str = ""
    score: float | None = None
    limit: float | None = None
    regions: tuple[RegionScore, ...] = ()
    peak: Peak | None = None
    blobs: tuple[Blob, ...] = ()
    map: FloatMap | None = None
    picture: GreyImage | None = None
    health: PictureHealth | None = None
    alignment: Alignment | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """What is left to the limit, in units of the limit; negative above it."""
        return None if self.score is None else 1.0 - self.score
