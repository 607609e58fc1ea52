"""A network that can be cut: a TCP proxy between a station and its broker."""

import contextlib
import socket
import struct
import threading
import time

from inspectd.commands.private_broker import HOST

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Of Linux's `struct tcp_info`, up to tcpi_last_ack_recv: milliseconds.
_UP_TO_LAST_ACK_RECV = struct.Struct("8B13I")


def _opened_at(accepted: socket.socket) -> float:
    """When the kernel last heard of the other side, which speaks at once, by `time.monotonic`.

    A busy machine may accept a connection much later, and the next one in time: by the instants of
    that, the two would seem closer together than they were.
    """
    size = _UP_TO_LAST_ACK_RECV.size
    told = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    *_, since_last_ack_ms = _UP_TO_LAST_ACK_RECV.unpack(told)
    return time.monotonic() - since_last_ack_ms / 1000.0


class Proxy:
    """Forwards every connection to a port of this machine; a context manager.

    Attributes:
        port: what to connect to.
        attempts: `time.monotonic` of each connection that was opened, whenever it was accepted.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self.attempts: list[float] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Proxy":
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._refusing = True
        self._listening.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listening.close()
        self._flowing.set()
        self._break_all()

    def cut(self, stall_s: float, refuse_s: float) -> None:
        """First nothing passes though all seems connected, then all breaks; at last it heals."""
        self._flowing.clear()
        time.sleep(stall_s)
        self._refusing = True
        self._break_all()  # what was held up is lost
        self._flowing.set()
        time.sleep(refuse_s)
        self._refusing = False

    def stall(self, seconds: float) -> None:
        """Nothing passes; what was held up comes late."""
        self._flowing.clear()
        time.sleep(seconds)
        self._flowing.set()

    def _break_all(self) -> None:
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self.attempts.append(_opened_at(near))
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(near)
            try:
                far = stack.enter_context(socket.create_connection((HOST, self._target)))
            except OSError:  # the broker is away, and so is what is before it
                return
            if self._refusing:
                return
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()
            with self._lock:
                self._sockets -= {near, far}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        self._flowing.wait()  # a cut network does not tell of an end either
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
