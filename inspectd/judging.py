"""The way of one trigger: picture, judgement, commit, publication, all on one thread.

Whatever goes wrong on that way ends in an answer: a trigger is never dropped, and what could not
be looked at is NOT_JUDGED.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from inspectd.camera_keeper import CameraClosed, CameraKeeper
from inspectd.clock import clock_synchronised
from inspectd.errors import (
    CameraError,
    CameraFrozen,
    CameraTimeout,
    CameraUnusable,
    EndOfFrames,
    ExposureNotSettled,
    JournalError,
)
from inspectd.inspector import Inspector
from inspectd.journal import Journal
from inspectd.mqtt.outbox import Outbox, ReplyTo
from inspectd.payload import Response, VerdictPayload, judgement
from inspectd.recording import Recorder
from inspectd.records import Frame, Inspection, Reason, Trigger, TriggerSource, Verdict
from inspectd.requests import used_before
from inspectd.settings import Station
from inspectd.state import State, StationState
from inspectd.teaching import Lesson

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """A committed verdict and what led to it.

    Attributes:
        frame: None where no picture was looked at.
        inspector: that judged.
    """

    verdict: VerdictPayload
    inspection: Inspection
    frame: Frame | None
    inspector: Inspector


class Signals(Protocol):
    """What a PLC without a network is told. No call waits."""

    def busy(self, on: bool) -> None:
        """A trigger is being answered, or all are."""

    def verdict(self, verdict: Verdict) -> None:
        """The answer."""


class Judge:
    """Answers triggers, one after the other. Belongs to one thread."""

    def __init__(
        self,
        station: Station,
        boot_id: str,
        camera: CameraKeeper,
        lesson_of: Callable[[str | None], Lesson],
        journal: Journal,
        recorder: Recorder,
        outbox: Outbox,
        state: StationState,
        signals: Signals,
        lot: Callable[[], str | None],
        wants_whole: Callable[[], bool],
        witnesses: Sequence[Callable[[Conclusion], None]],
    ) -> None:
        """Args:
        station: its settings; see `adopt`.
        boot_id: of this start of the service.
        camera: where the pictures come from.
        lesson_of: what to judge by, of a program by its name, or of the one in force.
        journal: where transactions are looked up.
        recorder: commits verdicts.
        outbox: takes committed verdicts to the broker.
        state: told of faults.
        signals: tells a PLC without a network.
        lot: the name of the present one.
        wants_whole: whether pictures may be kept, in full.
        witnesses: called with each committed verdict; must not wait.
        """
        self._station = station
        self._boot_id = boot_id
        self._camera = camera
        self._lesson_of = lesson_of
        self._journal = journal
        self._recorder = recorder
        self._outbox = outbox
        self._state = state
        self._signals = signals
        self._lot = lot
        self._wants_whole = wants_whole
        self._witnesses = witnesses
        self._journal_failed = False

    def adopt(self, station: Station, signals: Signals) -> None:
        """From the next part on these hold."""
        self._station = station
        self._signals = signals

    def tend(self) -> None:
        """See whether a journal that failed can be written again.

        Without this, a requester that heeds `availability` would never ask again.
        """
        if not self._journal_failed:
            return
        try:
            self._recorder.probe()
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
        self._signals.busy(on=True)
        if self._answer_again(trigger):
            return
        lesson = self._lesson_of(trigger.program)
        try:
            frame, inspection = self._look(trigger, lesson)
        except (EndOfFrames, CameraUnusable) as error:
            if trigger.source.from_outside:
                self.refuse(trigger, Reason.CAMERA_LOST, str(error))
            raise
        except CameraClosed as error:
            # In continuous mode it is the picture that asks for a verdict, and none came.
            if trigger.source is not TriggerSource.CONTINUOUS:
                self.refuse(trigger, Reason.STOPPING, str(error))
            return
        self._conclude(trigger, lesson, frame, inspection)

    def refuse(self, trigger: Trigger, reason: Reason, detail: str) -> None:
        """Answer NOT_JUDGED without looking."""
        if not self._answer_again(trigger):
            inspection = Inspection(Verdict.NOT_JUDGED, reason, detail)
            self._conclude(trigger, self._lesson_of(trigger.program), None, inspection)

    def _answer_again(self, trigger: Trigger) -> bool:
        """Give a transaction that was answered before the same answer.

        Not for another part, nor long after: a requester that counts its transactions from 1 again
        must not take an old PASS for the part that lies there now.
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
        if words := _of_another_part(trigger, before):
            refusal = f"{Verdict.NOT_JUDGED}: {words}"
            _logger.warning("request/trigger is refused: %s", refusal)
            response = msgspec.structs.replace(response, ok=False, verdict=None, error=refusal)
        self._outbox.respond(reply_to(trigger), response)
        trigger.acknowledge()
        return True

    def _look(self, trigger: Trigger, lesson: Lesson) -> tuple[Frame | None, Inspection]:
        """A picture, judged; raises EndOfFrames, CameraUnusable or CameraClosed."""
        frame = None
        if trigger.queued:
            return None, _kept_by_the_broker()
        try:
            self._camera.tend()  # now: the trigger ages while a camera is opened
            waited_s = (time.monotonic_ns() - trigger.stale_from_ns) / 1e9
            if self._camera.is_open and waited_s > self._station.capture_timeout_s:
                return None, _stale(waited_s)
            frame = self._camera.capture(trigger.due_ns, whole=self._wants_whole())
            return frame, lesson.inspector.inspect(frame.pixels, frame.view)
        except (EndOfFrames, CameraUnusable, CameraClosed):
            raise
        except ExposureNotSettled as error:
            reason, detail = Reason.NOT_SETTLED, str(error)
        except CameraTimeout as error:
            reason, detail = Reason.CAMERA_TIMEOUT, str(error)
        except CameraFrozen as error:
            reason, detail = Reason.FROZEN, str(error)
        except CameraError as error:
            reason, detail = Reason.CAMERA_LOST, str(error)
        except Exception as error:
            # Whatever it was: the part was not judged, and its trigger must hear so.
            _logger.exception("unexpected error while judging")
            reason, detail = Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
        return frame, Inspection(Verdict.NOT_JUDGED, reason, detail)

    def _conclude(
        self, trigger: Trigger, lesson: Lesson, frame: Frame | None, inspection: Inspection
    ) -> None:
        """Commit, then publish."""
        verdict = self._payload(trigger, lesson, frame, inspection)
        try:
            verdict = self._recorder.commit(verdict)
        except JournalError as error:
            self._journal_failed = True
            self._state.hinder(State.JOURNAL_FAULT, str(error))
            self._answer_uncommitted(trigger, error)
            trigger.acknowledge()
            return
        self._recover_journal()
        self._signals.verdict(inspection.verdict)
        _log(verdict)
        asked_by_mqtt = trigger.source is TriggerSource.MQTT
        self._outbox.offer(verdict, reply_to(trigger) if asked_by_mqtt else None)
        trigger.acknowledge()
        conclusion = Conclusion(verdict, inspection, frame, lesson.inspector)
        for tell in self._witnesses:
            tell(conclusion)

    def _recover_journal(self) -> None:
        self._journal_failed = False
        self._state.clear(State.JOURNAL_FAULT)

    def _answer_uncommitted(self, trigger: Trigger, error: JournalError) -> None:
        """What is in no journal is no verdict: only the requester hears of it."""
        self._signals.verdict(Verdict.NOT_JUDGED)
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
        self, trigger: Trigger, lesson: Lesson, frame: Frame | None, inspection: Inspection
    ) -> VerdictPayload:
        total_ms = (time.monotonic_ns() - trigger.requested_ns) / 1e6
        timings = {**inspection.timings_ms, "total": total_ms}
        if frame is not None:
            timings["capture"] = max(0.0, (frame.copied_ns - trigger.requested_ns) / 1e6)
        return VerdictPayload(
            station=self._station.station,
            program=lesson.program,
            id=uuid.uuid4().hex,
            journal_id="",
            seq=0,
            boot_id=self._boot_id,
            part_id=trigger.part_id,
            transaction=trigger.transaction,
            lot=self._lot(),
            trigger=trigger.source.value,
            triggered_at=trigger.requested_at,
            captured_at=frame.captured_at if frame else None,
            clock_synchronised=clock_synchronised(),
            frame=frame.name if frame else None,
            **judgement(inspection),
            timings_ms={stage: round(ms, 3) for stage, ms in timings.items()},
            settings_hash=lesson.settings_hash,
            references_hash=lesson.references_hash,
        )


