"""Counts since the start, in a lot and in a shift; what outlives a restart; alarm and heartbeat."""

import json
import queue
import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from broker import eventually
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from verdicts import a_verdict

from inspectd import statistics
from inspectd.errors import BrokerUnavailable, JournalError, TransientError
from inspectd.journal import Journal
from inspectd.payload import (
    HeartbeatPayload,
    RegionPayload,
    StatisticsPayload,
    encode,
    json_schemas,
)
from inspectd.settings import MqttSettings, SimulatedCamera, Station
from inspectd.statistics import Heartbeat, Statistics
from inspectd.tally import RATIO, Durations

WAIT_S = 10.0
BERLIN = ZoneInfo("Europe/Berlin")
MORNING = datetime(2026, 7, 29, 10, 0, tzinfo=BERLIN)
FAIL = {"verdict": "FAIL", "reason": "above limit", "score": 2.5}
NOT_JUDGED = {"verdict": "NOT_JUDGED", "reason": "too dark", "score": None}
THREE_SHIFTS = ("22:00", "06:00", "14:00")


def station(**changes) -> Station:
    return Station(station="line1", program="connector", camera=SimulatedCamera(), **changes)


class Bench:
    """Statistics with a journal and clocks set by hand, and what they have told."""

    def __init__(self, folder, **settings) -> None:
        self.folder = folder
        self.journal = Journal.open(folder / "journal.db")
        self.wall = MORNING
        self.now = 1000.0
        self.published: list[StatisticsPayload] = []
        self.alarms: list[str | None] = []
        self.start_again(**settings)

    def start_again(self, **settings) -> None:
        """As after a SIGKILL: of what ran before, only what is on the disk is left."""
        self.statistics = Statistics(
            station(**settings),
            "boot",
            self.folder,
            waiting=lambda: 3,
            unsent=self.journal.unsent_count,
            heatmaps_dropped=lambda: 7,
            alarm=self.alarms.append,
            publish=self.publish,
            clock=lambda: self.now,
            now=lambda: self.wall.astimezone(UTC),
            zone=BERLIN,
        )
        self.statistics.restore(self.journal)
        self.statistics.tend()

    def publish(self, raw: bytes) -> None:
        Draft202012Validator(json_schemas()["statistics"]).validate(json.loads(raw))
        self.published.append(msgspec.json.decode(raw, type=StatisticsPayload))

    def commit(self, **changes):
        facts = {"triggered_at": self.wall.astimezone(UTC), "lot": self.statistics.lot} | changes
        return self.journal.commit(a_verdict(**facts))

    def judge(self, *kinds, **changes) -> None:
        for kind in kinds or ({},):
            self.statistics.note(self.commit(**kind, **changes))

    def at(self, *time_, zone=BERLIN) -> None:
        """It becomes this time of the wall clock, and the thread looks up."""
        self.wall = datetime(*time_, tzinfo=zone)
        self.tend()

    def tend(self, after_s: float = 1.0) -> None:
        self.now += after_s
        self.statistics.tend()

    @property
    def report(self) -> StatisticsPayload:
        return self.statistics.report()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


@pytest.fixture
def shifts(tmp_path):
    bench = Bench(tmp_path, shifts=THREE_SHIFTS)
    yield bench
    bench.journal.close()


# ---- counts ------------------------------------------------------------------------------------


def test_a_station_that_has_done_nothing(bench):
    report = bench.report
    assert (report.station, report.program, report.boot_id) == ("line1", "connector", "boot")
    assert (report.waiting, report.unsent, report.heatmaps_dropped) == (3, 0, 7)
    assert report.at == MORNING
    counts = report.since_start
    assert counts.by_verdict == {"PASS": 0, "FAIL": 0, "NOT_JUDGED": 0}
    assert (counts.inspected, counts.yield_, counts.latency, counts.capture) == (
        0,
        None,
        None,
        None,
    )
    assert (report.lot, report.shift, report.last_lot, report.last_shift) == (None,) * 4


