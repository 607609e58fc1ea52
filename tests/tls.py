"""Certificates and passwords for the brokers of the tests."""

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from inspectd.commands.private_broker import HOST


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates into one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._ca = trustme.CA(organization_name=name)
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str = HOST, *, days: float = 30, begins: float = -60) -> Pair:
        """For a host name or address, from ``begins`` to ``days`` from now, both in days."""
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            name, not_before=now + timedelta(days=begins), not_after=now + timedelta(days=days)
        )
        # Not Path.with_suffix: an address has points of its own.
        stem = f"{self._name}-{name}-{days}"
        pair = Pair(self._folder / f"{stem}.crt", self._folder / f"{stem}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(pair.key)
        return pair


def tls_lines(server: Pair, clients: Authority | None = None) -> list[str]:
    """For Mosquitto's settings; with ``clients``, each client must have a certificate of theirs."""
    lines = [f"certfile {server.certificate}", f"keyfile {server.key}"]
    if clients is not None:
        lines += [f"cafile {clients.file}", "require_certificate true"]
    return lines


def password_lines(folder: Path, username: str, password: str) -> list[str]:
    """For Mosquitto's settings: this user only."""
    file = folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", file, username, password], check=True)
    file.chmod(0o644)  # Mosquitto gives up root before it reads
    return ["allow_anonymous false", f"password_file {file}"]
