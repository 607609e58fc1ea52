"""How a frame was exposed: what libcamera's metadata say, held against what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inspectd.records import Exposure
from inspectd.settings import Picamera2Camera

_TOLERANCE = 0.02  # sensors know gains in steps of up to 0.1 dB, 1.2 %
_LINES = 2  # exposures are whole sensor lines, and some sensors add a part of one


@dataclass(frozen=True, slots=True)
class ExposureLock:
    """What every frame must have been exposed with; None for what this camera does not control.

    Attributes:
        line_us: the time of a sensor line, in whose steps exposures go.
        frame_us: from one frame to the next.
        white_balance: gains of red and blue.
    """

    exposure_us: float
    line_us: float
    gain: float | None = None
    white_balance: tuple[float, float] | None = None
    frame_us: float | None = None

    def faults(self, metadata: Mapping[str, Any]) -> list[str]:
        """What differs in a frame from what was asked for, in words; empty when it is settled."""
        return list(self._faults(metadata))

    def _faults(self, metadata: Mapping[str, Any]) -> Iterator[str]:
        seen = exposure_of(metadata)
        slack = max(_TOLERANCE * self.exposure_us, _LINES * self.line_us)
        if seen.exposure_us is None or abs(seen.exposure_us - self.exposure_us) > slack:
            yield f"exposure {_figure(seen.exposure_us)} us instead of {self.exposure_us:g}"
        if self.gain is not None and not _near(seen.gain, self.gain):
            yield f"gain {_figure(seen.gain)} instead of {self.gain:g}"
        digital, settled = seen.digital_gain, self._digital_gains(seen)
        if digital is not None and not any(_near(digital, fixed) for fixed in settled):
            yield f"digital gain {digital:.3g} instead of {settled[0]:.3g}"
        if self.white_balance is not None and seen.white_balance is not None:
            pairs = zip(seen.white_balance, self.white_balance, strict=True)
            if not all(_near(got, asked) for got, asked in pairs):
                red, blue = seen.white_balance
                yield (
                    f"white balance [{red:.3g}, {blue:.3g}] instead of "
                    f"[{self.white_balance[0]:g}, {self.white_balance[1]:g}]"
                )
        frame_us = metadata.get("FrameDuration")
        if (
            self.frame_us is not None
            and frame_us is not None
            and not _near(frame_us, self.frame_us)
        ):
            yield f"{1e6 / frame_us:.4g} frames per second instead of {1e6 / self.frame_us:.4g}"

    def _digital_gains(self, seen: Exposure) -> tuple[float, ...]:
        """What a settled camera may report, with this exposure.

        libcamera makes up for what rounding to whole lines and gain steps takes, so that short
        exposures keep a digital gain of their own. Colours cannot be multiplied by less than 1, so
        it lifts them all until none is; its versions differ in whether they count that.
        """
        lifted = 1.0 / min(1.0, *(self.white_balance or (1.0,)))
        lost = 1.0
        if seen.exposure_us and seen.gain and self.gain is not None:
            lost = max(1.0, self.exposure_us * self.gain / (seen.exposure_us * seen.gain))
        return 1.0, lost, lifted, lost * lifted


def exposure_of(metadata: Mapping[str, Any]) -> Exposure:
    """What libcamera's metadata of a frame say about its exposure."""
    gains = metadata.get("ColourGains")
    return Exposure(
        exposure_us=metadata.get("ExposureTime"),
        gain=metadata.get("AnalogueGain"),
        digital_gain=metadata.get("DigitalGain"),
        white_balance=None if gains is None else (gains[0], gains[1]),
        temperature_c=metadata.get("SensorTemperature"),
    )


def out_of_reach(settings: Picamera2Camera, controls: Mapping[str, tuple[Any, Any, Any]]) -> str:
    """What the settings ask beyond the camera's limits, in words; empty when it can do all.

    Args:
        settings: what is asked for.
        controls: least, largest and usual value of each libcamera control, in the sensor mode of
            the settings. A limit that is absent or 0 is unknown.
    """
    size = f"{settings.width}x{settings.height}"
    shortest, longest, _ = controls.get("FrameDurationLimits", (None, None, None))
    rates = (1e6 / longest if longest else None, 1e6 / shortest if shortest else None)
    return "; ".join(
        [
            *_beyond("rate", settings.rate, rates, f"frames per second at {size}"),
            *_beyond("exposure_us", settings.exposure_us, controls.get("ExposureTime"), "us"),
            *_beyond("gain", settings.gain, controls.get("AnalogueGain"), ""),
        ]
    )


def on_monotonic_clock(stamp_ns: int, monotonic_ns: int, boottime_ns: int) -> int:
    """A sensor's timestamp in `time.monotonic_ns`.

    libcamera promises CLOCK_BOOTTIME, but on the Raspberry Pi the kernel stamps with
    CLOCK_MONOTONIC; they differ by the time that the machine was suspended. A stamp that would lie
    in the future by the latter is one of the former.

    Args:
        stamp_ns: of a frame that has arrived.
        monotonic_ns: CLOCK_MONOTONIC now.
        boottime_ns: CLOCK_BOOTTIME now.
    """
    return stamp_ns if stamp_ns <= monotonic_ns else stamp_ns - (boottime_ns - monotonic_ns)


def _beyond(key: str, value: float, limits: Any, unit: str) -> Iterator[str]:
    least, largest = (limits or (None, None))[:2]
    slack = _TOLERANCE * value
    if (least and value < least - slack) or (largest and value > largest + slack):
        bounds = " to ".join(f"{round(bound, 2):.10g}" for bound in (least, largest) if bound)
        yield f"{key} cannot be {value:g}: this camera does {bounds} {unit}".strip()


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _TOLERANCE * wanted


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"