def test_counts_by_verdict_reason_and_region(bench):
    regions = (
        RegionPayload(name="pin_1", score=2.5, failed=True),
        RegionPayload(name="pin_2", score=0.5, failed=False),
    )
    bench.judge({}, {}, {}, FAIL, {**FAIL, "regions": regions}, NOT_JUDGED)
    report = bench.report
    counts = report.since_start
    assert counts.inspected == 6
    assert counts.by_verdict == {"PASS": 3, "FAIL": 2, "NOT_JUDGED": 1}
    assert counts.by_reason == {"above limit": 2, "too dark": 1}
    assert counts.by_region == {"pin_1": 1}
    assert counts.yield_ == 0.6
    assert report.unsent == 6
    assert json.loads(encode(report))["since_start"]["yield"] == 0.6


@pytest.mark.parametrize(
    ("score", "index"),
    [
        (0.0, 0),
        (0.1, 0),
        (0.1001, 1),
        (0.3, 2),
        (0.7, 6),
        (1.0, 9),  # the limit itself is a PASS
        (1.0001, 10),
        (2.0, 19),
        (2.0001, 20),
        (1e9, 20),
    ],
)
def test_the_class_of_a_score(bench, score, index):
    bench.judge({"score": score})
    report = bench.report
    assert [place for place, count in enumerate(report.since_start.scores) if count] == [index]
    assert report.score_edges[index] <= score
    assert score == 0.0 or report.score_edges[index] < score
    assert index == 20 or score <= report.score_edges[index + 1]


def test_a_part_that_was_not_judged_has_no_score(bench):
    bench.judge(NOT_JUDGED)
    assert sum(bench.report.since_start.scores) == 0


def test_durations(bench):
    for ms in range(1, 101):
        bench.judge({"timings_ms": {"total": float(ms), "capture": ms / 2, "align": 900.0}})
    bench.judge({"timings_ms": {"total": 0.5}})  # answered without a picture
    counts = bench.report.since_start
    assert counts.latency.count == 101
    assert counts.latency.longest_ms == 100.0
    assert 50 <= counts.latency.p50_ms <= 50 * 1.05
    assert 99 <= counts.latency.p99_ms <= 100
    assert counts.capture.count == 100
    assert 25 <= counts.capture.p50_ms <= 25 * 1.05


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_of_all_and_at_most_a_twentieth_too_high(seed):
    values = np.random.default_rng(seed).lognormal(3.0, 1.0, 20_000)
    durations = Durations()
    for value in values:
        durations.count(float(value))
    report = durations.report()
    for quantile, told in ((50, report.p50_ms), (99, report.p99_ms)):
        exact = np.percentile(values, quantile, method="inverted_cdf")
        assert exact - 0.01 <= told <= exact * RATIO + 0.01
    assert len(durations.classes) < 200


def test_the_longest_row_of_fails_is_not_ended_by_a_part_not_judged(bench):
    bench.judge(FAIL, {}, FAIL, FAIL, NOT_JUDGED, FAIL)
    assert bench.report.fails_in_a_row == 3
    assert bench.report.since_start.longest_fail_run == 3
    bench.judge({}, FAIL)
    assert bench.report.fails_in_a_row == 1
    assert bench.report.since_start.longest_fail_run == 3


def test_a_journal_that_cannot_be_read_costs_only_its_own_figure(bench, monkeypatch):
    bench.judge()

    def fail() -> int:
        raise JournalError("disk gone")

    monkeypatch.setattr(bench.statistics, "_unsent", fail)
    assert bench.report.unsent is None
    assert bench.report.since_start.inspected == 1


def test_nothing_is_lost_when_it_is_reported_meanwhile(bench):
    verdicts = [bench.commit() for _ in range(300)]
    thread = threading.Thread(target=lambda: [bench.statistics.note(one) for one in verdicts])
    thread.start()
    for _ in range(50):
        bench.tend(60.0)
    thread.join()
    assert bench.report.since_start.inspected == 300


# ---- lots --------------------------------------------------------------------------------------


