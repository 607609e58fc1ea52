"""The way of one trigger: picture, judgement, commit, publication, all on one thread.

Whatever goes wrong on that way ends in an answer: a trigger is never dropped, and what could not
be looked at is NOT_JUDGED.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable

import msgspec
import numpy as np

from inspectd.camera import Camera
from inspectd.clock import clock_synchronised
from inspectd.errors import (
    CameraError,
    CameraLost,
    CameraTimeout,
    CameraUnusable,
    EndOfFrames,
    JournalError,
)
from inspectd.imaging.heatmap import encode_png, render_heatmap
from inspectd.inspector import Inspector
from inspectd.journal import Journal
from inspectd.mqtt.outbox import Outbox, ReplyTo
from inspectd.payload import MapPayload, Response, VerdictPayload, judgement
from inspectd.records import Frame, Inspection, Reason, Trigger, TriggerSource, Verdict
from inspectd.settings import Settings
from inspectd.state import State, StationState
from inspectd.teaching import Lesson

_logger = logging.getLogger(__name__)

FIRST_REOPENING_S = 1.0
LONGEST_REOPENING_S = 30.0
"""A lost camera is opened again after so long, longer each time."""


class CameraClosed(CameraError):
    """No picture came because the service stops."""


class CameraKeeper:
    """The camera, opened again when it was lost, until it is closed for good."""

    def __init__(self, camera: Camera, timeout_s: float, state: StationState) -> None:
        self._camera = camera
        self._timeout_s = timeout_s
        self._state = state
        self._open = False
        self._closed = False
        self._pause_s = FIRST_REOPENING_S
        self._try_at = 0.0
        self._trouble = ""

    @property
    def is_open(self) -> bool:
        """Whether there is a camera at present."""
        return self._open

    def tend(self) -> None:
        """Open the camera if it is closed and the time has come.

        Raises:
            CameraUnusable: it cannot be used as it is set.
        """
        if self._open or self._closed or time.monotonic() < self._try_at:
            return
        try:
            self._camera.open()
        except CameraLost as error:
            self._lose(error)
        else:
            self._open = True
            self._pause_s = FIRST_REOPENING_S
            self._state.clear(State.CAMERA_FAULT)

    def capture(self, after_ns: int) -> Frame:
        """A frame exposed after an instant.

        Raises:
            CameraTimeout: none came in time.
            CameraLost: there is no camera at present.
            CameraClosed: `close` was called, before or meanwhile.
            CameraUnusable: it cannot be used as it is set.
            EndOfFrames: a recording has come to its end.
        """
        self.tend()
        if self._closed:
            raise CameraClosed("the service is stopping")
        if not self._open:
            raise CameraLost(self._trouble)
        try:
            return self._camera.capture(after_ns, self._timeout_s)
        except CameraLost as error:
            if self._closed:
                raise CameraClosed("the service is stopping") from error
            self._lose(error)
            raise

    def close(self) -> None:
        """Give the camera back for good; a waiting `capture` ends. From any thread."""
        self._closed = True
        self._camera.close()

    def _lose(self, error: CameraLost) -> None:
        self._camera.close()
        self._open = False
        self._try_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_REOPENING_S)
        self._trouble = str(error)
        self._state.hinder(State.CAMERA_FAULT, self._trouble)


class Painter:
    """Draws heatmaps on a thread of its own: drawing costs more than judging.

    They are for the eye: when parts come faster than they can be drawn, the oldest are left out.
    """

    WAITING = 4

    def __init__(self, settings: Settings, outbox: Outbox, wanted: Callable[[], bool]) -> None:
        """Args:
        settings: name the program and its regions.
        outbox: takes the drawings to the broker.
        wanted: whether there is a broker to take them.
        """
        self._settings = settings
        self._outbox = outbox
        self._wanted = wanted
        self._orders: deque[tuple[VerdictPayload, Inspection, Inspector]] = deque(
            maxlen=self.WAITING
        )
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the drawings that wait."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def paint(self, verdict: VerdictPayload, inspection: Inspection, inspector: Inspector) -> None:
        """Order the heatmap of a committed verdict."""
        if self._wanted():
            with self._changed:
                self._orders.append((verdict, inspection, inspector))
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._orders or self._stopping)
                if not self._orders:
                    return
                order = self._orders.popleft()
            try:
                self._draw(*order)
            except Exception:
                # A drawing is never worth the service; the verdict is on its way already.
                _logger.exception("the heatmap of verdict %d could not be drawn", order[0].seq)

    def _draw(self, verdict: VerdictPayload, inspection: Inspection, inspector: Inspector) -> None:
        learned = inspector.learned
        canvas = render_heatmap(
            inspection,
            program=verdict.program,
            regions=self._settings.program.regions,
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


class Judge:
    """Answers triggers, one after the other. Belongs to one thread."""

    def __init__(
        self,
        settings: Settings,
        boot_id: str,
        camera: CameraKeeper,
        journal: Journal,
        outbox: Outbox,
        state: StationState,
        painter: Painter,
    ) -> None:
        """Args:
        settings: of the station.
        boot_id: of this start of the service.
        camera: where the pictures come from.
        journal: where verdicts are committed.
        outbox: takes committed verdicts to the broker.
        state: told of faults.
        painter: draws the heatmaps.
        """
        self._settings = settings
        self._boot_id = boot_id
        self._camera = camera
        self._journal = journal
        self._outbox = outbox
        self._state = state
        self._painter = painter
        self._lesson = Lesson(Inspector(settings.program, ()))
        self._journal_failed = False

    def judge_by(self, lesson: Lesson) -> None:
        """From the next part on, judge by these references."""
        self._lesson = lesson
        self._state.note(
            references=lesson.inspector.reference_count, references_hash=lesson.references_hash
        )
        if lesson.hindrance:
            self._state.hinder(State.NOT_READY, lesson.hindrance)
        else:
            self._state.clear(State.NOT_READY)

    def tend(self) -> None:
        """See whether a journal that failed can be written again.

        Without this, a requester that heeds `availability` would never ask again.
        """
        if not self._journal_failed:
            return
        try:
            self._journal.probe()
        except JournalError as error:
            self._state.hinder(State.JOURNAL_FAULT, str(error))
        else:
            self._recover_journal()

    def answer(self, trigger: Trigger) -> None:
        """Look at a part and answer; one whose trigger waited too long is not looked at.

        Raises:
            EndOfFrames: a recording has come to its end. A trigger from outside was answered; one
                of the station's own has no part to be answered for.
            CameraUnusable: the camera cannot be used as it is set; likewise.
        """
        if self._answer_again(trigger):
            return
        waited_s = (time.monotonic_ns() - trigger.requested_ns) / 1e9
        if waited_s > self._settings.station.capture_timeout_s:
            detail = (
                f"it waited {waited_s:.1f} s in line, longer than capture_timeout_s: another part "
                "may lie there by now"
            )
            self._conclude(
                trigger, None, Inspection(Verdict.NOT_JUDGED, Reason.STALE_TRIGGER, detail)
            )
            return
        try:
            frame, inspection = self._look(trigger)
        except (EndOfFrames, CameraUnusable) as error:
            if trigger.source is TriggerSource.MQTT:
                self.refuse(trigger, Reason.CAMERA_LOST, str(error))
            raise
        except CameraClosed as error:
            # In continuous mode it is the picture that asks for a verdict, and none came.
            if trigger.source is not TriggerSource.CONTINUOUS:
                self.refuse(trigger, Reason.STOPPING, str(error))
            return
        self._conclude(trigger, frame, inspection)

    def refuse(self, trigger: Trigger, reason: Reason, detail: str) -> None:
        """Answer NOT_JUDGED without looking."""
        if not self._answer_again(trigger):
            inspection = Inspection(Verdict.NOT_JUDGED, reason, detail)
            self._conclude(trigger, None, inspection)

    def _answer_again(self, trigger: Trigger) -> bool:
        """Give a transaction that was answered before the same answer.

        Not for another part: a requester that counts its transactions from 1 again must not take
        an old PASS for the part that lies there now.
        """
        if trigger.transaction is None:
            return False
        try:
            before = self._journal.find_transaction(trigger.transaction)
        except JournalError as error:
            _logger.error("%s", error)
            return False  # the commit will fail too, and say so
        if before is None:
            return False
        response = Response(
            request="trigger", transaction=trigger.transaction, ok=True, verdict=before
        )
        if trigger.part_id not in {None, before.part_id}:
            known = "a part without id" if before.part_id is None else f"part {before.part_id}"
            refusal = (
                f"{Verdict.NOT_JUDGED}: transaction {trigger.transaction} was for {known} "
                f"(seq {before.seq}), now for part {trigger.part_id}: give each part a transaction "
                "of its own"
            )
            _logger.warning("request/trigger is refused: %s", refusal)
            response = msgspec.structs.replace(response, ok=False, verdict=None, error=refusal)
        self._outbox.respond(reply_to(trigger), response)
        return True

    def _look(self, trigger: Trigger) -> tuple[Frame | None, Inspection]:
        """A picture, judged; raises EndOfFrames, CameraUnusable or CameraClosed."""
        frame = None
        try:
            frame = self._camera.capture(trigger.requested_ns)
            return frame, self._lesson.inspector.inspect(frame.pixels)
        except (EndOfFrames, CameraUnusable, CameraClosed):
            raise
        except CameraTimeout as error:
            reason, detail = Reason.CAMERA_TIMEOUT, str(error)
        except CameraError as error:
            reason, detail = Reason.CAMERA_LOST, str(error)
        except Exception as error:
            # Whatever it was: the part was not judged, and its trigger must hear so.
            _logger.exception("unexpected error while judging")
            reason, detail = Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
        return frame, Inspection(Verdict.NOT_JUDGED, reason, detail)

    def _conclude(self, trigger: Trigger, frame: Frame | None, inspection: Inspection) -> None:
        """Commit, then publish."""
        verdict = self._payload(trigger, frame, inspection)
        try:
            verdict = self._journal.commit(verdict)
        except JournalError as error:
            self._journal_failed = True
            self._state.hinder(State.JOURNAL_FAULT, str(error))
            self._answer_uncommitted(trigger, error)
            return
        self._recover_journal()
        _log(verdict)
        from_outside = trigger.source is TriggerSource.MQTT
        self._outbox.offer(verdict, reply_to(trigger) if from_outside else None)
        self._painter.paint(verdict, inspection, self._lesson.inspector)

    def _recover_journal(self) -> None:
        self._journal_failed = False
        self._state.clear(State.JOURNAL_FAULT)

    def _answer_uncommitted(self, trigger: Trigger, error: JournalError) -> None:
        """What is in no journal is no verdict: only the requester hears of it."""
        if trigger.source is TriggerSource.MQTT:
            self._outbox.respond(
                reply_to(trigger),
                Response(
                    request="trigger",
                    transaction=trigger.transaction,
                    ok=False,
                    error=f"{Verdict.NOT_JUDGED}: {Reason.JOURNAL_UNAVAILABLE}: {error}",
                ),
            )

    def _payload(
        self, trigger: Trigger, frame: Frame | None, inspection: Inspection
    ) -> VerdictPayload:
        total_ms = (time.monotonic_ns() - trigger.requested_ns) / 1e6
        timings = {**inspection.timings_ms, "total": total_ms}
        if frame is not None:
            timings["capture"] = max(0.0, (frame.captured_ns - trigger.requested_ns) / 1e6)
        return VerdictPayload(
            station=self._settings.station.station,
            program=self._settings.station.program,
            id=uuid.uuid4().hex,
            journal_id="",
            seq=0,
            boot_id=self._boot_id,
            part_id=trigger.part_id,
            transaction=trigger.transaction,
            trigger=trigger.source.value,
            triggered_at=trigger.requested_at,
            captured_at=frame.captured_at if frame else None,
            clock_synchronised=clock_synchronised(),
            frame=frame.name if frame else None,
            **judgement(inspection),
            timings_ms={stage: round(ms, 3) for stage, ms in timings.items()},
            settings_hash=self._settings.hash,
            references_hash=self._lesson.references_hash,
        )


def reply_to(trigger: Trigger) -> ReplyTo:
    """Where the answer to a request for a trigger goes."""
    return ReplyTo(
        request="trigger", topic=trigger.response_topic, correlation_data=trigger.correlation_data
    )


def _log(verdict: VerdictPayload) -> None:
    level = logging.INFO if verdict.verdict == Verdict.PASS else logging.WARNING
    score = "" if verdict.score is None else f" score {verdict.score:.2f}"
    reason = f" ({verdict.reason}: {verdict.detail})" if verdict.reason else ""
    part = f" part {verdict.part_id}" if verdict.part_id else ""
    _logger.log(level, "%d %s%s%s%s", verdict.seq, verdict.verdict, score, part, reason)