def _of_another_part(trigger: Trigger, before: VerdictPayload) -> str:
    """Why the verdict with the trigger's transaction is not this part's; empty if it is."""
    assert trigger.transaction is not None
    if trigger.part_id not in {None, before.part_id}:
        known = "a part without id" if before.part_id is None else f"part {before.part_id}"
        return (
            f"transaction {trigger.transaction} was for {known} (seq {before.seq}), now for part "
            f"{trigger.part_id}: give each part a transaction of its own"
        )
    return used_before(trigger.transaction, before.triggered_at)


def _stale(waited_s: float) -> Inspection:
    detail = (
        f"its turn came {waited_s:.1f} s late, more than capture_timeout_s: another part may lie "
        "there by now"
    )
    return Inspection(Verdict.NOT_JUDGED, Reason.STALE_TRIGGER, detail)


def _kept_by_the_broker() -> Inspection:
    detail = (
        "the broker kept the request while the station was not connected: another part may lie "
        "there by now"
    )
    return Inspection(Verdict.NOT_JUDGED, Reason.STALE_TRIGGER, detail)


def reply_to(trigger: Trigger) -> ReplyTo:
    """Where the answer to a request for a trigger goes."""
    return ReplyTo(
        request="trigger", topic=trigger.response_topic, correlation_data=trigger.correlation_data
    )


def _log(verdict: VerdictPayload) -> None:
    """A line of its own only for what is not PASS: the journal has all, and a card wears out by
    what is written. No warning: `journalctl -p warning` is for what is wrong with the station.
    """
    level = logging.DEBUG if verdict.verdict == Verdict.PASS else logging.INFO
    score = "" if verdict.score is None else f" score {verdict.score:.2f}"
    reason = f" ({verdict.reason}: {verdict.detail})" if verdict.reason else ""
    part = f" part {verdict.part_id}" if verdict.part_id else ""
    fields = {
        "STATION": verdict.station,
        "PROGRAM": verdict.program,
        "SEQ": verdict.seq,
        "VERDICT": verdict.verdict,
        "REASON": verdict.reason,
        "PART_ID": verdict.part_id,
        "SCORE": verdict.score,
    }
    words = (verdict.seq, verdict.verdict, score, part, reason)
    _logger.log(level, "%d %s%s%s%s", *words, extra={"fields": fields})
