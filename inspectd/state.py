"""What the station says of itself: its lifecycle state, and whether it can judge."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from inspectd.clock import clock_synchronised
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

    def clear(self, state: State) -> None:
        """It does so no longer."""
        with self._lock:
            if self._hindrances.pop(state, None) is not None:
                self._tell()

    def note(self, *, references: int, references_hash: str | None) -> None:
        """The references that are judged by have changed."""
        with self._lock:
            self._payload = msgspec.structs.replace(
                self._payload, references=references, references_hash=references_hash
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