def test_a_lot_is_counted_anew_and_published_complete_when_it_ends(bench):
    bench.judge(FAIL)
    bench.statistics.set_lot("A")
    assert bench.published[-1].lot.name == "A"
    assert bench.published[-1].lot.inspected == 0
    bench.judge({}, {}, FAIL)
    bench.wall += timedelta(hours=1)
    bench.statistics.set_lot("B")
    report = bench.published[-1]
    assert (report.lot.name, report.lot.inspected, report.lot.ended_at) == ("B", 0, None)
    assert report.last_lot.name == "A"
    assert report.last_lot.by_verdict == {"PASS": 2, "FAIL": 1, "NOT_JUDGED": 0}
    assert report.last_lot.started_at == MORNING
    assert report.last_lot.ended_at == report.lot.started_at == MORNING + timedelta(hours=1)
    assert report.since_start.inspected == 4


def test_lots_that_follow_at_once_are_each_published_complete(bench):
    for name in ("A", "B", None, "C"):
        bench.statistics.set_lot(name)
    ended = [report.last_lot and report.last_lot.name for report in bench.published]
    assert ended == [None, None, "A", "B", "B"]
    assert [report.lot and report.lot.name for report in bench.published] == [
        None,
        "A",
        "B",
        None,
        "C",
    ]


def test_a_request_for_the_present_lot_that_is_repeated_changes_nothing(bench):
    bench.statistics.set_lot("A")
    bench.judge(FAIL)
    bench.statistics.set_lot("A")
    assert bench.report.lot.inspected == 1
    assert bench.report.fails_in_a_row == 1
    assert bench.report.last_lot is None


def test_a_part_that_is_late_is_counted_in_its_own_lot(bench):
    bench.statistics.set_lot("A")
    late = bench.commit()
    bench.statistics.set_lot("B")
    bench.statistics.note(late)
    assert bench.report.lot.inspected == 0
    assert bench.report.last_lot.inspected == 1


def test_a_lot_that_cannot_be_written_down_is_refused(bench):
    bench.statistics.set_lot("A")
    bench.judge()
    (bench.folder / ".writing-statistics.json").mkdir()
    with pytest.raises(TransientError, match="make room on the disk"):
        bench.statistics.set_lot("B")
    assert bench.statistics.lot == "A"
    assert bench.report.lot.inspected == 1


# ---- shifts ------------------------------------------------------------------------------------


def test_a_shift_ends_at_its_time_and_is_published_at_once(shifts):
    shifts.judge({}, FAIL)
    shifts.at(2026, 7, 29, 13, 59, 59)
    before = len(shifts.published)
    shifts.at(2026, 7, 29, 14, 0, 0, 700_000)
    (report,) = shifts.published[before:]
    assert report.shift.name == "2026-07-29T14:00"
    assert report.shift.started_at == datetime(2026, 7, 29, 14, 0, tzinfo=BERLIN)
    assert report.shift.inspected == 0
    assert report.last_shift.name == "2026-07-29T06:00"
    assert report.last_shift.inspected == 2
    assert report.last_shift.started_at == MORNING  # not 6:00: nobody counted then
    assert report.last_shift.ended_at == datetime(2026, 7, 29, 14, 0, tzinfo=BERLIN)


def test_a_shift_that_lasts_over_midnight_is_one(shifts):
    shifts.at(2026, 7, 29, 22, 0)
    shifts.judge()
    shifts.at(2026, 7, 30, 0, 0)
    shifts.judge()
    shifts.at(2026, 7, 30, 5, 59, 59)
    assert shifts.report.shift.name == "2026-07-29T22:00"
    assert shifts.report.shift.inspected == 2
    shifts.at(2026, 7, 30, 6, 0)
    assert shifts.report.shift.name == "2026-07-30T06:00"


def test_a_verdict_belongs_to_the_shift_of_its_trigger(shifts):
    shifts.wall = datetime(2026, 7, 29, 13, 59, 59, tzinfo=BERLIN)
    late = shifts.commit()
    shifts.wall = datetime(2026, 7, 29, 14, 0, tzinfo=BERLIN)
    shifts.judge()  # before the thread has looked at the clock
    shifts.statistics.note(late)
    assert shifts.report.shift.name == "2026-07-29T14:00"
    assert shifts.report.shift.inspected == 1
    assert shifts.report.last_shift.inspected == 1
    before = len(shifts.published)
    shifts.tend()
    assert len(shifts.published) == before + 1


