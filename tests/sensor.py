"""The simulated sensor that the real Picamera2 runs on, for the tests."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

WIDTH, HEIGHT = 1456, 1088
on_the_sensor = pytest.mark.skipif(
    importlib.util.find_spec("picamera2_sim") is None,
    reason="needs Picamera2 before a simulated sensor: make test-camera; docs/testing.md tells how "
    "that is built",
)


class Scene:
    """What lies before the simulated sensor, and what ails it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.pattern = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH), np.uint8)

    def show(self, grey: np.ndarray | int, colour: tuple[int, int] = (128, 128)) -> None:
        """uint8 (1088, 1456) or one value for all; u and v."""
        luma = np.broadcast_to(np.asarray(grey, np.uint8), (HEIGHT, WIDTH))
        chroma = np.tile(np.array(colour, np.uint8), WIDTH * HEIGHT // 4)
        fresh = self._directory / "fresh"
        fresh.write_bytes(luma.tobytes() + chroma.tobytes())
        fresh.rename(self._directory / "frame")

    @contextmanager
    def ailing(self, how: str) -> Iterator[None]:
        """``stall`` or ``error`` within the block."""
        (self._directory / how).touch()
        try:
            yield
        finally:
            (self._directory / how).unlink()
