"""What the station says of itself: its lifecycle state, and whether it can judge."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from inspectd.clock import clock_synchronised
from inspectd.errors import BrokerState
from inspectd.payload import StatePayload

_logger = logging.getLogger(__name__)


class State(StrEnum):
    """In the order of what is told first when several hold."""

    STOPPING = "stopping"
    STARTING = "starting"
    JOURNAL_FAULT = "journal_fault"
    CAMERA_FAULT = "camera_fault"
    NOT_READY = "not_ready"
    JUDGING = "judging"


class StationState:
    """Collects what keeps the station from judging, and tells of each change.

    The station is available exactly while nothing does.
    """

    def __init__(self, first: StatePayload, publish: Callable[[StatePayload, bool], None]) -> None:
        """Args:
        first: what is known from the beginning.
        publish: is given the state and whether the station is available, at each change.
        """
        self._payload = first
        self._publish = publish
        self._hindrances: dict[State, str] = {State.STARTING: ""}
        self._troubles: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def payload(self) -> StatePayload:
        with self._lock:
            return self._payload

    def hinder(self, state: State, detail: str) -> None:
        """Something keeps the station from judging.

        Args:
            state: not JUDGING.
            detail: what is the matter and what to do, for a person.
        """
        with self._lock:
            if self._hindrances.get(state) == detail:
                return
            self._hindrances[state] = detail
            if detail:
                self._payload = msgspec.structs.replace(self._payload, last_error=detail)
            self._tell()

    def hindrance(self, state: State) -> str | None:
        """What was told of it by `hinder`; None if it does not hold."""
        with self._lock:
            return self._hindrances.get(state)

    def clear(self, state: State) -> None:
        """It does so no longer."""
        with self._lock:
            if self._hindrances.pop(state, None) is not None:
                self._tell()

    def alarm(self, words: str | None) -> None:
        """The line should be seen to, or, with None, no longer; either way it judges on."""
        with self._lock:
            before = self._payload.alarm
            if words == before:
                return
            self._payload = msgspec.structs.replace(self._payload, alarm=words)
            if words:
                _logger.warning("alarm: %s", words)
            else:
                _logger.info("no alarm any more (%s)", before)
            self._tell()

    def note_broker(self, broker: BrokerState, sparkplug: BrokerState | None) -> None:
        """How the broker does, and Sparkplug's own connection to it, if there is one; whatever it
        is, it keeps nothing from being judged.
        """
        with self._lock:
            before = self._payload
            if (broker, sparkplug) != (before.broker, before.sparkplug):
                self._payload = msgspec.structs.replace(before, broker=broker, sparkplug=sparkplug)
                self._tell()

    def note_trouble(self, about: str, words: str, *, logged: bool = False) -> None:
        """Something is amiss that keeps nothing from being judged; without words, no longer.

        Args:
            about: what it concerns: of each, one note stands at a time.
            words: what is the matter and what to do, for a person.
            logged: whether the log says so already.
        """
        with self._lock:
            if self._troubles.get(about, "") == words:
                return
            if words:
                self._troubles[about] = words
            else:
                del self._troubles[about]
            if not logged:
                level = logging.WARNING if words else logging.INFO
                _logger.log(level, "%s", words or f"{about}: in order again")
            notes = tuple(self._troubles.values())
            self._payload = msgspec.structs.replace(self._payload, notes=notes)
            self._tell()

    def note_journal(self, journal_id: str) -> None:
        """Another journal was begun."""
        with self._lock:
            self._payload = msgspec.structs.replace(self._payload, journal_id=journal_id)
            self._tell()

    def note(
        self,
        *,
        program: str | None = None,
        settings_hash: str | None = None,
        references: int,
        references_hash: str | None,
        empties: int = 0,
    ) -> None:
        """What is judged by has changed; without a program or hash, that stays."""
        with self._lock:
            self._payload = msgspec.structs.replace(
                self._payload,
                program=program or self._payload.program,
                settings_hash=settings_hash or self._payload.settings_hash,
                references=references,
                references_hash=references_hash,
                empties=empties,
            )
            self._tell()

    def _tell(self) -> None:
        before = self._payload
        current = min(self._hindrances, key=list(State).index, default=State.JUDGING)
        detail = self._hindrances.get(current, "")
        changed = current != before.state
        self._payload = msgspec.structs.replace(
            self._payload,
            state=current,
            detail=detail,
            clock_synchronised=clock_synchronised(),
            since=datetime.now(UTC) if changed else before.since,
        )
        if changed or detail != before.detail:
            level = logging.WARNING if detail else logging.INFO
            _logger.log(
                level, "%s%s", current.value.replace("_", " "), f": {detail}" if detail else ""
            )
        self._publish(self._payload, current is State.JUDGING)
