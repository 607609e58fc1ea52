"""Servers that are no MQTT brokers."""

import contextlib
import socket
import threading

from inspectd.commands.private_broker import HOST


class Impostor:
    """Takes TCP connections and answers each with the same bytes, or never.

    A list is of answers that each wait for something to answer.
    """

    def __init__(self, answer, wrap=lambda connection: connection, *, hang_up=True):
        self._answer = answer
        self._hang_up = hang_up
        self._wrap = wrap
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._held = []
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._held.append(connection)
                wrapped = self._wrap(connection)
                self._held.append(wrapped)
                if self._answer is not None:
                    several = self._answer if isinstance(self._answer, list) else [self._answer]
                    for answer in several:
                        wrapped.recv(4096)
                        wrapped.sendall(answer)
                    if self._hang_up:
                        wrapped.close()

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._held:
            connection.close()
