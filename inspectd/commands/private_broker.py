"""A Mosquitto of one's own on the loopback interface, for the demonstration and the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from inspectd.errors import BrokerUnavailable, PermanentError

HOST = "127.0.0.1"
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
_DAEMON_USER = "mosquitto"
"""Who a Mosquitto that was started by root becomes."""


def find_mosquitto() -> str | None:
    """The program's path; Debian installs it where a user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class PrivateBroker:
    """Open to everyone on this machine, known to nobody: a port of its own, on 127.0.0.1 only.

    A context manager; whoever leaves it has stopped the process.

    Attributes:
        port: stays the same when the broker is started again.
        process: None while it is stopped.
    """

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        *,
        persistent: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        """Prepare; `start`, or entering the context, starts it.

        Args:
            directory: for its settings, log and data; made if it is not there.
            port: a free one by default.
            persistent: keep retained messages over `restart`. If root starts it, the folders above
                ``directory`` must be open to the user `mosquitto`.
            settings: further lines for its file of settings.
        """
        self.directory = directory
        self.port = _free_port() if port is None else port
        self.process: subprocess.Popen[bytes] | None = None
        self._persistent = persistent
        self._settings = tuple(settings)

    @property
    def log_path(self) -> Path:
        return self.directory / "mosquitto.log"

    def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            PermanentError: there is no Mosquitto on this machine.
            BrokerUnavailable: its port is taken, it ended at once, or did not become ready.
        """
        program = find_mosquitto()
        if program is None:
            raise PermanentError(
                "the MQTT broker Mosquitto is not installed; on Debian: sudo apt install mosquitto"
            )
        _refuse_taken(self.port)
        settings = self._write_settings()
        with self.log_path.open("ab") as log:
            # In a process group of its own: Ctrl-C is for us, who then stop it in order.
            self.process = subprocess.Popen(
                [program, "-c", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        try:
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, in good order if it will. Stopping a stopped broker does nothing."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _write_settings(self) -> Path:
        lines = [
            f"listener {self.port} {HOST}",
            "allow_anonymous true",
            "set_tcp_nodelay true",  # else a message may take 40 ms longer
            "log_dest stderr",
        ]
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._persistent:
            data = self.directory / "data"
            data.mkdir(exist_ok=True)
            if os.geteuid() == 0:
                shutil.chown(data, _DAEMON_USER)
            lines += ["persistence true", f"persistence_location {data}/"]
        path = self.directory / "mosquitto.conf"
        path.write_text("\n".join([*lines, *self._settings]) + "\n", encoding="utf-8")
        return path

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + _READY_WITHIN_S
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                socket.create_connection((HOST, self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        said = self.log_path.read_text(encoding="utf-8", errors="replace").strip()
        raise BrokerUnavailable(
            f"the private MQTT broker on port {self.port} did not start; it said: "
            f"{said[-500:] or 'nothing'}"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _refuse_taken(port: int) -> None:
    """Otherwise the process that has the port would be taken for the broker that is ready."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Mosquitto does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BrokerUnavailable(
                f"the private MQTT broker cannot have port {port}: {error.strerror}"
            ) from error
