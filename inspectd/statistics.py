"""Topics `statistics` and `heartbeat`: how production goes, and that the station is alive.

Every verdict is counted three times: since the start of the service, in the present lot, and in
the present shift. Lot and shift outlive the service: their counts are kept in a file now and then,
with the number of the last verdict in them, and those that came after are read from the journal.

A verdict belongs to the lot that it names, and to the shift in which its trigger came; one that is
late is still counted where it belongs, if that was the lot or shift before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from functools import partial
from pathlib import Path

import msgspec

from inspectd.durable import replace_file, sync_folder
from inspectd.errors import BrokerUnavailable, JournalError, TransientError
from inspectd.journal import Journal
from inspectd.payload import (
    CountStatistics,
    HeartbeatPayload,
    StatisticsPayload,
    VerdictPayload,
    decode_verdict,
    encode,
)
from inspectd.periodic import Periodic
from inspectd.settings import Station
from inspectd.tally import SCORE_EDGES, Tally, fails_in_a_row, shift_beginning, shift_end
from inspectd.typed_json import JsonError, JsonReader

_logger = logging.getLogger(__name__)

FILE = "statistics.json"
WATCH_S = 1.0
"""It is looked this often whether a shift has ended."""
BEAT_S = 1.0
KEPT_EVERY_S = 300.0
"""The counts are written down this often while verdicts come: a card wears by writing."""
REPLAYED = 50_000
"""So many verdicts are read again from the journal at most."""
BATCH = 500
TROUBLE = "unexpected error in the statistics"
SET_BACK = timedelta(hours=2)
"""A clock further behind the shift's beginning than this was wrong before. One hour less is the end
of daylight saving, and the shift that began stays."""


class Memory(msgspec.Struct, kw_only=True):
    """What outlives the service.

    Attributes:
        journal_id, seq: the last verdict that is in the counts.
        fails_in_a_row: since the last PASS or the beginning of the lot.
    """

    journal_id: str = ""
    seq: int = 0
    fails_in_a_row: int = 0
    lot: Tally | None = None
    shift: Tally | None = None
    last_lot: Tally | None = None
    last_shift: Tally | None = None


class Statistics:
    """Counts, keeps, reports, and raises the alarm; has a thread of its own."""

    def __init__(
        self,
        settings: Station,
        boot_id: str,
        folder: Path,
        *,
        waiting: Callable[[], int],
        unsent: Callable[[], int],
        heatmaps_dropped: Callable[[], int],
        alarm: Callable[[str | None], None],
        publish: Callable[[bytes], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        zone: tzinfo | None = None,
    ) -> None:
        """Args:
        settings: of the station; see `adopt`.
        boot_id: of this start of the service.
        folder: where the counts are kept.
        waiting: how many triggers wait.
        unsent: how many verdicts are unsent; may raise JournalError.
        heatmaps_dropped: how many were, since the start.
        alarm: is given the words of an alarm that is raised, and None when it is over.
        publish: takes an encoded `StatisticsPayload`; does not wait.
        clock: monotonic seconds.
        now: UTC.
        zone: of the shifts' times; None for that of the machine.
        """
        self._boot_id = boot_id
        self._path = folder / FILE
        self._waiting = waiting
        self._unsent = unsent
        self._heatmaps_dropped = heatmaps_dropped
        self._tell_alarm = alarm
        self._publish = publish
        self._clock = clock
        self._now = now
        self._zone = zone
        # Each of these is taken before those below it. The last is held for moments only: the
        # thread that judges waits for it.
        self._keeping = threading.Lock()
        self._publishing = threading.Lock()
        self._alarming = threading.Lock()
        self._lock = threading.Lock()
        self._settings = settings
        self._beginnings = _times(settings.shifts)
        self._since_start = Tally(started_at=now())
        self._memory = Memory()
        self._alarm: str | None = None
        self._told: str | None = None
        self._news = True
        self._unkept = True
        self._due = self._keep_at = clock()
        self._periodic = Periodic(
            "statistics", self.tend, WATCH_S, trouble=TROUBLE, finish=self._finish
        )

    # ---- the life of the service ---------------------------------------------------------------

    def restore(self, journal: Journal) -> None:
        """Take up lot and shift where they were left, before anything is judged.

        What cannot be read is logged; the counts then begin anew, as they do at the first start.
        """
        memory = _read(self._path)
        with self._lock:
            self._memory = memory or Memory()
        try:
            self._replay(journal, known=memory is not None)
        except JournalError as error:
            _logger.error("lot and shift lack the verdicts since they were kept last: %s", error)
        self._heed_alarm()

    def start(self) -> None:
        """Report for the first time at once, and on and on from there."""
        self._periodic.start()

    def stop(self) -> None:
        """Report and keep the counts for the last time, and end the thread.

        A disk that hesitates is not waited for: the journal has what is not kept.
        """
        self._periodic.stop()

    def adopt(self, settings: Station) -> None:
        """From now on these hold: program, alarm_after, shifts, mqtt.statistics_s."""
        with self._lock:
            self._settings = settings
            self._beginnings = _times(settings.shifts)
            self._news = True
        self._heed_alarm()
        self._periodic.wake()

    # ---- verdicts and lots -----------------------------------------------------------------------

    def note(self, verdict: VerdictPayload) -> None:
        """A verdict was committed. In the order of the commits; does not wait."""
        self._try(partial(self._note, verdict))

    def _note(self, verdict: VerdictPayload) -> None:
        with self._lock:
            self._since_start.count(verdict)
            if self._count(verdict):
                self._news = True
                self._periodic.wake()
        self._heed_alarm()

    @property
    def lot(self) -> str | None:
        """The name of the present lot."""
        with self._lock:
            return self._memory.lot.name if self._memory.lot else None

    def set_lot(self, name: str | None) -> None:
        """End the present lot, and the alarm, and begin another, or with None none.

        A request may be repeated, so the name of the present lot changes nothing.

        Raises:
            TransientError: it could not be written down; the present lot stays.
        """
        with self._keeping:
            if name == self.lot:
                return
            at = self._now()
            with self._lock:
                raw = msgspec.json.encode(_with_lot(self._memory, name, at))
            try:
                replace_file(self._path, raw)
                sync_folder(self._path.parent)
            except OSError as error:
                raise TransientError(
                    f"the lot was not changed, for it could not be written down in {self._path}: "
                    f"{error.strerror}; make room on the disk and repeat the request"
                ) from error
            # What is noted meanwhile is in the counts of the lot before, and in the journal.
            with self._lock:
                self._memory = _with_lot(self._memory, name, at)
        if name is None:
            _logger.info("no lot any more")
        else:
            _logger.info("lot %s begins", name)
        self._heed_alarm()
        self._try(self._report)

    def report(self) -> StatisticsPayload:
        """As it stands now."""
        try:
            unsent = self._unsent()
        except JournalError as error:
            _logger.warning("the statistics lack the number of unsent verdicts: %s", error)
            unsent = None
        waiting, dropped = self._waiting(), self._heatmaps_dropped()
        with self._lock:
            memory = self._memory
            return StatisticsPayload(
                station=self._settings.station,
                program=self._settings.program,
                boot_id=self._boot_id,
                at=self._now(),
                fails_in_a_row=memory.fails_in_a_row,
                waiting=waiting,
                unsent=unsent,
                heatmaps_dropped=dropped,
                score_edges=SCORE_EDGES,
                since_start=self._since_start.report(),
                lot=_reported(memory.lot),
                shift=_reported(memory.shift),
                last_lot=_reported(memory.last_lot),
                last_shift=_reported(memory.last_shift),
            )

    # ---- the thread ------------------------------------------------------------------------------

    def tend(self) -> None:
        """What the thread does every WATCH_S: turn the shift, report and keep, if it is time."""
        now = self._clock()
        with self._lock:
            turned = self._turn_shift(self._now(), heed_set_back=True)
            reporting = self._news or turned or now >= self._due
            keeping = self._unkept and (turned or now >= self._keep_at)
            self._news = False
            if reporting:
                self._due = now + self._settings.mqtt.statistics_s
            if keeping:
                self._keep_at = now + KEPT_EVERY_S
        if reporting:
            self._try(self._report)
        if keeping:
            self._try(self._keep)

    def _finish(self) -> None:
        self._try(self._report)
        self._try(self._keep)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            # No count is worth the service.
            _logger.exception(TROUBLE)

    def _report(self) -> None:
        with self._publishing:  # or an older one might be the last
            self._publish(encode(self.report()))

    def _keep(self) -> None:
        with self._keeping:
            with self._lock:
                raw = msgspec.json.encode(self._memory)
                self._unkept = False
            try:
                replace_file(self._path, raw)
                sync_folder(self._path.parent)
            except OSError as error:
                with self._lock:
                    self._unkept = True
                _logger.warning(
                    "the counts of lot and shift could not be kept in %s: %s; after a restart they "
                    "are read from the journal, the last %d verdicts at most",
                    self._path,
                    error.strerror,
                    REPLAYED,
                )

    # ---- counting; the lock is held --------------------------------------------------------------

    def _count(self, verdict: VerdictPayload) -> bool:
        """Count in lot and shift; whether a shift ended by it."""
        turned = self._turn_shift(verdict.triggered_at)
        memory = self._memory
        memory.journal_id, memory.seq = verdict.journal_id, verdict.seq
        memory.fails_in_a_row = fails_in_a_row(memory.fails_in_a_row, verdict)
        for lot in (memory.lot, memory.last_lot):
            if lot is not None and lot.name == verdict.lot:
                lot.count(verdict)
                break
        shift = memory.shift
        if shift is not None and verdict.triggered_at < shift.started_at:
            shift = memory.last_shift or shift
        if shift is not None:
            shift.count(verdict)
        self._unkept = True
        return turned

    def _turn_shift(self, at: datetime, *, heed_set_back: bool = False) -> bool:
        """Begin the shift of an instant, unless it goes on; whether one ended or began.

        An instant before the present shift is of a trigger that was late, or of a clock that was
        set back, which is heeded only where the instant is now.
        """
        memory, beginnings = self._memory, self._beginnings
        present = memory.shift
        begins, back = None, False
        if beginnings:
            local = at.astimezone(self._zone).replace(tzinfo=None)
            begins = shift_beginning(local, beginnings)
            if present is not None and present.begins is not None:
                back = begins < present.begins
                far_back = heed_set_back and present.begins - local > SET_BACK
                if begins == present.begins or (back and not far_back):
                    return False
        elif present is None:
            return False
        if present is not None:
            memory.last_shift = msgspec.structs.replace(present, ended_at=self._end(present, at))
        memory.shift = None
        if begins is not None:
            # Not by the name, where it was not counted from its beginning.
            since = at if present is None or back else min(at, self._utc(begins))
            name = begins.isoformat(timespec="minutes")
            memory.shift = Tally(name=name, begins=begins, started_at=since)
            _logger.info("shift %s begins", name)
        self._unkept = True
        return True

    def _end(self, shift: Tally, at: datetime) -> datetime:
        """When it ended, seen from a later instant: the service may have been off meanwhile."""
        end = at
        if shift.begins is not None and self._beginnings:
            end = min(at, self._utc(shift_end(shift.begins, self._beginnings)))
        return max(shift.started_at, end)

    def _utc(self, local: datetime) -> datetime:
        return (local.replace(tzinfo=self._zone) if self._zone else local).astimezone(UTC)

    # ---- alarm -----------------------------------------------------------------------------------

    def _heed_alarm(self) -> None:
        """Raise or end the alarm, and tell, if it changed; in the order of the changes."""
        with self._lock:
            row, enough = self._memory.fails_in_a_row, self._settings.alarm_after
            if not 0 < enough <= row:
                self._alarm = None
            elif self._alarm is None:
                self._alarm = f"{row} FAILs in a row"
            if self._alarm == self._told:
                return
        with self._alarming:
            with self._lock:
                alarm = self._alarm
                changed = alarm != self._told
                self._told = alarm
            if changed:
                self._tell_alarm(alarm)

    # ---- after a restart -------------------------------------------------------------------------

    def _replay(self, journal: Journal, *, known: bool) -> None:
        """Count what was committed after the counts were kept; raises JournalError."""
        memory, last = self._memory, journal.last_seq()
        seq = memory.seq if memory.journal_id == journal.id else 0
        if not known:
            seq = last  # nothing was counted before
        elif seq > last:
            _logger.warning(
                "the journal ends at verdict %d, the counts of lot and shift at %d: it was put "
                "back, or the power failed; the counts contain what it has lost",
                last,
                seq,
            )
        elif last - seq > REPLAYED:
            _logger.warning(
                "the counts of lot and shift lack the verdicts %d to %d",
                seq + 1,
                last - REPLAYED,
            )
            seq = last - REPLAYED
        for first in range(seq + 1, last + 1, BATCH):
            rows = journal.read(first, min(first + BATCH - 1, last))
            for row in rows:
                self._recount(row.seq, row.payload)
        memory.journal_id, memory.seq = journal.id, last

    def _recount(self, seq: int, payload: bytes) -> None:
        try:
            verdict = decode_verdict(payload)
        except JsonError as error:
            _logger.warning("verdict %d is in no count, for it cannot be read: %s", seq, error)
            return
        with self._lock:
            self._count(verdict)


class Heartbeat:
    """A consumer's proof of life, also when broker and station died together."""

    def __init__(
        self, boot_id: str, can_judge: Callable[[], bool], publish: Callable[[bytes], object]
    ) -> None:
        """Args:
        boot_id: of this start of the service.
        can_judge: whether the station can, now.
        publish: takes an encoded `HeartbeatPayload`; may raise BrokerUnavailable. It should send
            at QoS 0: a beat that comes late, out of a queue, proves nothing.
        """
        self._boot_id = boot_id
        self._can_judge = can_judge
        self._publish = publish
        self._count = 0
        self._periodic = Periodic(
            "heartbeat", self.beat, BEAT_S, trouble="no heartbeat could be sent"
        )

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        self._periodic.stop()

    def beat(self) -> None:
        """One, if the station can judge; without a broker it is counted and lost."""
        if not self._can_judge():
            return
        self._count += 1
        try:
            self._publish(encode(HeartbeatPayload(count=self._count, boot_id=self._boot_id)))
        except BrokerUnavailable as error:
            _logger.debug("heartbeat %d was not sent: %s", self._count, error)


def _with_lot(memory: Memory, name: str | None, at: datetime) -> Memory:
    """The memory with the present lot ended and another begun."""
    ended = memory.lot and msgspec.structs.replace(memory.lot, ended_at=at)
    return msgspec.structs.replace(
        memory,
        fails_in_a_row=0,
        lot=None if name is None else Tally(name=name, started_at=at),
        last_lot=ended or memory.last_lot,
    )


def _reported(tally: Tally | None) -> CountStatistics | None:
    return None if tally is None else tally.report()


def _times(shifts: Sequence[str]) -> tuple[time_of_day, ...]:
    return tuple(sorted({time_of_day.fromisoformat(shift) for shift in shifts}))


_MEMORY: JsonReader[Memory] = JsonReader(Memory)


def _read(path: Path) -> Memory | None:
    """What was kept; None where there is nothing of use, which is set aside."""
    try:
        return _MEMORY.read(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        trouble = str(error.strerror)
    except JsonError as error:
        trouble = str(error)
        # Where it cannot be moved, it is replaced by the next that is kept.
        with contextlib.suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
    _logger.error(
        "%s cannot be read: %s; lot and shift are counted anew, and there is no lot until "
        "request/lot names it again",
        path,
        trouble,
    )
    return None