@pytest.mark.parametrize(
    ("utc", "name"),
    [
        # 29 March 2026: at 2:00 (1:00 UTC) it becomes 3:00, and 2:30 never comes.
        ((2026, 3, 29, 0, 59, 59), "2026-03-28T02:30"),
        ((2026, 3, 29, 1, 0, 0), "2026-03-29T02:30"),
        # 25 October 2026: at 3:00 (1:00 UTC) it becomes 2:00, and 2:30 comes twice.
        ((2026, 10, 25, 0, 29, 59), "2026-10-24T02:30"),
        ((2026, 10, 25, 0, 30, 0), "2026-10-25T02:30"),
        ((2026, 10, 25, 1, 0, 0), "2026-10-25T02:30"),
        ((2026, 10, 25, 1, 30, 0), "2026-10-25T02:30"),
    ],
)
def test_daylight_saving(tmp_path, utc, name):
    bench = Bench(tmp_path, shifts=("02:30",))
    instant = datetime(*utc, tzinfo=UTC)
    for minute in range(240, -1, -10):
        bench.wall = instant - timedelta(minutes=minute)
        bench.tend()
    assert bench.report.shift.name == name
    assert bench.report.shift.started_at <= instant
    bench.journal.close()


def test_no_shift_comes_twice_when_the_hour_does(tmp_path):
    bench = Bench(tmp_path, shifts=("02:30", "14:00"))
    for minute in range(0, 300, 5):
        bench.wall = datetime(2026, 10, 24, 22, 0, tzinfo=UTC) + timedelta(minutes=minute)
        bench.tend()
        bench.judge()
    assert bench.report.shift.name == "2026-10-25T02:30"
    # From 0:30 to 2:55 UTC.
    assert bench.report.shift.inspected == 30
    assert bench.report.last_shift.name == "2026-10-24T14:00"
    assert bench.report.last_shift.inspected == 30
    bench.journal.close()


def test_a_clock_that_was_years_ahead_does_not_keep_its_shift(shifts):
    shifts.at(2036, 1, 1, 7, 0)
    shifts.judge()
    assert shifts.report.shift.name == "2036-01-01T06:00"
    shifts.at(2026, 7, 29, 10, 5)
    assert shifts.report.shift.name == "2026-07-29T06:00"
    assert shifts.report.shift.inspected == 0
    ended = shifts.report.last_shift
    assert (ended.name, ended.inspected) == ("2036-01-01T06:00", 1)
    assert ended.started_at <= ended.ended_at
    shifts.judge()
    assert shifts.report.shift.inspected == 1


