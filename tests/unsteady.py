"""A camera that fails when it is told to."""

import threading
from datetime import UTC, datetime

from station import good_part

from inspectd.errors import CameraError, CameraLost
from inspectd.records import Frame


class UnsteadyCamera:
    """Fails as often as it is told to, at opening and at capturing."""

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self.openings_to_fail = 0
        self.failures: list[CameraError] = []
        self.frozen = False
        self.openings = 0
        self.captures = 0
        self.closed = threading.Event()

    def open(self) -> None:
        if self.openings_to_fail:
            self.openings_to_fail -= 1
            raise CameraLost("the cable is out")
        self.openings += 1

    def capture(self, after_ns: int, timeout_s: float, *, whole: bool = False) -> Frame:
        if self.failures:
            raise self.failures.pop()
        self.captures += not self.frozen
        pixels = good_part(self.captures % 4)
        return Frame(pixels, str(self.captures), datetime.now(UTC), after_ns, after_ns)

    def close(self) -> None:
        self.closed.set()
