"""What can be set: the types of the station file and of the program files.

Frozen records; their field names, types, bounds and descriptions are the one source for the
checker (`inspectd.config`), for the JSON Schemas and for the examples in ``config/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from inspectd.errors import PermanentError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
NAME_RULE = "letters, digits, '-' and '_', starting with a letter or digit; at most 64"

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description=NAME_RULE)]
Fraction = Annotated[
    float, Meta(ge=0.0, le=1.0, description="a number from 0 to 1", extra={"unit": "share"})
]
PixelPosition = Annotated[int, Meta(ge=0, description="frame pixels", extra={"unit": "px"})]
PixelSize = Annotated[int, Meta(ge=1, description="frame pixels", extra={"unit": "px"})]

SOCKET_NAME = "control.sock"
CREDENTIALS = "$CREDENTIALS_DIRECTORY"
"""As it stands in the settings for the folder with the service's credentials (systemd.exec(5))."""
INSTALLED = Path("/etc/inspectd")
"""Where the unit looks for station files."""
HANDED_OVER = Path("/run/credentials")
"""Where systemd keeps the credentials of each unit that runs."""

Fault: TypeAlias = tuple[str, str]
"""Where, as a key path within the record ("" for the whole of it), and what is wrong there."""


class Checked(msgspec.Struct, frozen=True):
    """A record that knows what its types cannot say, such as which value must exceed which."""

    def faults(self) -> Iterator[Fault]:
        """Everything wrong between the record's values; the checker of files reports them all."""
        yield from ()

    def __post_init__(self) -> None:
        faults = [message for _, message in self.faults()]
        if faults:
            raise ValueError("; ".join(faults))


