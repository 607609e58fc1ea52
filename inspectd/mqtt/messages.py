"""The messages of a connection: one received, how one is published, and the last will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict


class PublishOptions(TypedDict, total=False):
    """How a message is published.

    Attributes:
        qos: 1 unless said otherwise.
        retain: the broker keeps it for whoever subscribes later.
        content_type: a MIME type.
        expiry_s: seconds after which the broker need not deliver it any more.
        correlation_data: of the request that it answers.
        user_properties: names and values.
    """

    qos: int
    retain: bool
    content_type: str | None
    expiry_s: int | None
    correlation_data: bytes | None
    user_properties: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when the connection breaks."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True, slots=True)
class RequestMessage:
    """A message on a topic that was subscribed to.

    Attributes:
        response_topic: where the requester wants its answer; None for ``response/NAME``.
        correlation_data: to be sent back with the answer.
        retain: it was kept by the broker, no one knows for how long.
        queued: it waited at the broker while there was no connection, or may have: what it asks
            about is over.
        sent_after_ns: `time.monotonic_ns` before which it was not sent, where the broker may have
            held it back; None: it was sent just now.
        acknowledge: to be called, from any thread, when the message has been dealt with for good;
            until then the broker holds it, and delivers it again after the connection broke.
            Acknowledgements go out in the order of the messages, and a broker delivers only so
            many without one (Mosquitto: 20): one that is held back long holds back the rest.
    """

    payload: bytes
    response_topic: str | None
    correlation_data: bytes | None
    retain: bool
    queued: bool = False
    sent_after_ns: int | None = None
    acknowledge: Callable[[], None] = lambda: None
