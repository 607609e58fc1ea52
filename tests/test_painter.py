"""The drawing of heatmaps: it holds nothing up, and keeps little."""

import threading
import weakref
from datetime import UTC, datetime

import pytest
from station import good_part
from verdicts import a_verdict

from inspectd.inspector import Inspector, ReducedCrop
from inspectd.judging import Conclusion
from inspectd.painter import Painter
from inspectd.payload import MapPayload, VerdictPayload
from inspectd.records import Frame
from inspectd.settings import Program


class Recorder:
    """An outbox that only remembers what was offered, and can hold the painter up."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.first_is_drawn = threading.Event()
        self.go_on = threading.Event()

    def offer_pictures(
        self, verdict: VerdictPayload, heatmap: bytes, values: MapPayload | None
    ) -> None:
        assert heatmap.startswith(b"\x89PNG")
        assert values is not None
        self.drawn.append(verdict.seq)
        self.first_is_drawn.set()
        assert self.go_on.wait(30)


def test_heatmaps_that_wait_keep_no_frame():
    pixels = good_part(5)
    frame = Frame(pixels, "5", datetime.now(UTC), captured_ns=0, copied_ns=0)
    inspector = Inspector(Program(), ())
    painter = Painter(Recorder(), lambda: True)  # not started: the order waits
    inspection = inspector.inspect(pixels)
    painter.paint(Conclusion(a_verdict(seq=1), inspection, frame, inspector))
    kept = weakref.ref(pixels)
    del pixels, frame
    assert kept() is None


@pytest.mark.parametrize("orders", [3, 9])
def test_heatmaps_that_wait_are_drawn_and_the_oldest_left_out(orders: int):
    references = [ReducedCrop.of(good_part(number), 100) for number in range(5)]
    inspector = Inspector(Program(), references)
    inspection = inspector.inspect(good_part(5))
    recorder = Recorder()
    painter = Painter(recorder, lambda: True)
    painter.start()
    painter.paint(Conclusion(a_verdict(seq=1), inspection, None, inspector))
    assert recorder.first_is_drawn.wait(30)
    for seq in range(2, orders + 1):
        painter.paint(Conclusion(a_verdict(seq=seq), inspection, None, inspector))
    ending = threading.Thread(target=painter.stop)
    ending.start()
    recorder.go_on.set()
    ending.join()
    assert painter.dropped == orders - len(recorder.drawn)
    assert recorder.drawn == [1, *range(max(2, orders + 1 - Painter.WAITING), orders + 1)]
