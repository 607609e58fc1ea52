"""Why the broker does not do as it should: the errors of sockets, TLS and MQTT as sentences.

Those of a connection follow on its name and a colon. What time may cure becomes a
`BrokerUnavailable`, what only a person can cure a `BrokerRefused`.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

from inspectd.errors import BrokerRefused, BrokerState, BrokerUnavailable
from inspectd.settings import MqttSettings

NoConnection = BrokerUnavailable | BrokerRefused


class Guess(BrokerUnavailable):
    """What it looks like; it may be something else."""


_PERSON_MUST_ACT = {
    "Bad user name or password": "the broker's password file must know this station: check "
    "mqtt.username and the password in mqtt.password_file",
    "Not authorized": "wrong password, or the broker's access rules do not allow this station: "
    "check mqtt.username, mqtt.password_file and the broker's rules",
    "Client identifier not valid": "the broker's rules for client ids must allow this one",
    "Unsupported protocol version": "the broker must speak MQTT 5 or 3.1.1",
    "Banned": "the broker's administrator has shut this station out",
    "Bad authentication method": "the broker must accept a user name with a password",
}
_CREDENTIALS = {
    "Bad user name or password",
    "Not authorized",
    "Bad authentication method",
}
_LARGER = (
    "raise its limit for messages, which Mosquitto calls message_size_limit and max_packet_size"
)
_FORBIDDEN = {
    "Not authorized": "the broker's access rules must allow this station",
    "Packet too large": _LARGER,
    "Quota exceeded": "the broker allows this station no more messages; raise its quota",
}
_LOST = {
    "Session taken over": "has another station on this broker the same name?",
    "Packet too large": _LARGER,
    "Quota exceeded": "the broker allows this station no more messages; raise its quota",
    "Message rate too high": "the broker allows fewer messages a second; raise its limit, or lower "
    "mqtt.backlog_rate",
    "Administrative action": "the broker's administrator has ended it",
    "Keep alive timeout": "the broker hangs, or the network between is interrupted",
    "Unspecified error": "the broker was stopped, or the network between is interrupted",
}

# By OpenSSL's numbers (X509_V_ERR_...), which ssl gives as verify_code.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}

# What a broker says of the station's certificate, by the end of OpenSSL's reason.
_ALERTS = {
    "CERTIFICATE_EXPIRED": "the station's own certificate (mqtt.tls.certificate) has expired, or "
    "the broker's clock is wrong; get a new one",
    "CERTIFICATE_REVOKED": "the station's own certificate (mqtt.tls.certificate) is revoked; get a "
    "new one",
    "UNKNOWN_CA": "the broker does not know the authority of the station's own certificate "
    "(mqtt.tls.certificate); take one that the broker's authority has signed",
}


def refused(reason: str) -> NoConnection:
    """The broker has answered the connection with a reason code against it, here by its name."""
    words = f"it refuses the connection: {_with(_PERSON_MUST_ACT | _LOST, reason)}"
    state = BrokerState.REFUSED_CREDENTIALS if reason in _CREDENTIALS else BrokerState.REFUSED
    if reason in _PERSON_MUST_ACT:
        return BrokerRefused(words, state)
    return BrokerUnavailable(words, state)


def lost(reason: str) -> str:
    """A connection that stood has ended."""
    return _with(_LOST, reason)


def again(reason: str) -> str:
    """Connections end soon after they were made; old brokers do not say that one was taken over."""
    return (
        f"{reason}; this happens again and again: if the broker goes on working, has another "
        "station on it the same name?"
    )


def silent(seconds: float) -> str:
    """The broker takes messages and acknowledges none."""
    return (
        f"it has acknowledged none of the messages for {seconds:.0f} s (does it hang, or is its "
        "disk full?)"
    )


def too_large(size: int, largest: int) -> str:
    """A message of ``size`` bytes has not even been sent."""
    return f"it takes at most {largest} bytes, not {size} ({_LARGER})"


def forbidden(reason: str) -> str:
    """The broker has refused a message or a subscription."""
    return _with(_FORBIDDEN, reason)


def unheard(topic: str, refusal: str) -> str:
    """The broker has refused a subscription."""
    return f"the MQTT broker does not let this station have what comes on {topic}: {refusal}"


def not_back(seconds: float) -> str:
    """A message that the station sent itself; the broker may keep all of its subscription back."""
    return (
        f"it did not come back in {seconds:.0f} s (perhaps the broker lets no request through: may "
        "the station read them?)"
    )


def requests_lost(marker: str, reason: str) -> str:
    """The station's own message on the topic ``marker`` does not come back to it."""
    return (
        "requests sent while the station is away from the MQTT broker are lost, since it could not "
        "tell them from new ones; the broker must let the station both publish and receive "
        f"{marker}: {reason}"
    )


def state_of_refusal(refusal: str) -> BrokerState:
    """What `forbidden` or `too_large` has put in words, in a word."""
    return BrokerState.MESSAGE_TOO_LARGE if _LARGER in refusal else BrokerState.MESSAGES_REFUSED


def _with(hints: dict[str, str], reason: str) -> str:
    return f"{reason} ({hints[reason]})" if reason in hints else reason


