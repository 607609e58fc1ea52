"""How old a request may be that the broker held back for want of acknowledgements.

A broker delivers only so many messages without one (Mosquitto: 20). While the station owes it
several, a request may have waited there, and looks as fresh as any when it comes. The station then
sends itself a marker: what comes behind it was sent after it.
"""

from __future__ import annotations

import uuid

FULL = 8
"""Messages owed beyond which the next may have been held back; brokers deliver more at once."""
CAUGHT_UP_S = 0.1
"""A marker that comes back within so long has met no queue."""


class HeldBack:
    """What is known of it on one connection. Instants are `time.monotonic_ns`."""

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._marker = b""
        self._marker_ns = 0

    @property
    def since_ns(self) -> int | None:
        """No message that comes now was sent before; None where none is held back."""
        return self._since_ns

    def waits_for_marker(self, now_ns: int, within_s: float) -> bool:
        """Whether one is on its way for longer than that."""
        return bool(self._marker) and now_ns - self._marker_ns > within_s * 1e9

    def note_message(self, now_ns: int, owed: int) -> bool:
        """A message came while so many acknowledgements were owed; whether to send a marker."""
        if self._since_ns is None and owed >= FULL:
            self._since_ns = now_ns
        return self._since_ns is not None and not self._marker

    def new_marker(self, now_ns: int) -> bytes:
        """To be sent now."""
        self._marker, self._marker_ns = uuid.uuid4().hex.encode(), now_ns
        return self._marker

    def forget_marker(self) -> None:
        """It could not be sent."""
        self._marker = b""

    def take(self, marker: bytes, now_ns: int) -> bool:
        """Whether this is the marker that was sent, which is back now."""
        if not self._marker or marker != self._marker:
            return False
        self._marker = b""
        caught_up = now_ns - self._marker_ns <= CAUGHT_UP_S * 1e9
        self._since_ns = None if caught_up else self._marker_ns
        return True
