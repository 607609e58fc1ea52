"""How station and broker know each other: password and TLS, from the files of the settings."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inspectd.errors import PermanentError
from inspectd.settings import CREDENTIALS, INSTALLED, MqttSettings, TlsSettings

LONGEST_PASSWORD = 65535
"""In bytes; MQTT has no room for more."""


@dataclass(frozen=True, slots=True)
class Access:
    """What one connection needs.

    Attributes:
        tls: None for a connection in the clear.
    """

    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None


def stamp(settings: MqttSettings, resolve: Callable[[str], Path]) -> tuple[object, ...]:
    """What `read_access` would read, seen from outside: another stamp once a file has changed."""
    tls = settings.tls or TlsSettings()
    named = (settings.password_file, tls.ca, tls.certificate, tls.key)
    return tuple(_stamp_of(resolve(path)) for path in named if path is not None)


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name that no file could have
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read_access(settings: MqttSettings, resolve: Callable[[str], Path]) -> Access:
    """Read the files that the settings name, afresh, so that a changed one needs no restart.

    ``resolve`` makes a path of the settings absolute.

    Raises:
        PermanentError: one of them is missing, empty, damaged, or does not fit the others.
    """
    password = None
    if settings.password_file is not None:
        password = _read_password(resolve(settings.password_file))
    tls = None if settings.tls is None else _tls_context(settings.tls, resolve)
    return Access(settings.username, password, tls)


def _read_password(path: Path) -> str:
    key = "mqtt.password_file"
    content = _read(path, key)
    try:
        # Some editors begin a file with a byte order mark.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Not chained: the error carries the file's content.
        raise PermanentError(
            f"{key}: {path} is no UTF-8 text; save it as UTF-8, with the password alone in it"
        ) from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise PermanentError(
            f"{key}: {path} is empty; write the password into {_source_of(path)}, nothing else"
        )
    if "\n" in password or len(content) > LONGEST_PASSWORD:
        raise PermanentError(
            f"{key}: {path} holds more than a password; it must hold one line and nothing else"
        )
    return password


def _tls_context(tls: TlsSettings, resolve: Callable[[str], Path]) -> ssl.SSLContext:
    # Of itself, this kind demands a certificate and compares the broker's name with it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Socket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca is None:
        context.load_default_certs()
    else:
        _load_authority(context, resolve(tls.ca))
    if tls.certificate is not None and tls.key is not None:
        _load_identity(context, resolve(tls.certificate), resolve(tls.key))
    return context


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    _read(path, "mqtt.tls.ca")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise PermanentError(
            f"mqtt.tls.ca: {path} holds no certificate that can be read; it must be the "
            "certificate of the authority that signed the broker's, in PEM form "
            "(-----BEGIN CERTIFICATE-----)"
        ) from error


def _load_identity(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path, name in ((certificate, "mqtt.tls.certificate"), (key, "mqtt.tls.key")):
        _read(path, name)
    try:
        # Without a password here, OpenSSL would ask for it on the terminal.
        context.load_cert_chain(certificate, key, password=_refuse_encrypted)
    except _Encrypted:
        raise PermanentError(
            f"mqtt.tls.key: {key} is encrypted with a passphrase, which nobody can type at every "
            "start; store the key without one (openssl pkey -in OLD -out NEW), readable by the "
            "service's user alone"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise PermanentError(
                f"mqtt.tls.key: {key} is not the key of the certificate {certificate}; "
                "they must be made together"
            ) from error
        what, name, path = (
            ("private key", "mqtt.tls.key", key)
            if _is_certificate(certificate)
            else ("certificate", "mqtt.tls.certificate", certificate)
        )
        raise PermanentError(
            f"{name}: {path} holds no {what} that can be used; {_source_of(path)} must be in PEM "
            f"form (-----BEGIN) and not too weak for this system "
            f"({error.reason or 'cannot be read'})"
        ) from error


class _Socket(ssl.SSLSocket):
    """Paho would leave it open when the handshake fails."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Encrypted(Exception):
    """OpenSSL asks for a passphrase."""


def _refuse_encrypted() -> str:
    raise _Encrypted


def _is_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def _read(path: Path, key: str) -> bytes:
    """The file's content; ssl's own errors would not name the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        if CREDENTIALS in path.parts:
            raise PermanentError(
                f"{key}: {CREDENTIALS}/{path.name} is there only while the service runs, to which "
                "systemd hands it, and for its user and root alone. The setting may well be right: "
                "try again while the service runs, by sudo -u inspectd; elsewhere give the folder "
                f"that has {path.name} in the variable {CREDENTIALS[1:]}"
            ) from error
        raise PermanentError(
            f"{key}: {path} cannot be read: {error.strerror}; the file must be there, and readable "
            "by the user that inspectd runs as"
        ) from error


def _source_of(path: Path) -> str:
    """Where a person changes the content of a file, in words."""
    # Systemd names the folder of what it hands over after the unit.
    unit = re.fullmatch(r"inspectd@(.+)\.service", path.parent.name)
    if unit is None:
        return "it"
    return (
        f"{INSTALLED}/credentials/{unit[1]}.{path.name} (only root may read it; systemd hands it "
        "over at the next start)"
    )