def not_opened(error: Exception, settings: MqttSettings) -> NoConnection:
    """The connection could not be opened, or its TLS handshake failed."""
    match error:
        case ssl.SSLCertVerificationError():
            return BrokerRefused(_distrust(error, settings.host), BrokerState.REFUSED_CERTIFICATE)
        case ssl.SSLError():
            return _broken_handshake(error, settings)
        case ValueError():  # no name server could know such a name
            return BrokerRefused(
                f"mqtt.host is no name or address of a computer ({error})", BrokerState.UNREACHABLE
            )
    if settings.tls is not None and _began_handshake(error):
        return BrokerUnavailable(_no_tls(settings), BrokerState.WRONG_PROTOCOL)
    return BrokerUnavailable(_unreachable(error))


def _unreachable(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused (is the broker running, and mqtt.port right?)"
        case socket.gaierror():
            return "its name cannot be looked up (is mqtt.host right?)"
        case TimeoutError():
            return "no answer (is it switched on, and the network connected?)"
        case _:
            return str(error)


def _began_handshake(error: Exception) -> bool:
    """Whether TCP stood when it happened; time-outs differ by their words only."""
    if isinstance(error, TimeoutError):
        return "handshake" in str(error)
    return isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)


def broken_off(
    error: BaseException | None, settings: MqttSettings, *, expects_tls: bool
) -> NoConnection:
    """The connection stood, but ended before the broker's answer.

    ``error`` is an OSError where the network told it, None for an orderly end, and anything else
    where something came that is not MQTT. ``expects_tls``: it speaks TLS, and we did not.
    """
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(
            "it takes the connection but does not answer (does it hang, or is it no MQTT broker?)",
            BrokerState.SILENT,
        )
    if expects_tls:
        return BrokerRefused(
            "it expects TLS on this port: add mqtt.tls with the broker's authority (ca), or take "
            "its port without TLS",
            BrokerState.WRONG_PROTOCOL,
        )
    if settings.tls is None or not isinstance(error, OSError | None):
        return BrokerUnavailable(
            "it takes the connection but gives no proper answer (is it an MQTT broker?)",
            BrokerState.WRONG_PROTOCOL,
        )
    # With TLS 1.3 the handshake is over on this side before the broker looks at the certificate.
    return _own_certificate(error, settings)


def _distrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return (
            "its certificate, or its authority's, has expired; the broker needs a new one "
            f"(unless this station's clock is wrong, by which it is {_today()})"
        )
    if code == _NOT_YET_VALID:
        return (
            "its certificate is not valid yet by this station's clock; "
            f"is it {_today()}, or is the clock wrong?"
        )
    if code in _UNKNOWN_AUTHORITY:
        return (
            "its certificate is not signed by an authority that this station trusts; mqtt.tls.ca "
            "must name the file with the certificate of the broker's authority"
        )
    if code in _OTHER_NAME:
        return (
            f"its certificate is for another name than {host}; mqtt.host must be a name that "
            "stands in the certificate"
        )
    return f"its certificate is not accepted: {error.verify_message}"


def _today() -> str:
    # No closer than this, or each attempt would have news.
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _broken_handshake(error: ssl.SSLError, settings: MqttSettings) -> NoConnection:
    reason = error.reason or ""
    if "ALERT" in reason and "PROTOCOL_VERSION" not in reason:
        return _own_certificate(error, settings)
    if reason in {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}:
        return BrokerRefused(
            "it speaks no TLS of version 1.2 or later; the broker must be updated",
            BrokerState.WRONG_PROTOCOL,
        )
    if reason == "WRONG_VERSION_NUMBER":
        return BrokerRefused(_no_tls(settings), BrokerState.WRONG_PROTOCOL)
    if isinstance(error, ssl.SSLEOFError):
        return BrokerUnavailable(_no_tls(settings), BrokerState.WRONG_PROTOCOL)
    return BrokerRefused(f"the TLS handshake failed: {reason or error}", BrokerState.WRONG_PROTOCOL)


def _no_tls(settings: MqttSettings) -> str:
    return (
        f"it does not answer in TLS; is {settings.port} its port for TLS (often 8883)? "
        "If the broker has none, take mqtt.tls away"
    )


def _own_certificate(error: BaseException | None, settings: MqttSettings) -> NoConnection:
    """The broker has ended the TLS connection, and maybe said why."""
    reason = (isinstance(error, ssl.SSLError) and error.reason) or ""
    for ending, words in _ALERTS.items():
        if reason.endswith(ending):
            return BrokerRefused(words, BrokerState.REFUSED_CERTIFICATE)
    # Without a reason the broker may also be about to stop; with TLS 1.3 the reason is often lost
    # when the connection is.
    kind = BrokerRefused if reason else Guess
    if settings.tls is not None and settings.tls.certificate is None:
        return kind(
            "it ends the TLS connection at once, as a broker does that wants a certificate of the "
            "station: set mqtt.tls.certificate and mqtt.tls.key",
            BrokerState.REFUSED_CERTIFICATE,
        )
    return kind(
        "it ends the TLS connection at once; does the broker trust the station's own certificate "
        "(mqtt.tls.certificate)?",
        BrokerState.REFUSED_CERTIFICATE,
    )