def test_a_trigger_of_before_the_clock_was_set_does_not_bring_an_old_shift_back(shifts):
    shifts.judge(triggered_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert shifts.report.shift.name == "2026-07-29T06:00"
    assert shifts.report.shift.inspected == 1


def test_a_clock_set_back_a_little_does_not_end_the_shift_again(shifts):
    shifts.at(2026, 7, 29, 14, 10)
    shifts.at(2026, 7, 29, 13, 50)
    assert shifts.report.shift.name == "2026-07-29T14:00"
    shifts.at(2026, 7, 29, 14, 0)
    assert shifts.report.shift.name == "2026-07-29T14:00"


def test_other_settings_hold_from_now_on(shifts):
    shifts.judge(FAIL, FAIL)
    shifts.statistics.adopt(replace(station(alarm_after=2), program="cover"))
    shifts.tend()
    report = shifts.published[-1]
    assert report.program == "cover"
    assert report.shift is None
    assert report.last_shift.inspected == 2
    assert shifts.alarms == ["2 FAILs in a row"]
    shifts.statistics.adopt(station(shifts=("09:00",)))
    shifts.tend()
    assert shifts.published[-1].shift.name == "2026-07-29T09:00"
    assert shifts.alarms[-1] is None


# ---- restart -----------------------------------------------------------------------------------


def lot_and_shift(report):
    return (report.lot, report.shift, report.last_lot, report.last_shift, report.fails_in_a_row)


def test_lot_and_shift_outlive_a_kill_to_the_last_verdict(shifts):
    timings = {"timings_ms": {"total": 31.0, "capture": 20.0}}
    shifts.statistics.set_lot("A")
    shifts.judge({}, FAIL, NOT_JUDGED, **timings)
    shifts.statistics.set_lot("B")
    shifts.judge(FAIL, {}, **timings)
    shifts.tend(statistics.KEPT_EVERY_S)
    shifts.judge({}, FAIL, FAIL, **timings)
    before = shifts.report
    shifts.start_again(shifts=THREE_SHIFTS)
    after = shifts.report
    assert lot_and_shift(after) == lot_and_shift(before)
    assert after.lot.inspected == 5
    assert after.shift.inspected == 8
    assert after.since_start.inspected == 0
    assert shifts.statistics.lot == "B"


def test_a_lot_named_just_before_a_kill_outlives_it(bench):
    bench.statistics.set_lot("A")
    bench.start_again()
    assert bench.statistics.lot == "A"
    bench.statistics.set_lot(None)
    bench.start_again()
    assert bench.statistics.lot is None
    assert bench.report.last_lot.name == "A"


def test_a_verdict_that_was_committed_and_not_counted_when_the_process_was_killed(bench):
    bench.statistics.set_lot("A")
    bench.commit()
    bench.start_again()
    assert bench.report.lot.inspected == 1


def test_kills_at_any_point_neither_lose_nor_double_a_verdict(shifts):
    random = np.random.default_rng(7)
    names, count = ["A", "B", "C", None], {}
    for _ in range(200):
        match random.integers(6):
            case 0:
                shifts.start_again(shifts=THREE_SHIFTS)
            case 1:
                name = names[random.integers(4)]
                if name != shifts.statistics.lot:
                    count[name] = 0
                shifts.statistics.set_lot(name)
            case 2:
                shifts.tend(random.uniform(0, 2 * statistics.KEPT_EVERY_S))
            case _:
                shifts.judge(FAIL if random.integers(2) else {})
                count[shifts.statistics.lot] = count.get(shifts.statistics.lot, 0) + 1
        lot = shifts.report.lot
        assert (lot.inspected if lot else 0) == (count[lot.name] if lot else 0)
    assert shifts.report.shift.inspected == shifts.journal.last_seq()


def test_a_shift_that_ended_while_the_service_was_off_ended_at_its_time(shifts):
    shifts.judge()
    shifts.wall = datetime(2026, 8, 3, 6, 30, tzinfo=BERLIN)
    shifts.start_again(shifts=THREE_SHIFTS)
    report = shifts.published[-1]
    assert report.shift.name == "2026-08-03T06:00"
    assert report.last_shift.name == "2026-07-29T06:00"
    assert report.last_shift.inspected == 1
    assert report.last_shift.ended_at == datetime(2026, 7, 29, 14, 0, tzinfo=BERLIN)


def test_a_file_that_is_damaged_is_set_aside_and_said(bench, caplog):
    bench.statistics.set_lot("A")
    (bench.folder / "statistics.json").write_text('{"lot": {"name": "A"')
    bench.start_again()
    assert bench.statistics.lot is None
    assert "there is no lot until request/lot names it again" in caplog.text
    assert (bench.folder / "statistics.json.damaged").exists()
    bench.statistics.set_lot("B")
    bench.start_again()
    assert bench.statistics.lot == "B"


@pytest.mark.parametrize(
    "kept",
    [
        {"lot": {"name": "A", "started_at": "2026-07-29T06:00:00Z", "scores": [1, 2]}},
        {"lot": {"name": "A", "started_at": "2026-07-29T06:00:00"}},
        {"shift": {"started_at": "2026-07-29T06:00:00Z", "begins": "early"}},
        {"seq": "many"},
        [],
    ],
    ids=["too few classes", "no zone", "no time", "no number", "no object"],
)
def test_what_is_no_memory_is_not_counted_on(bench, kept):
    (bench.folder / "statistics.json").write_text(json.dumps(kept))
    bench.start_again()
    bench.judge()
    assert bench.report.since_start.inspected == 1
    assert bench.report.lot is None


def test_the_first_start_does_not_count_what_was_judged_before(bench):
    bench.judge({}, {})
    (bench.folder / "statistics.json").unlink()
    bench.start_again(shifts=THREE_SHIFTS)
    assert bench.report.shift.inspected == 0


def test_a_new_journal_goes_on_with_the_counts(bench, tmp_path):
    bench.statistics.set_lot("A")
    bench.judge({}, {}, {})
    bench.tend(statistics.KEPT_EVERY_S)
    bench.journal.close()
    bench.journal = Journal.open(tmp_path / "new" / "journal.db")
    bench.commit()
    bench.start_again()
    assert bench.report.lot.inspected == 4


def test_a_journal_that_lost_its_end_goes_on_with_the_counts(bench, tmp_path, caplog):
    bench.statistics.set_lot("A")
    bench.judge({}, {})
    bench.tend(statistics.KEPT_EVERY_S)
    path = bench.folder / "statistics.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "seq": 9}))
    bench.start_again()
    assert "the journal ends at verdict 2, the counts of lot and shift at 9" in caplog.text
    bench.judge()
    bench.start_again()
    assert bench.report.lot.inspected == 3


def test_only_so_many_are_read_again(bench, monkeypatch, caplog):
    monkeypatch.setattr(statistics, "REPLAYED", 5)
    bench.statistics.set_lot("A")
    for _ in range(12):
        bench.judge()
    bench.start_again()
    assert bench.report.lot.inspected == 5
    assert "lack the verdicts 1 to 7" in caplog.text


def test_a_disk_that_is_full_costs_nothing_but_a_warning(bench, caplog):
    bench.statistics.set_lot("A")
    (bench.folder / ".writing-statistics.json").mkdir()
    bench.judge()
    bench.tend(statistics.KEPT_EVERY_S)
    assert "could not be kept" in caplog.text
    assert bench.published[-1].lot.inspected == 1
    bench.start_again()
    assert bench.report.lot.inspected == 1


# ---- the alarm ---------------------------------------------------------------------------------


def test_an_alarm_after_so_many_fails_until_the_next_pass(tmp_path):
    bench = Bench(tmp_path, alarm_after=3)
    bench.judge(FAIL, FAIL, NOT_JUDGED)
    assert bench.alarms == []
    bench.judge(FAIL)
    assert bench.alarms == ["3 FAILs in a row"]
    bench.judge(FAIL, FAIL, NOT_JUDGED)
    assert len(bench.alarms) == 1
    bench.judge({})
    assert bench.alarms == ["3 FAILs in a row", None]
    bench.journal.close()


def test_another_lot_ends_the_alarm_and_the_row(tmp_path):
    bench = Bench(tmp_path, alarm_after=2)
    bench.judge(FAIL, FAIL)
    bench.statistics.set_lot("A")
    assert bench.alarms == ["2 FAILs in a row", None]
    bench.judge(FAIL)
    assert len(bench.alarms) == 2
    bench.journal.close()


def test_an_alarm_outlives_a_restart(tmp_path):
    bench = Bench(tmp_path, alarm_after=2)
    bench.judge(FAIL, FAIL, FAIL)
    bench.alarms.clear()
    bench.start_again(alarm_after=2)
    assert bench.alarms == ["3 FAILs in a row"]
    bench.journal.close()


def test_without_the_setting_there_is_no_alarm(bench):
    bench.judge(*[FAIL] * 50)
    assert bench.alarms == []


# ---- when it goes out --------------------------------------------------------------------------


def test_it_goes_out_at_once_and_then_every_period(tmp_path):
    bench = Bench(tmp_path, mqtt=MqttSettings(statistics_s=5.0))
    assert len(bench.published) == 1
    for _ in range(20):
        bench.judge()
        bench.tend(1.0)
    assert len(bench.published) == 5
    bench.journal.close()


def test_it_is_written_down_seldom_and_only_with_something_new(bench):
    path, written = bench.folder / "statistics.json", []
    for second in range(1200):
        if second < 600:
            bench.judge()
        bench.tend(1.0)
        if not written or path.stat().st_ino != written[-1]:
            written.append(path.stat().st_ino)
    assert len(written) <= 4


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Statistics with a thread of their own; the messages and the journal."""
    monkeypatch.setattr(statistics, "WATCH_S", 0.01)
    messages: queue.Queue[StatisticsPayload] = queue.Queue()
    journal = Journal.open(tmp_path / "journal.db")
    running = Statistics(
        station(),
        "boot",
        tmp_path,
        waiting=lambda: 0,
        unsent=lambda: 0,
        heatmaps_dropped=lambda: 0,
        alarm=lambda _: None,
        publish=lambda raw: messages.put(msgspec.json.decode(raw, type=StatisticsPayload)),
    )
    running.restore(journal)
    yield running, messages, journal
    running.stop()
    journal.close()


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_the_thread_reports_at_once_and_for_the_last_time(running, tmp_path):
    thread, messages, journal = running
    thread.start()
    assert messages.get(timeout=WAIT_S).since_start.inspected == 0
    thread.note(journal.commit(a_verdict()))
    thread.stop()
    assert eventually(lambda: not threads_named("statistics"), WAIT_S)  # a sync may take longer
    assert messages.get(timeout=WAIT_S).since_start.inspected == 1
    assert json.loads((tmp_path / "statistics.json").read_text())["seq"] == 1


def test_what_was_not_started_can_be_stopped_and_reports_nothing(running, tmp_path):
    thread, messages, _ = running
    thread.stop()
    assert messages.empty()
    assert not (tmp_path / "statistics.json").exists()
    beats: list[bytes] = []
    Heartbeat("boot", lambda: True, beats.append).stop()
    assert beats == []


def test_a_report_that_fails_is_logged_and_the_next_one_comes(running, monkeypatch, caplog):
    thread, messages, _ = running
    thread.adopt(station(mqtt=MqttSettings(statistics_s=1.0)))
    troubles = iter([ZeroDivisionError("a broken count")])

    def waiting() -> int:
        for trouble in troubles:
            raise trouble
        return 5

    monkeypatch.setattr(thread, "_waiting", waiting)
    thread.start()
    assert messages.get(timeout=WAIT_S).waiting == 5
    assert "a broken count" in caplog.text


def test_a_verdict_that_cannot_be_counted_does_not_stop_the_judge(bench, caplog):
    bench.statistics.note(a_verdict(score=float("nan")))
    assert "unexpected error in the statistics" in caplog.text
    bench.judge()
    assert bench.report.since_start.by_verdict["PASS"] == 2


# ---- heartbeat ---------------------------------------------------------------------------------


def test_a_beat_while_the_station_can_judge(monkeypatch):
    can_judge, sent = True, []
    heart = Heartbeat("boot", lambda: can_judge, sent.append)
    heart.beat()
    heart.beat()
    can_judge = False
    heart.beat()
    can_judge = True
    heart.beat()
    for raw in sent:
        Draft202012Validator(json_schemas()["heartbeat"]).validate(json.loads(raw))
    assert [json.loads(raw) for raw in sent] == [
        {"count": count, "boot_id": "boot"} for count in (1, 2, 3)
    ]


def test_the_heart_goes_on_beating_whatever_happens(monkeypatch, caplog):
    monkeypatch.setattr(statistics, "BEAT_S", 0.01)
    troubles = iter([BrokerUnavailable("away"), ZeroDivisionError("broken")])
    beats: queue.Queue[bytes] = queue.Queue()

    def publish(raw: bytes) -> None:
        for trouble in troubles:
            raise trouble
        beats.put(raw)

    heart = Heartbeat("boot", lambda: True, publish)
    heart.start()
    beat = msgspec.json.decode(beats.get(timeout=WAIT_S), type=HeartbeatPayload)
    assert beat.count == 3  # those that were lost are counted
    heart.stop()
    assert eventually(lambda: not threads_named("heartbeat"), WAIT_S)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "no heartbeat could be sent"
    ]
