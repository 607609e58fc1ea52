"""The heatmaps of committed verdicts, drawn beside the judging when there is time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from inspectd.imaging.heatmap import encode_png, render_heatmap
from inspectd.judging import Conclusion
from inspectd.mqtt.outbox import Outbox
from inspectd.payload import MapPayload

_logger = logging.getLogger(__name__)


class Painter:
    """Draws heatmaps on a thread of its own: drawing costs more than judging.

    They are for the eye: when parts come faster than they can be drawn, the oldest are left out.
    """

    WAITING = 4

    def __init__(self, outbox: Outbox, wanted: Callable[[], bool]) -> None:
        """Args:
        outbox: takes the drawings to the broker.
        wanted: whether there is a broker to take them.
        """
        self._outbox = outbox
        self._wanted = wanted
        self._dropped = 0
        self._orders: deque[Conclusion] = deque(maxlen=self.WAITING)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    @property
    def dropped(self) -> int:
        """How many drawings were left out, since the start."""
        with self._changed:
            return self._dropped

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the drawings that wait."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def paint(self, conclusion: Conclusion) -> None:
        """Order the heatmap of a committed verdict."""
        if self._wanted():
            with self._changed:
                self._dropped += len(self._orders) == self.WAITING
                # Without the frame, which a drawing does without: at 1456 x 1088 pixels those that
                # wait would keep 6 MiB, in colour 18.
                self._orders.append(replace(conclusion, frame=None))
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._orders or self._stopping)
                if not self._orders:
                    return
                order = self._orders.popleft()
            try:
                self._draw(order)
            except Exception:
                # A drawing is never worth the service; the verdict is on its way already.
                _logger.exception("the heatmap of verdict %d could not be drawn", order.verdict.seq)

    def _draw(self, order: Conclusion) -> None:
        verdict, inspection, learned = order.verdict, order.inspection, order.inspector.learned
        canvas = render_heatmap(
            inspection,
            program=verdict.program,
            regions=order.inspector.program.regions,
            grid=learned.grid if learned else None,
        )
        values = None
        if inspection.map is not None:
            rows, cols = inspection.map.shape
            values = MapPayload(
                id=verdict.id,
                seq=verdict.seq,
                rows=rows,
                cols=cols,
                values=tuple(np.round(inspection.map.ravel().astype(float), 3).tolist()),
            )
        self._outbox.offer_pictures(verdict, encode_png(canvas), values)
