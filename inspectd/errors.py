"""Everything that can go wrong, as types.

Two families matter to whoever catches: a `TransientError` may succeed when tried again (a broker
that is away, a frame that did not come); a `PermanentError` will not, until a person changes
something (a typo in a file, a missing camera driver). Each message says what is wrong, where, and
what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class InspectdError(Exception):
    """The root: catching it catches every error this package raises on purpose."""


class TransientError(InspectdError):
    """It may succeed when tried again."""


class PermanentError(InspectdError):
    """Trying again is no use until a person changes something."""


class ImageError(PermanentError, ValueError):
    """An array that the algorithm cannot work with: its shape, type or values."""


class ReferencesError(PermanentError):
    """The reference pictures of a program are missing, too few, damaged or do not fit it."""


class NotCompiled(PermanentError):
    """A kernel is not in the cache, where it may not be compiled now."""


class PictureUnreadable(PermanentError):
    """An image file that cannot be read whole: missing, empty, cut short, damaged, of a wrong kind.

    The message continues a sentence that begins with the file's name.
    """


class CameraError(InspectdError):
    """The root of the cameras' errors."""


class CameraTimeout(CameraError, TransientError):
    """No frame came within the time allowed."""


class ExposureNotSettled(CameraTimeout):
    """Frames came, but none within the time allowed was exposed as the settings demand."""


class CameraFrozen(CameraError, TransientError):
    """The camera gives the same picture again, to the last pixel: it shows the past."""


class CameraLost(CameraError, TransientError):
    """The camera went away or answers with errors; it can be opened again."""


class CameraHung(CameraLost):
    """Its driver does not come back from a call; a new process may have to begin with it anew."""


class CameraUnusable(CameraError, PermanentError):
    """The camera cannot be used as it is set: no such folder, no such driver, no such mode."""


class EndOfFrames(CameraError):
    """A camera that plays something recorded has come to its end."""


class JournalError(TransientError):
    """An inspection could not be committed to the journal (disk full, folder read-only)."""


class JournalDamaged(JournalError):
    """The journal's file is damaged: a new one must be begun before anything can be committed."""


class JournalUnusable(PermanentError):
    """The journal cannot be opened at all."""


class BrokerState(StrEnum):
    """How station and MQTT broker stand to each other, in a word; the later one is the worse.

    Attributes:
        CONNECTED: the broker takes everything, and refuses nothing.
        REQUESTS_LOST: connected, but requests sent while the station is away are lost, or all.
        MESSAGES_REFUSED: connected, but the broker refuses some messages: rights or quota.
        MESSAGE_TOO_LARGE: connected, but some messages are larger than the broker takes.
        SUBSCRIPTION_REFUSED: connected, but the broker lets the station hear no requests, or none
            of what else it subscribes to.
        CONNECTING: no attempt has come to an end yet.
        LOST: the connection has just ended; the next attempt tells more.
        UNREACHABLE: nobody answers there, or the name cannot be looked up.
        SILENT: something takes the connection and says nothing.
        WRONG_PROTOCOL: what answers speaks no MQTT, or one side speaks TLS and the other not.
        REFUSED: the broker does not let the station in, for another reason than the next two.
        REFUSED_CREDENTIALS: user name or password.
        REFUSED_CERTIFICATE: that of the broker, by the station, or the station's, by the broker.
        UNUSABLE_FILE: a password or certificate file of the station is missing or damaged.
        FAULT: an error that nobody has thought of; the log tells it.
    """

    CONNECTED = "connected"
    REQUESTS_LOST = "requests_lost"
    MESSAGES_REFUSED = "messages_refused"
    MESSAGE_TOO_LARGE = "message_too_large"
    SUBSCRIPTION_REFUSED = "subscription_refused"
    CONNECTING = "connecting"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    SILENT = "silent"
    WRONG_PROTOCOL = "wrong_protocol"
    REFUSED = "refused"
    REFUSED_CREDENTIALS = "refused_credentials"
    REFUSED_CERTIFICATE = "refused_certificate"
    UNUSABLE_FILE = "unusable_file"
    FAULT = "fault"

    @classmethod
    def worst(cls, states: Iterable[BrokerState]) -> BrokerState:
        """The one to tell, where several hold; CONNECTED without any."""
        return max(states, key=list(cls).index, default=cls.CONNECTED)


class BrokerUnavailable(TransientError):
    """The MQTT broker cannot be reached at present."""

    def __init__(self, message: str, state: BrokerState = BrokerState.UNREACHABLE) -> None:
        super().__init__(message)
        self.state = state


class BrokerRefused(PermanentError):
    """Broker and station do not accept each other: password, certificate, protocol or rights."""

    def __init__(self, message: str, state: BrokerState = BrokerState.REFUSED) -> None:
        super().__init__(message)
        self.state = state


class MessageTooLarge(PermanentError):
    """The MQTT broker takes no message of this size; the message was not sent."""


class GpioUnusable(PermanentError):
    """A pin cannot be used as it is set: no such pin, in use, no rights, or no GPIO here at all."""


class ControlError(PermanentError):
    """A request over the control socket was refused or not understood."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a settings file.

    Attributes:
        file: the file's path.
        line: counted from 1; 0 when the file as a whole is meant.
        key: dotted path of the key, such as ``camera.exposure_us`` or ``regions[2].box``.
        message: what is wrong and what was expected.
        hint: the nearest known key or value, or another fix; empty when there is none.
    """

    file: str
    line: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}:{key} {self.message}{hint}"


class SettingsError(PermanentError):
    """A settings file is wrong. Carries every problem found, in the order of the lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))
