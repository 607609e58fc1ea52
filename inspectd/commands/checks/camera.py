"""The camera: does it deliver, is its exposure locked, is its picture fit to be judged?

Where the service runs, it owns the camera, and is asked for its pictures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from inspectd.camera import Camera
from inspectd.camera.factory import make_camera
from inspectd.commands.checks import (
    Examination,
    Finding,
    NotChecked,
    error,
    ok,
    teaching,
    warning,
)
from inspectd.control import LookRequest, ask
from inspectd.errors import CameraError, ControlError, EndOfFrames, NotCompiled
from inspectd.imaging.frozen import same_picture
from inspectd.inspector import Inspector
from inspectd.looking import Look, look_at
from inspectd.records import Exposure, Frame, Reason
from inspectd.settings import OpencvCamera, Picamera2Camera, Settings

TRIGGERED = 8
"""Pictures to measure the latency with."""
IN_A_ROW = 12
"""Further ones, to measure the rate with."""
LOOKS = 3
"""Pictures that a running service is asked for."""
FIRST_PICTURE_S = 10.0
"""A camera may take so long until its exposure has settled."""
MEASURING_S = 6.0
SLOW = 0.9
"""Share of the rate set, below which the camera is too slow."""
TOLERANCE, STEP_US = 0.02, 100.0
"""Sensors know steps only: of gain, and lines of the picture; the driver itself is stricter."""
NO_PICTURE = "the camera gives no picture"
_OF_THE_PLACE = {"match", "shift", "dx", "dy", "rotation", "score"}
_OF_THE_PART = {Reason.ABOVE_LIMIT, Reason.MISPLACED, Reason.NOT_IN_VIEW, Reason.NO_PART}


@dataclass(frozen=True, slots=True)
class _Taken:
    """Pictures, and how they came.

    Attributes:
        latencies_ms: from the demand for a picture to its copy.
        rate: pictures a second; None where too few came to tell.
        frozen: whether two in a row were alike to the last pixel.
    """

    frames: Sequence[Frame]
    latencies_ms: Sequence[float]
    rate: float | None
    frozen: bool


def check_camera(known: Examination) -> Iterator[Finding]:
    """Whether there is one that delivers: size, rate, latency."""
    settings = known.settings
    if known.hidden:
        raise NotChecked(f"{known.hidden}, and may have the camera")
    if known.service is not None:
        yield _through_the_service(known, settings)
        return
    try:
        camera = make_camera(settings)
        with camera:
            taken = _take(camera, settings)
    except CameraError as refused:
        yield error("camera", str(refused))
        return
    known.exposures = [frame.exposure for frame in taken.frames]
    known.frame = taken.frames[-1]
    yield _delivery(taken, settings, live=camera.live)


def _through_the_service(known: Examination, settings: Settings) -> Finding:
    request = LookRequest(program=settings.station.program)
    looks: list[Look] = []
    while len(looks) < LOOKS:
        try:
            reply = ask(settings.control_socket, request)
        except ControlError as refused:
            return error("camera", str(refused))
        if reply is None or reply.look is None:
            return error("camera", "the service ended meanwhile", "see its log; then ask again")
        looks.append(reply.look)
    known.exposures = [look.exposure for look in looks]
    known.look = looks[-1]
    return ok(
        "camera",
        f"the service has it; {known.look.width} x {known.look.height} pixels; rate and latency "
        "are measured only while it does not run",
    )


def _take(camera: Camera, settings: Settings) -> _Taken:
    """Some pictures as a trigger would ask for them, then some in a row.

    Raises:
        CameraError: as `Camera.capture`, `EndOfFrames` only where not even one came.
    """
    usual_s = settings.station.capture_timeout_s
    frames = [camera.capture(time.monotonic_ns(), max(usual_s, FIRST_PICTURE_S))]
    latencies: list[float] = []
    row = frames[:]
    give_up_at = time.monotonic() + MEASURING_S
    try:
        while len(latencies) < TRIGGERED and time.monotonic() < give_up_at:
            asked = time.monotonic_ns()
            frames.append(camera.capture(asked, usual_s))
            latencies.append((frames[-1].copied_ns - asked) / 1e6)
        row = frames[-1:]
        while len(row) <= IN_A_ROW and time.monotonic() < give_up_at:
            row.append(camera.capture(_began(row[-1]), usual_s))
    except EndOfFrames:
        pass  # a short recording; it has shown what it can
    frames += row[1:]
    span_s = (row[-1].captured_ns - row[0].captured_ns) / 1e9
    return _Taken(
        frames=frames,
        latencies_ms=latencies,
        rate=(len(row) - 1) / span_s if span_s > 0 else None,
        frozen=any(same_picture(one.pixels, other.pixels) for one, other in pairwise(frames)),
    )


def _began(frame: Frame) -> int:
    """An instant just after the start of its exposure: the next frame began after it."""
    exposure_us = frame.exposure.exposure_us if frame.exposure else None
    return frame.captured_ns - round(1000 * (exposure_us or 0.0)) + 1


def _delivery(taken: _Taken, settings: Settings, *, live: bool) -> Finding:
    height, width = taken.frames[-1].pixels.shape[:2]
    wanted = settings.station.camera.rate
    told = [f"{width} x {height} pixels"]
    if taken.rate is not None:
        of = f" of the {wanted:g} set" if wanted else ""
        told.append(f"{taken.rate:.1f} frames/s{of}")
    if taken.latencies_ms:
        told.append(f"{median(taken.latencies_ms):.0f} ms from trigger to picture (median)")
    if live and taken.frozen and settings.station.frozen_after:
        return error(
            "camera",
            f"frozen picture: it gives the same one again, to the last pixel; {'; '.join(told)}",
            "unplug it and plug it in again; frozen_after: 0 for a camera without any noise",
        )
    if live and wanted and taken.rate is not None and taken.rate < SLOW * wanted:
        return warning(
            "camera",
            "; ".join(told),
            "set camera.rate to what it gives, or a smaller camera.width and camera.height; a "
            "long camera.exposure_us makes it slower too",
        )
    return ok("camera", "; ".join(told))


def check_exposure(known: Examination) -> Iterator[Finding]:
    """Whether each picture was exposed as the settings demand, and all alike."""
    match known.settings.station.camera:
        case Picamera2Camera() as camera:
            yield _locked(camera, _measured(known))
        case OpencvCamera() as camera:
            yield _fixed(camera, known)
        case _:
            yield ok("exposure", "not applicable: the pictures are not exposed now")


def _measured(known: Examination) -> Sequence[Exposure]:
    """Raises NotChecked when the camera has told nothing."""
    if not known.exposures:
        raise NotChecked(known.hidden or NO_PICTURE)
    told = [exposure for exposure in known.exposures if exposure is not None]
    if len(told) < len(known.exposures):
        raise NotChecked("the camera does not tell how it exposes")
    return told


def _locked(camera: Picamera2Camera, exposures: Sequence[Exposure]) -> Finding:
    wrong = sorted({key for one in exposures for key in _deviations(camera, one)})
    told = "; ".join(dict.fromkeys(_in_words(one) for one in exposures))
    if wrong:
        return error(
            "exposure",
            f"not as set ({', '.join(wrong)}): {told}",
            "choose values that the sensor has: see its data sheet",
        )
    gains = [one.digital_gain for one in exposures if one.digital_gain is not None]
    if any(abs(gain - 1.0) > TOLERANCE for gain in gains):
        return warning(
            "exposure",
            f"locked, but the camera multiplies afterwards: {told}",
            "choose camera.exposure_us and camera.gain in steps that the sensor has, and "
            "camera.white_balance of 1 or more",
        )
    return ok("exposure", f"locked: {told}")


def _in_words(one: Exposure) -> str:
    figures = [
        (one.exposure_us, "{:.0f} us"),
        (one.gain, "gain {:.2f}"),
        (one.digital_gain, "digital gain {:.2f}"),
    ]
    words = [form.format(value) for value, form in figures if value is not None]
    if one.white_balance is not None:
        words.append("white balance [{:.2f}, {:.2f}]".format(*one.white_balance))
    return ", ".join(words)


def _deviations(camera: Picamera2Camera, one: Exposure) -> Iterator[str]:
    """The settings' keys that the camera does not keep to; what it does not tell is none."""
    us = one.exposure_us
    if us is not None and abs(us - camera.exposure_us) > TOLERANCE * us + STEP_US:
        yield "camera.exposure_us"
    if one.gain is not None and abs(one.gain - camera.gain) > TOLERANCE * camera.gain:
        yield "camera.gain"
    for given, wanted in zip(one.white_balance or (), camera.white_balance, strict=False):
        if abs(given - wanted) > TOLERANCE * wanted:
            yield "camera.white_balance"


