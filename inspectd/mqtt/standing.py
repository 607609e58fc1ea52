"""A connection that is to stand: made again and again, patiently, and spoken of once.

Whoever wants one says how a single connection goes; this loop does the waiting and the reporting.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from inspectd.errors import (
    BrokerRefused,
    BrokerState,
    BrokerUnavailable,
    InspectdError,
    PermanentError,
)
from inspectd.mqtt import words
from inspectd.mqtt.pace import Pace

_logger = logging.getLogger(__name__)

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 4.0
"""With the time that a broker has to answer, a station is back within 10 s of the broker's return.
Each wait is between the half of it and the whole."""
REFUSED_RETRY_S = 30.0
"""Of what asking again does not cure."""
STEADY_S = 10.0
"""A connection that stood for less does not count as cured: the waits go on growing."""
LOOK_S = 1.0
"""While it waits it looks this often whether there is a reason not to."""
SOON_LOST = 3
"""So many of them in a row have a cause of their own."""


class StandingConnection(ABC):
    """Connects in the background, on a thread of its own, until it is told to stop."""

    def __init__(self, broker: str, thread_name: str, stamp: Callable[[], object]) -> None:
        """Prepare.

        Args:
            broker: names it in messages, such as HOST:PORT.
            thread_name: of the thread that connects.
            stamp: another one once the files have changed that an attempt depends on: who has
                corrected a password need not wait for the next one.
        """
        self._broker = broker
        self._stamp = stamp
        self._tried_with: object = None
        self._stopping = threading.Event()
        self._pace = Pace(self._stopping)
        self._retry_delay_s = 0.0
        self._trouble = "no connection has been tried yet"
        self._state = BrokerState.CONNECTING
        self._stood_since = 0.0
        self._reported = ""
        self._known = False
        self._soon_lost = 0
        # Refused subscriptions; replaced as a whole, for it is read from any thread.
        self._unheard: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    @property
    def trouble(self) -> str:
        """Why there is no connection, or what it lacks, for a person; empty if all is well."""
        return self._trouble or "; ".join(trouble for _, trouble in self._lacks())

    @property
    def state(self) -> BrokerState:
        """The same in a word."""
        return BrokerState.worst((self._state, *(state for state, _ in self._lacks())))

    @property
    def lives(self) -> bool:
        """Whether its thread runs, with a connection or without."""
        return self._thread.is_alive()

    @property
    def broker(self) -> str:
        """HOST:PORT, for messages."""
        return self._broker

    @abstractmethod
    def _connect_once(self) -> str:
        """One connection from its beginning to its end.

        Returns:
            Why it has ended.

        Raises:
            BrokerUnavailable: none came about.
            PermanentError: none came about, and none will until a person changes something.
        """

    def _stands(self) -> None:
        """To be called when a connection has come about."""
        self._stood_since = time.monotonic()
        self._reported = self._trouble = ""
        self._state = BrokerState.CONNECTED
        self._known = False
        _logger.info("connected to the MQTT broker %s", self.broker)

    def _lacks(self) -> list[tuple[BrokerState, str]]:
        """What the broker denies a connection that stands, in a word and for a person."""
        return [
            (BrokerState.SUBSCRIPTION_REFUSED, words.unheard(topic, refusal))
            for topic, refusal in self._unheard.items()
        ]

    def _note_subscription(self, topic: str, refusal: str | None) -> None:
        """The broker has answered one; ``refusal`` is its reason against it."""
        known = self._unheard.get(topic)
        others = {other: why for other, why in self._unheard.items() if other != topic}
        self._unheard = others if refusal is None else {**others, topic: refusal}
        if refusal is not None and refusal != known:
            _logger.error("%s (broker %s)", words.unheard(topic, refusal), self.broker)
        elif refusal is None and known is not None:
            _logger.info("the MQTT broker %s grants %s now", self.broker, topic)

    def _join(self, timeout_s: float) -> None:
        """Wait for the thread's end, after ``_stopping`` is set and the connection closed."""
        if not self._thread.is_alive():
            return
        # A connection attempt may hang in a name look-up.
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _logger.warning(
                "the connection to the MQTT broker %s does not end in time; leaving it behind",
                self.broker,
            )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._tried_with = self._stamp()
            try:
                reason = self._connect_once()
                if time.monotonic() - self._stood_since > STEADY_S:
                    self._retry_delay_s = 0.0
                    self._soon_lost = 0
                self._soon_lost += 1
                self._report_lost(reason if self._soon_lost < SOON_LOST else words.again(reason))
                self._wait(self._longer())
            except BrokerUnavailable as error:
                self._report(error)
                self._wait(self._longer())
            except PermanentError as error:
                # Asking again soon would only fill the broker's log, or have it shut us out.
                self._report(error)
                self._wait(REFUSED_RETRY_S)
            except Exception as error:
                _logger.exception("unexpected error in the connection to the MQTT broker")
                self._trouble = f"unexpected error: {error!r}"
                self._state = BrokerState.FAULT
                self._wait(REFUSED_RETRY_S)

    def _longer(self) -> float:
        return min(max(2 * self._retry_delay_s, FIRST_RETRY_S), LONGEST_RETRY_S)

    def _wait(self, delay_s: float) -> None:
        """Until the next attempt, unless other files or ``_stopping`` end it."""
        self._retry_delay_s = delay_s
        # Random, so that a plant's stations do not all come back in the same instant.
        until = time.monotonic() + delay_s * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        while (left_s := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left_s, LOOK_S)):
                return
            if self._stamp() != self._tried_with:
                _logger.info(
                    "a password or certificate file has changed: the MQTT broker %s is tried again",
                    self.broker,
                )
                self._retry_delay_s = 0.0
                return

    def _report_lost(self, reason: str) -> None:
        self._trouble = f"the connection is lost: {reason}"
        self._state = BrokerState.LOST
        if not self._stopping.is_set():
            _logger.warning(
                "the connection to the MQTT broker %s is lost; verdicts wait in the journal until "
                "it is back: %s",
                self.broker,
                reason,
            )

    def _report(self, error: InspectdError) -> None:
        """Log why there is no connection, once until it changes or there is one."""
        if self._known and isinstance(error, words.Guess):
            return
        self._known = isinstance(error, PermanentError)
        trouble = self._trouble = str(error)
        self._state = _state_of(error)
        if trouble != self._reported and not self._stopping.is_set():
            self._reported = trouble
            _logger.warning(
                "no connection to the MQTT broker %s; verdicts wait in the journal, and it is "
                "tried again every %d s or sooner: %s",
                self.broker,
                REFUSED_RETRY_S if isinstance(error, PermanentError) else LONGEST_RETRY_S,
                trouble,
            )


def _state_of(error: InspectdError) -> BrokerState:
    if isinstance(error, BrokerUnavailable | BrokerRefused):
        return error.state
    return BrokerState.UNUSABLE_FILE  # the only other one that a connection begins with