class Record(Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every settings record: frozen, and an unknown key is an error."""


# ---- the station file --------------------------------------------------------------------------


class ReplayCamera(Record, frozen=True, tag_field="driver", tag="replay"):
    """Pictures from a folder or a video file in place of a camera."""

    path: Annotated[
        str,
        Meta(
            min_length=1,
            description="folder of images (searched with its subfolders, in the order of their "
            "names) or a video file; relative to the station file",
        ),
    ]
    rate: Annotated[
        float,
        Meta(
            gt=0.0, le=1000.0, description="pictures per second at the most", extra={"unit": "1/s"}
        ),
    ] = 10.0
    loop: Annotated[
        bool, Meta(description="begin again at the end; otherwise the service stops there")
    ] = False


class SimulatedCamera(Record, frozen=True, tag_field="driver", tag="simulated"):
    """A rendered terminal block of 27 pins; needs no hardware."""

    width: Annotated[
        int, Meta(ge=160, le=4096, description="frame width in pixels", extra={"unit": "px"})
    ] = 728
    height: Annotated[
        int, Meta(ge=120, le=4096, description="frame height in pixels", extra={"unit": "px"})
    ] = 544
    rate: Annotated[
        float,
        Meta(
            gt=0.0, le=1000.0, description="pictures per second at the most", extra={"unit": "1/s"}
        ),
    ] = 30.0
    seed: Annotated[
        int, Meta(ge=0, description="the same seed renders the same sequence of pictures")
    ] = 0
    defect_rate: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="share of the parts that carry a defect",
            extra={"unit": "share"},
        ),
    ] = 0.0
    defects: Annotated[
        tuple[Literal["missing_pin", "bent_pin", "foreign_object"], ...],
        Meta(min_length=1, description="the kinds of defect to draw from"),
    ] = ("missing_pin", "bent_pin", "foreign_object")
    empty_rate: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="share of the pictures that show no part",
            extra={"unit": "share"},
        ),
    ] = 0.0
    jitter: Annotated[
        float,
        Meta(
            ge=0.0,
            le=10.0,
            description="how much the part's place and turn vary: 0 not at all, 1 a well-guided "
            "part",
        ),
    ] = 1.0
    light_drift: Annotated[
        float,
        Meta(
            ge=0.0,
            le=0.5,
            description="slow change of the light, as a share of it",
            extra={"unit": "share"},
        ),
    ] = 0.03
    noise: Annotated[
        float,
        Meta(
            ge=0.0,
            le=50.0,
            description="sensor noise in grey levels of 255",
            extra={"unit": "grey levels"},
        ),
    ] = 2.0


class Picamera2Camera(Record, frozen=True, tag_field="driver", tag="picamera2"):
    """A camera of the Raspberry Pi, its exposure fixed."""

    camera: Annotated[
        int, Meta(ge=0, le=15, description="the camera's number in `rpicam-hello --list-cameras`")
    ] = 0
    width: Annotated[
        int, Meta(ge=64, le=16384, description="frame width in pixels", extra={"unit": "px"})
    ] = 1456
    height: Annotated[
        int, Meta(ge=64, le=16384, description="frame height in pixels", extra={"unit": "px"})
    ] = 1088
    rate: Annotated[
        float,
        Meta(
            gt=0.0,
            le=1000.0,
            description="frames per second; the faster, the sooner a frame begins after a trigger",
            extra={"unit": "1/s"},
        ),
    ] = 60.0
    exposure_us: Annotated[
        int,
        Meta(
            ge=1,
            le=60_000_000,
            description="exposure time, fixed; short enough for the part's speed, and for the "
            "time between two frames (1,000,000 / rate)",
            extra={"unit": "µs"},
        ),
    ] = 5000
    gain: Annotated[
        float,
        Meta(
            ge=1.0,
            le=64.0,
            description="analogue gain of the sensor, fixed; more is brighter, and noisier",
            extra={"unit": "times"},
        ),
    ] = 1.0
    white_balance: Annotated[
        tuple[Annotated[float, Meta(gt=0.0, le=32.0)], Annotated[float, Meta(gt=0.0, le=32.0)]],
        Meta(
            description="[red, blue]: fixed gains against green; of no use to a grey camera",
            extra={"unit": "times"},
        ),
    ] = (1.0, 1.0)
    reduce: Annotated[
        int,
        Meta(
            ge=1,
            le=8,
            description="how many times smaller, each way, the camera's image pipeline makes the "
            "picture that is judged; references and parts must be taken alike",
            extra={"unit": "times"},
        ),
    ] = 2

    def faults(self) -> Iterator[Fault]:
        longest = 1e6 / self.rate
        if self.exposure_us > longest:
            yield (
                "exposure_us",
                f"exposure_us ({self.exposure_us}) must fit between two frames, {longest:.0f} us "
                f"at {self.rate:g} frames per second",
            )


class OpencvCamera(Record, frozen=True, tag_field="driver", tag="opencv"):
    """A USB camera, or a video stream of the network, by OpenCV."""

    device: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="the camera's path, such as /dev/v4l/by-id/usb-..., or the URL of a "
            "stream; this or index"
        ),
    ] = None
    index: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description="the camera's number in place of device: 0 for /dev/video0; a path under "
            "/dev/v4l/by-id stays the same when cameras are plugged in anew, a number may not"
        ),
    ] = None
    width: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(
            description="frame width in pixels, with height; absent: as the camera gives it",
            extra={"unit": "px"},
        ),
    ] = None
    height: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(
            description="frame height in pixels, with width; absent: as the camera gives it",
            extra={"unit": "px"},
        ),
    ] = None
    rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="frames per second; absent: as the camera gives them", extra={"unit": "1/s"}
        ),
    ] = None
    format: Annotated[
        Annotated[str, Meta(min_length=4, max_length=4)] | None,
        Meta(
            description="how the camera codes its pictures: four letters, such as MJPG or YUYV "
            "(`v4l2-ctl --list-formats-ext`); absent: as the camera gives them"
        ),
    ] = None
    exposure_us: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(
            description="exposure time, fixed; absent: the camera's own, automatic, which changes "
            "the scores",
            extra={"unit": "µs"},
        ),
    ] = None
    gain: Annotated[
        float | None,
        Meta(
            description="fixed gain in the camera's own units (`v4l2-ctl --list-ctrls`); absent: "
            "as it is"
        ),
    ] = None
    focus: Annotated[
        float | None,
        Meta(
            description="fixed focus in the camera's own units (`v4l2-ctl --list-ctrls`); absent: "
            "as it is, automatic"
        ),
    ] = None
    white_balance_k: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(
            description="fixed colour temperature in kelvin; absent: automatic", extra={"unit": "K"}
        ),
    ] = None

    def faults(self) -> Iterator[Fault]:
        if (self.device is None) == (self.index is None):
            yield "", "a camera needs either device or index"
        if (self.width is None) != (self.height is None):
            yield "", "give width and height, or neither"


CameraSettings: TypeAlias = Picamera2Camera | OpencvCamera | ReplayCamera | SimulatedCamera


class IntervalTrigger(Record, frozen=True, tag_field="source", tag="interval"):
    """A picture every so many seconds, without drift."""

    interval_s: Annotated[
        float,
        Meta(
            ge=0.01,
            le=86400.0,
            description="seconds from one picture to the next",
            extra={"unit": "s"},
        ),
    ] = 1.0


class ContinuousTrigger(Record, frozen=True, tag_field="source", tag="continuous"):
    """Every picture that the camera gives."""


class MqttTrigger(Record, frozen=True, tag_field="source", tag="mqtt"):
    """Only when a request comes by MQTT (which is answered with the other sources too)."""


Pin = Annotated[
    int,
    Meta(
        ge=0,
        le=27,
        description="number of the GPIO (BCM), not of the contact; it bears 3.3 V and no more",
    ),
]
Milliseconds = Annotated[float, Meta(ge=0.0, le=60_000.0, extra={"unit": "ms"})]


class GpioTrigger(Record, frozen=True, tag_field="source", tag="gpio"):
    """An edge on a pin, from a light barrier or a PLC."""

    pin: Annotated[
        Pin,
        Meta(
            description="number of the GPIO (BCM), not of the contact; it bears 3.3 V and no more"
        ),
    ]
    edge: Annotated[
        Literal["rising", "falling"], Meta(description="the edge that asks for a verdict")
    ] = "rising"
    pull: Annotated[
        Literal["up", "down", "none"] | None,
        Meta(
            description="the pin's own resistor; absent: down for a rising edge, up for a falling "
            "one"
        ),
    ] = None
    debounce_ms: Annotated[
        Milliseconds,
        Meta(
            description="how long the level must have held before the edge counts; less is a bounce"
        ),
    ] = 2.0
    delay_ms: Annotated[
        Milliseconds, Meta(description="time from the edge until the part is before the camera")
    ] = 0.0


TriggerSettings: TypeAlias = IntervalTrigger | ContinuousTrigger | MqttTrigger | GpioTrigger


class LevelOutput(Record, frozen=True):
    """A pin that tells something as long as it holds."""

    pin: Annotated[
        Pin,
        Meta(
            description="number of the GPIO (BCM), not of the contact; it bears 3.3 V and no more"
        ),
    ]
    active: Annotated[Literal["high", "low"], Meta(description="the level that says yes")] = "high"


class PulseOutput(LevelOutput, frozen=True):
    """A pin that tells of a verdict."""

    pulse_ms: Annotated[
        Milliseconds, Meta(description="length of the pulse; 0: until the next trigger")
    ] = 100.0


class OutputSettings(Record, frozen=True):
    """Pins for a PLC without a network."""

    ok: Annotated[PulseOutput | None, Meta(description="the part is PASS")] = None
    ng: Annotated[
        PulseOutput | None, Meta(description="the part is FAIL or NOT_JUDGED: anything but PASS")
    ] = None
    busy: Annotated[LevelOutput | None, Meta(description="a trigger is not yet answered")] = None
    ready: Annotated[LevelOutput | None, Meta(description="the station can judge")] = None

    def faults(self) -> Iterator[Fault]:
        seen: dict[int, str] = {}
        for name, pin in output_pins(self):
            if pin in seen:
                yield f"{name}.pin", f"pin {pin} is that of output {seen[pin]} already"
            seen.setdefault(pin, name)


def output_pins(outputs: OutputSettings) -> Iterator[tuple[str, int]]:
    """The name and the pin of each output that is used."""
    named: dict[str, LevelOutput | None] = {
        "ok": outputs.ok,
        "ng": outputs.ng,
        "busy": outputs.busy,
        "ready": outputs.ready,
    }
    for name, output in named.items():
        if output is not None:
            yield name, output.pin


class TlsSettings(Record, frozen=True):
    """Encryption, and proof of who is who. Paths are relative to the station file."""

    ca: Annotated[
        str | None,
        Meta(
            description="file with the certificate of the broker's authority; absent: the "
            "system's authorities"
        ),
    ] = None
    certificate: Annotated[
        str | None, Meta(description="file with the station's own certificate, where it needs one")
    ] = None
    key: Annotated[str | None, Meta(description="file with the certificate's private key")] = None

    def faults(self) -> Iterator[Fault]:
        if (self.certificate is None) != (self.key is None):
            yield "", "certificate and key belong together: give both, or neither"


class HomeAssistantSettings(Record, frozen=True):
    """Announce the station to Home Assistant."""

    prefix: Annotated[
        str,
        Meta(
            max_length=200,
            pattern=r"^[^+#/]+(/[^+#/]+)*$",
            description="topic that Home Assistant's discovery listens below; without + and #",
        ),
    ] = "homeassistant"


class SparkplugSettings(Record, frozen=True):
    """Be an edge node of Sparkplug B, on a connection of its own."""

    group: Annotated[
        Name, Meta(description="the group id, the second level of the topics below spBv1.0")
    ]
    node: Annotated[
        Name | None, Meta(description="the edge node id; absent: the station's name")
    ] = None
    primary_host: Annotated[
        Name | None,
        Meta(description="host application to wait for; absent: publish whoever listens"),
    ] = None


RequestName = Literal[
    "trigger", "program", "reload", "lot", "teach", "limits", "snapshot", "resend"
]


class MqttSettings(Record, frozen=True):
    """The broker."""

    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="the broker's name or address; with tls, as it stands in the broker's "
            "certificate",
        ),
    ] = "localhost"
    port: Annotated[
        int, Meta(ge=1, le=65535, description="the broker's TCP port: usually 1883, with tls 8883")
    ] = 1883
    keepalive_s: Annotated[
        int,
        Meta(
            ge=2,
            le=3600,
            description="seconds of silence after which broker and station test each other; more "
            "bears longer interruptions, and notices a lost connection later",
            extra={"unit": "s"},
        ),
    ] = 2
    username: Annotated[
        str | None, Meta(description="user name that the broker knows the station by")
    ] = None
    password_file: Annotated[
        str | None,
        Meta(
            description="file that holds the password and nothing else; relative to the station "
            "file"
        ),
    ] = None
    tls: Annotated[
        TlsSettings | None,
        Meta(description="encrypt; {} with the system's authorities (then port is often 8883)"),
    ] = None
    requests: Annotated[
        tuple[RequestName, ...],
        Meta(description="requests that are answered; any other is refused"),
    ] = ("trigger", "program", "reload", "lot")
    backlog_rate: Annotated[
        float,
        Meta(
            gt=0.0,
            le=10000.0,
            description="verdicts a second, at the most, that follow after an outage",
            extra={"unit": "1/s"},
        ),
    ] = 50.0
    statistics_s: Annotated[
        float,
        Meta(
            ge=1.0,
            le=3600.0,
            description="seconds from one topic statistics to the next",
            extra={"unit": "s"},
        ),
    ] = 10.0
    homeassistant: Annotated[
        HomeAssistantSettings | None,
        Meta(description="announce the station to Home Assistant; {} with the usual prefix"),
    ] = None
    sparkplug: Annotated[
        SparkplugSettings | None, Meta(description="publish as a Sparkplug B edge node as well")
    ] = None

    def faults(self) -> Iterator[Fault]:
        if self.password_file is not None and self.username is None:
            yield "password_file", "a password needs a username"


class StorageSettings(Record, frozen=True):
    """Where the station keeps what must outlive it."""

    directory: Annotated[
        str,
        Meta(
            min_length=1,
            description="folder for journal and references; each station has its own folder in it; "
            "relative to the station file",
        ),
    ] = "/var/lib/inspectd"
    sync: Annotated[
        Literal["full", "normal"],
        Meta(
            description="full: a verdict outlives a power cut; normal: a crash of the service, "
            "with fewer writes"
        ),
    ] = "full"
    keep_days: Annotated[
        float,
        Meta(
            gt=0.0,
            le=36500.0,
            description="verdicts older than this are deleted, once the broker has taken them and "
            "while the clock is synchronised",
            extra={"unit": "days"},
        ),
    ] = 365.0
    max_mb: Annotated[
        float,
        Meta(
            ge=1.0,
            le=1e6,
            description="size of the journal beyond which the oldest verdicts that the broker has "
            "taken are deleted",
            extra={"unit": "MB"},
        ),
    ] = 1000.0


class ArchiveSettings(Record, frozen=True):
    """Which pictures are kept on disk."""

    keep: Annotated[
        tuple[Literal["PASS", "FAIL", "NOT_JUDGED"], ...],
        Meta(description="verdicts whose pictures are kept; [] for none"),
    ] = ("FAIL", "NOT_JUDGED")
    margin: Annotated[
        Fraction,
        Meta(description="a PASS whose score is nearer to the limit than this is kept as well"),
    ] = 0.1
    max_mb: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1e6,
            description="room for these pictures: beyond it the oldest go; 0 keeps none",
            extra={"unit": "MB"},
        ),
    ] = 1000.0
    format: Annotated[
        Literal["png", "jpeg"],
        Meta(description="png: without loss; jpeg: a third of the bytes, in colour a tenth"),
    ] = "png"


class Station(Record, frozen=True):
    """The station file: one camera, one trigger, one broker."""

    station: Annotated[Name, Meta(description="the station's name, part of every MQTT topic")]
    program: Annotated[
        Name, Meta(description="the program to judge by: NAME for programs/NAME.yaml beside this")
    ]
    camera: Annotated[CameraSettings, Meta(description="where the pictures come from")]
    trigger: Annotated[TriggerSettings, Meta(description="what asks for a verdict")] = (
        IntervalTrigger()
    )
    capture_timeout_s: Annotated[
        float,
        Meta(
            gt=0.0,
            le=60.0,
            description="seconds to wait for a picture before NOT_JUDGED 'camera timeout'; a "
            "trigger that waits in line for longer is NOT_JUDGED 'stale trigger'",
            extra={"unit": "s"},
        ),
    ] = 2.0
    reopen_after: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="times in a row without a good picture, after which the camera is closed "
            "and opened again",
        ),
    ] = 3
    frozen_after: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="pictures in a row, alike to the last pixel with the one before, that are "
            "'frozen picture'; 0: never, for a camera without any noise",
        ),
    ] = 1
    queue: Annotated[
        int,
        Meta(ge=1, le=10000, description="triggers that may wait; beyond, NOT_JUDGED 'overrun'"),
    ] = 16
    outputs: Annotated[OutputSettings, Meta(description="pins for a PLC without a network")] = (
        OutputSettings()
    )
    mqtt: Annotated[MqttSettings, Meta(description="the MQTT broker")] = MqttSettings()
    storage: Annotated[StorageSettings, Meta(description="folders of the station")] = (
        StorageSettings()
    )
    archive: Annotated[ArchiveSettings, Meta(description="which pictures are kept on disk")] = (
        ArchiveSettings()
    )
    alarm_after: Annotated[
        int,
        Meta(ge=0, le=10000, description="FAILs in a row that are an alarm on state; 0: never"),
    ] = 0
    shifts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")], ...],
        Meta(
            description="local times, '00:00' to '23:59', at which a shift begins and is counted "
            "anew"
        ),
    ] = ()

    def faults(self) -> Iterator[Fault]:
        if isinstance(self.trigger, GpioTrigger):
            for name, pin in output_pins(self.outputs):
                if pin == self.trigger.pin:
                    yield f"outputs.{name}.pin", f"pin {pin} is that of the trigger already"


# ---- the program files -------------------------------------------------------------------------


class RegionOfInterest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rectangle in frame pixels, written as [x, y, width, height]."""

    x: PixelPosition
    y: PixelPosition
    width: PixelSize
    height: PixelSize


class Box(Checked, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rectangle in shares of the inspected picture, written as [left, top, right, bottom]."""

    left: Fraction
    top: Fraction
    right: Fraction
    bottom: Fraction

    def faults(self) -> Iterator[Fault]:
        if self.right <= self.left or self.bottom <= self.top:
            yield "", "a box is [left, top, right, bottom] with left < right, top < bottom"


Point = tuple[Fraction, Fraction]


class Region(Record, frozen=True):
    """A named part of the picture with a threshold of its own, or ignored."""

    name: Annotated[Name, Meta(description="stands in the verdict when the region fails")]
    box: Annotated[
        Box | None,
        Meta(description="[left, top, right, bottom] in shares of the inspected picture, 0 to 1"),
    ] = None
    polygon: Annotated[
        tuple[Point, ...] | None,
        Meta(description="[[x, y], ...] in shares of the inspected picture; three points or more"),
    ] = None
    threshold: Annotated[
        float,
        Meta(
            gt=0.0,
            le=100.0,
            description="in units of the region's learned limit: 1 as learned, larger tolerates "
            "more",
            extra={"unit": "limits"},
        ),
    ] = 1.0
    ignore: Annotated[bool, Meta(description="never judge what lies in this region")] = False

    @property
    def outline(self) -> tuple[Point, ...]:
        """Its corners, (x, y) in shares of the inspected picture."""
        if self.box is None:
            return self.polygon or ()
        left, top, right, bottom = msgspec.structs.astuple(self.box)
        return ((left, top), (right, top), (right, bottom), (left, bottom))

    def faults(self) -> Iterator[Fault]:
        if (self.box is None) == (self.polygon is None):
            yield "", "a region needs either a box or a polygon"
        if self.polygon is not None and len(self.polygon) < 3:
            yield "polygon", "a polygon needs at least three points"


Odd = Annotated[int, Meta(ge=1, le=101)]


class SoartcSettings(Record, frozen=True):
    """Parameters of the SOARTC comparison; the defaults are the best of docs/accuracy.md."""

    part: Annotated[
        Odd,
        Meta(
            description="side of the convolution parts in pixels, odd and at least 3",
            extra={"unit": "px"},
        ),
    ] = 7
    band: Annotated[
        Odd,
        Meta(
            description="width of the parts' bands in pixels, odd and smaller than part",
            extra={"unit": "px"},
        ),
    ] = 1
    centre_weight: Annotated[
        float, Meta(gt=0.0, le=100.0, description="weight of the middle of the diagonal parts")
    ] = 2.0
    stride: Annotated[
        int,
        Meta(
            ge=1, le=100, description="pixels between the windows of a patch", extra={"unit": "px"}
        ),
    ] = 3
    step: Annotated[
        int,
        Meta(
            ge=1,
            le=200,
            description="pixels from one patch to the next; larger is faster and coarser",
            extra={"unit": "px"},
        ),
    ] = 2
    blur: Annotated[
        float,
        Meta(
            ge=0.0,
            le=20.0,
            description="blur before the comparison, sigma in pixels; 1.5 suits hard edges, such "
            "as scans in black and white",
            extra={"unit": "px"},
        ),
    ] = 0.0
    pedestal: Annotated[
        Fraction,
        Meta(description="grey added before the comparison, so that the dark counts less; 0 to 1"),
    ] = 0.0
    tolerance: Annotated[
        int,
        Meta(
            ge=0,
            le=50,
            description="pixels that a patch may lie elsewhere in the nearest reference "
            "(method nearest)",
            extra={"unit": "px"},
        ),
    ] = 2
    p: Annotated[
        float,
        Meta(
            ge=1.0,
            le=32.0,
            description="exponent of the distance over the six parts (method published)",
        ),
    ] = 4.0
    weights: Annotated[
        tuple[
            Annotated[float, Meta(ge=0.0)],
            Annotated[float, Meta(ge=0.0)],
            Annotated[float, Meta(ge=0.0)],
        ],
        Meta(
            description="weights of the three distances, ln beta, eta and gamma, in the map "
            "(method published)"
        ),
    ] = (1.0, 5.0, 10.0)

    def faults(self) -> Iterator[Fault]:
        if self.part < 3 or self.part % 2 == 0:
            yield "part", f"part must be odd and at least 3, not {self.part}"
        if self.band % 2 == 0 or self.band >= self.part:
            yield "band", f"band must be odd and smaller than part ({self.part}), not {self.band}"
        if not any(self.weights):
            yield "weights", "weights must not all be 0"


class AlignmentSettings(Record, frozen=True):
    """How the part's place in the picture is adjusted to that of the references."""

    mode: Annotated[
        Literal["none", "shift", "rigid", "search"],
        Meta(
            description="none: the part lies always alike; shift: small shifts; rigid: small "
            "shifts and rotations; search: anywhere in the picture, at any angle"
        ),
    ] = "rigid"
    max_shift: Annotated[
        Annotated[float, Meta(gt=0.0, le=0.5)] | None,
        Meta(
            description="largest shift allowed, as a share of the longest side; absent: "
            "0.1, with mode search 0.5",
            extra={"unit": "share"},
        ),
    ] = None
    max_rotation_deg: Annotated[
        Annotated[float, Meta(ge=0.0, le=180.0)] | None,
        Meta(
            description="largest rotation allowed, in degrees; absent: 10, with mode search 180",
            extra={"unit": "°"},
        ),
    ] = None
    beyond: Annotated[
        Literal["not_judged", "fail"],
        Meta(description="the verdict on a part further off than allowed, or not found"),
    ] = "not_judged"

    @property
    def shift_limit(self) -> float:
        """The largest shift allowed, as a share of the longest side."""
        usual = 0.5 if self.mode == "search" else 0.1
        return usual if self.max_shift is None else self.max_shift

    @property
    def rotation_limit_deg(self) -> float:
        """The largest rotation allowed."""
        usual = 180.0 if self.mode == "search" else 10.0
        return usual if self.max_rotation_deg is None else self.max_rotation_deg


class ReferenceSettings(Record, frozen=True):
    """What the program demands of its references."""

    minimum: Annotated[
        int,
        Meta(ge=1, le=1000, description="fewer good pictures than this and nothing can PASS"),
    ] = 5


class LimitSettings(Record, frozen=True):
    """Where good ends."""

    false_reject: Annotated[
        float,
        Meta(
            ge=0.0001,
            le=0.5,
            description="share of the good parts that may be rejected, by each region and by the "
            "rest of the picture; the limits are learned for it",
            extra={"unit": "share"},
        ),
    ] = 0.02
    threshold: Annotated[
        float,
        Meta(
            gt=0.0,
            le=100.0,
            description="in units of the learned limit: 1 as learned; larger tolerates more (good "
            "parts are rejected: try 1.2), smaller less (defects slip through: try 0.8)",
            extra={"unit": "limits"},
        ),
    ] = 1.0


LARGEST_DEVIATION = 0.5
"""Of grey values from 0 to 1."""


class HealthSettings(Record, frozen=True):
    """Bounds on the picture itself; outside them it is NOT_JUDGED."""

    min_brightness: Annotated[
        Fraction, Meta(description="mean grey value below this is 'too dark'; 0 to 1")
    ] = 0.03
    max_brightness: Annotated[
        Fraction, Meta(description="mean grey value above this is 'too bright'; 0 to 1")
    ] = 0.97
    min_contrast: Annotated[
        Fraction,
        Meta(
            description="deviation of the grey values below this is 'no contrast' (a covered "
            "lens); below 0.5"
        ),
    ] = 0.02
    min_relative_contrast: Annotated[
        Fraction,
        Meta(
            description="with a deviation of the grey values below this share of the references' "
            "median nothing can PASS: 'no contrast'; below half of that nothing can FAIL either"
        ),
    ] = 0.5
    min_match: Annotated[
        Annotated[float, Meta(ge=-1.0, lt=1.0)] | None,
        Meta(
            description="with less correlation with the references' common picture nothing can "
            "PASS, and with less than half the contrast needed as well it is 'no part', unless "
            "the empty station was taught; absent: half of what the worst reference has"
        ),
    ] = None
    max_clipped: Annotated[
        Fraction | None,
        Meta(
            description="a larger share of pixels at white, or at black, is 'clipped'; absent: 0.1 "
            "more than any reference has, without limit where one has more than 0.1 itself"
        ),
    ] = None
    min_focus: Annotated[
        Fraction,
        Meta(description="sharpness below this share of the references' median: 'out of focus'"),
    ] = 0.4
    max_light_change: Annotated[
        float,
        Meta(
            ge=0.0,
            le=10.0,
            description="brightness beyond the references' own by more than this share is "
            "'light changed'",
            extra={"unit": "share"},
        ),
    ] = 0.3

    def faults(self) -> Iterator[Fault]:
        if self.min_brightness >= self.max_brightness:
            yield (
                "min_brightness",
                f"min_brightness ({self.min_brightness:g}) must be below "
                f"max_brightness ({self.max_brightness:g})",
            )
        if self.min_contrast >= LARGEST_DEVIATION:
            yield (
                "min_contrast",
                f"min_contrast ({self.min_contrast:g}) must be below {LARGEST_DEVIATION:g}, the "
                "contrast of a picture half black and half white",
            )


class Program(Record, frozen=True):
    """A program file: one product and how it is judged."""

    description: Annotated[str, Meta(description="what the product is; for people")] = ""
    roi: Annotated[
        RegionOfInterest | None,
        Meta(description="region of interest, [x, y, width, height] in frame pixels"),
    ] = None
    resolution: Annotated[
        int,
        Meta(
            ge=16,
            le=2000,
            description="longest side of the picture that is judged, in pixels; larger sees "
            "smaller defects and takes longer: twice the side, four times the time",
            extra={"unit": "px"},
        ),
    ] = 100
    light: Annotated[
        Literal["none", "gain", "local"],
        Meta(
            description="none: the light never changes; gain: its brightness may; local: its "
            "distribution too"
        ),
    ] = "gain"
    alignment: Annotated[AlignmentSettings, Meta(description="adjustment of the part's place")] = (
        AlignmentSettings()
    )
    soartc: Annotated[SoartcSettings, Meta(description="parameters of the comparison")] = (
        SoartcSettings()
    )
    method: Annotated[
        Literal["auto", "statistics", "nearest", "published"],
        Meta(
            description="statistics: against the references' mean and spread at each place; "
            "nearest: against the nearest reference; published: against the average picture, as "
            "the method was published; auto: nearest with a single reference, statistics with more"
        ),
    ] = "auto"
    references: Annotated[ReferenceSettings, Meta(description="demands on the references")] = (
        ReferenceSettings()
    )
    limit: Annotated[LimitSettings, Meta(description="where good ends")] = LimitSettings()
    regions: Annotated[
        tuple[Region, ...], Meta(description="parts of the picture judged on their own, or ignored")
    ] = ()
    health: Annotated[HealthSettings, Meta(description="bounds on the picture itself")] = (
        HealthSettings()
    )

    def faults(self) -> Iterator[Fault]:
        seen: set[str] = set()
        for index, region in enumerate(self.regions):
            if region.name in seen:
                yield f"regions[{index}].name", f"two regions are named {region.name}"
            seen.add(region.name)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A station file and its program, as loaded together.

    Attributes:
        path: the station file.
        programs: every sound program of the folder beside it, by name.
        hash: 12 hex digits of the SHA-256 over the station and its program (see
            `inspectd.config.settings_hash`); stands in every verdict.
    """

    path: Path
    station: Station
    programs: dict[str, Program]
    hash: str

    @property
    def program(self) -> Program:
        """The program that the station file names."""
        return self.programs[self.station.program]

    @property
    def directory(self) -> Path:
        """The station's own folder for what must outlive it."""
        return self.resolve(self.station.storage.directory) / self.station.station

    @property
    def references_directory(self) -> Path:
        return self.directory / "references"

    @property
    def control_socket(self) -> Path:
        """Raises PermanentError where the path is longer than a socket's may be."""
        path = self.directory / SOCKET_NAME
        if len(bytes(path)) > 107:
            raise PermanentError(
                f"the control socket's path is too long for the system ({len(bytes(path))} bytes, "
                f"at most 107): {path}; choose a shorter storage.directory"
            )
        return path

    def resolve(self, path: str) -> Path:
        """A path of the settings, relative ones against the station file's folder.

        Below `CREDENTIALS` lies what systemd hands to the service. Where this process may not see
        that, the name stays as it is, where no file can be.
        """
        if path.startswith(f"{CREDENTIALS}/"):
            folder = self._credentials_folder()
            if folder is not None:
                path = f"{folder}{path.removeprefix(CREDENTIALS)}"
        return (self.path.parent / path).absolute()

    @property
    def unit(self) -> str | None:
        """The systemd unit that runs this station file; None for one that lies elsewhere."""
        path = self.path.absolute()
        if path.parent != INSTALLED or path.suffix != ".yaml":
            return None
        return f"inspectd@{path.stem}.service"

    def _credentials_folder(self) -> str | None:
        told = os.environ.get(CREDENTIALS[1:])
        if told is not None or self.unit is None:
            return told
        # For who works beside the service, such as doctor: the service's user and root may look.
        folder = HANDED_OVER / self.unit
        return str(folder) if os.access(folder, os.R_OK | os.X_OK) else None