def _fixed(camera: OpencvCamera, known: Examination) -> Finding:
    automatic = [
        f"camera.{key}"
        for key in ("exposure_us", "white_balance_k")
        if getattr(camera, key) is None
    ]
    if automatic:
        return warning(
            "exposure",
            "the camera may set it anew for each picture, after the part's own brightness",
            f"set {' and '.join(automatic)}",
        )
    if not known.exposures:
        raise NotChecked(known.hidden or NO_PICTURE)
    times = {one.exposure_us for one in known.exposures if one is not None and one.exposure_us}
    if len(times) > 1:
        return error(
            "exposure",
            f"it varies: {min(times):.0f} to {max(times):.0f} us, {camera.exposure_us} are set",
            "this camera does not keep to camera.exposure_us: use another one",
        )
    told = (
        f"; the camera says {times.pop():.0f} us" if times else "; the camera tells nothing of it"
    )
    return ok("exposure", f"fixed to {camera.exposure_us} us{told}")


def check_picture(known: Examination) -> Iterator[Finding]:
    """Whether the picture itself is fit to be judged, by the program's bounds and references."""
    used = known.settings.station.program
    look, cold = known.look, False
    if look is None:
        if known.frame is None:
            raise NotChecked(known.hidden or NO_PICTURE)
        look, cold = _look(known, known.frame)
    told = ", ".join(
        f"{name} {figure.value:.2f}"
        + (f" (usual {figure.usual:.2f})" if figure.usual is not None else "")
        for name, figure in look.figures.items()
        if name not in _OF_THE_PLACE
    )
    if look.verdict == "PASS":
        yield ok("picture", told)
    elif look.reason in _OF_THE_PART:
        yield ok("picture", f"{told}; of the part: {look.reason}")
    elif look.reason == Reason.TOO_FEW_REFERENCES:
        why, fix = (
            ("the kernels are not compiled", "`inspectd warmup`")
            if cold
            else ("there are too few", teaching(used))
        )
        yield warning("picture", f"{told}; not compared with references: {why}", fix)
    else:
        yield error("picture", f"{look.reason}: {look.detail}")


def _look(known: Examination, frame: Frame) -> tuple[Look, bool]:
    """What a frame is like, and whether that was told without references for want of kernels."""
    try:
        return look_at(frame, known.lesson.inspector), False
    except NotCompiled:
        return look_at(frame, Inspector(known.settings.program, ())), True
