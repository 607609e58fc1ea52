"""The service as its users meet it: a process, a real broker, pictures; nothing replaced."""

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from broker import Subscriber, eventually, payloads
from station import (
    PROGRAM,
    SIMULATED,
    TOPICS,
    Station,
    cut_short,
    decoded,
    hanging,
    request,
    verdicts,
    wait_for_state,
    wait_for_verdicts,
    wait_until,
    wait_until_available,
    write_pictures,
)
from verdicts import a_verdict

from inspectd import config, programs
from inspectd.commands.private_broker import PrivateBroker
from inspectd.inspector import Inspector
from inspectd.journal import Journal
from inspectd.requests import REPEATED_WITHIN_S
from inspectd.service import Service
from inspectd.settings import Program
from inspectd.teaching import Lesson

ON_REQUEST = "{source: mqtt}"
EVERY_PICTURE = "{source: continuous}"
Subscribe = Callable[[PrivateBroker], Subscriber]


def gapless(seqs: list[int]) -> bool:
    return seqs == list(range(1, len(seqs) + 1))


def inspectd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inspectd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- a recording ---------------------------------------------------------------------------------


def test_a_recording_gets_one_verdict_a_picture_and_a_restart_counts_on(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera="{driver: replay, path: parts, rate: 50}", trigger=EVERY_PICTURE, port=broker.port
    )
    station.teach()
    write_pictures(station.folder / "parts", range(20, 28))
    cut_short(station.folder / "parts" / "23.png")
    readable = [f"{number}.png" for number in range(20, 28) if number != 23]

    service = station.start()
    assert service.wait() == 0, service.log
    assert "23.png is cut short" in service.log
    subscriber.catch_up()

    judged = wait_for_verdicts(subscriber, len(readable))
    assert [verdict["frame"] for verdict in judged] == readable
    assert gapless([verdict["seq"] for verdict in judged])
    assert {verdict["settings_hash"] for verdict in judged} == {config.load(station.file).hash}
    assert all(sent for _, _, sent in station.rows())
    assert len(station.rows()) == len(readable)

    said = payloads(subscriber.received(TOPICS.availability))
    assert said[0] == said[-1] == b"offline"
    assert [
        state for state, before in zip(said, [b"", *said], strict=False) if state != before
    ] == [
        b"offline",
        b"online",
        b"offline",
    ]
    results = payloads(subscriber.received(TOPICS.result))
    assert results == [f"{v['verdict']} {v['seq']}".encode() for v in judged]
    states = decoded(subscriber, TOPICS.state)
    assert [state["state"] for state in states if state["state"] == "judging"]
    assert states[-1]["state"] == "stopping"
    assert states[-1]["settings_hash"] == config.load(station.file).hash
    assert states[-1]["references"] == 8

    # Pictures may be left out when parts come fast, but never those of the last part.
    heatmap = subscriber.received(TOPICS.heatmap)[-1]
    assert heatmap.payload.startswith(b"\x89PNG\r\n\x1a\n")
    assert dict(heatmap.properties.UserProperty)["id"] == judged[-1]["id"]
    assert subscriber.received(TOPICS.heatmap_id)[-1].payload.decode() == judged[-1]["id"]
    values = decoded(subscriber, TOPICS.map)[-1]
    assert (values["id"], values["seq"]) == (judged[-1]["id"], judged[-1]["seq"])
    assert max(values["values"]) == pytest.approx(judged[-1]["score"], abs=1e-3)

    assert station.start().wait() == 0
    both = wait_for_verdicts(subscriber, 2 * len(readable))
    assert gapless([verdict["seq"] for verdict in both])
    assert len({verdict["journal_id"] for verdict in both}) == 1
    assert len({verdict["boot_id"] for verdict in both}) == 2
    assert not any(verdict["historical"] for verdict in both)


def test_triggers_of_the_station_itself_end_with_the_recording(
    make_station: Callable[..., Station], broker: PrivateBroker
):
    # Twice as many triggers as pictures: at the end some wait, and no part is there for them.
    station = make_station(
        camera="{driver: replay, path: parts, rate: 10}",
        trigger="{source: interval, interval_s: 0.05}",
        port=broker.port,
        extra="queue: 100\n",
    )
    station.teach()
    write_pictures(station.folder / "parts", range(20, 25))
    service = station.start()
    assert service.wait() == 0, service.log
    assert len(station.rows()) == 5, service.log


def test_a_recording_without_a_readable_picture_ends_the_service_without_verdicts(
    make_station: Callable[..., Station],
):
    station = make_station(camera="{driver: replay, path: parts}", trigger=EVERY_PICTURE)
    station.teach()
    folder = write_pictures(station.folder / "parts", range(2))
    for picture in folder.iterdir():
        cut_short(picture)
    service = station.start()
    assert service.wait() == 1, service.log
    assert "not one picture of" in service.log
    assert "Traceback" not in service.log
    assert station.rows() == []


def test_a_mistake_in_a_program_not_judged_by_is_told_and_does_not_stop_the_line(
    make_station: Callable[..., Station],
):
    station = make_station(camera="{driver: replay, path: parts}", trigger=EVERY_PICTURE)
    station.teach()
    write_pictures(station.folder / "parts", range(2))
    (station.folder / "programs" / "other.yaml").write_text("resolutoin: 100\n")
    service = station.start()
    assert service.wait() == 0, service.log
    assert "other.yaml:1: resolutoin: unknown key (did you mean resolution?)" in service.log
    assert len(station.rows()) == 2


def test_a_request_after_the_end_of_the_recording_is_answered(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera="{driver: replay, path: parts}", trigger=ON_REQUEST, port=broker.port
    )
    station.teach()
    write_pictures(station.folder / "parts", [20])
    service = station.start()
    wait_until_available(subscriber)
    for part in ("first", "second"):
        request(subscriber, {"part_id": part})
    assert service.wait() == 0, service.log
    subscriber.catch_up()
    first, second = (
        answer["verdict"] for answer in decoded(subscriber, TOPICS.response("trigger"))
    )
    assert (first["part_id"], first["frame"]) == ("first", "20.png")
    assert (second["part_id"], second["verdict"]) == ("second", "NOT_JUDGED")
    assert second["reason"] == "camera lost"
    assert "has come to its end" in second["detail"]


# ---- requests ------------------------------------------------------------------------------------


def test_requests(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST, port=broker.port)
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    answers = TOPICS.response("trigger")

    request(subscriber, {"part_id": "A-1", "transaction": "t1"}, correlation_data=b"\x00\x01")
    (message,) = subscriber.wait_for(answers)
    assert message.properties.CorrelationData == b"\x00\x01"
    first = json.loads(message.payload)
    assert (first["request"], first["transaction"], first["ok"]) == ("trigger", "t1", True)
    (verdict,) = wait_for_verdicts(subscriber, 1)
    assert first["verdict"] == verdict
    assert (verdict["part_id"], verdict["transaction"], verdict["trigger"]) == ("A-1", "t1", "mqtt")

    # The requester may choose where to be answered, and may ask without a word.
    request(subscriber, response_topic="plc/7/answers", correlation_data=b"7")
    (message,) = subscriber.wait_for("plc/7/answers")
    assert message.properties.CorrelationData == b"7"
    assert json.loads(message.payload)["verdict"]["seq"] == 2
    assert len(subscriber.received(answers)) == 1

    # Asked again, it answers again, and judges no other part.
    request(subscriber, {"part_id": "A-1", "transaction": "t1"})
    subscriber.wait_for(answers, 2)
    assert decoded(subscriber, answers)[1] == first

    # But an old PASS is no answer for another part.
    repeated = b'{"part_id": "A-2", "transaction": "t1"}'
    wrong = {
        repeated: "transaction t1 was for part A-1 (seq 1), now for part A-2",
        b"nonsense": "JSON",
        b'{"part_id": 5}': "part_id",
        b'{"part": "A-2"}': "part",
        b'{"part_id": "\xff\xfe"}': "not UTF-8 text",
        b"null": "object",
    }
    for payload in wrong:
        request(subscriber, payload, correlation_data=payload)
    for message in subscriber.wait_for(answers, 2 + len(wrong))[2:]:
        answer = json.loads(message.payload)
        assert not answer["ok"]
        assert answer["verdict"] is None
        assert wrong[message.properties.CorrelationData] in answer["error"]
    request(subscriber, name="trigegr")
    subscriber.wait_for(TOPICS.response("trigegr"))
    (answer,) = decoded(subscriber, TOPICS.response("trigegr"))
    assert not answer["ok"]
    assert "allowed are: trigger, program, reload, lot" in answer["error"]
    assert len(station.rows()) == 2

    # Another service of the same station is refused, and does not disturb this one.
    second = inspectd("run", "-c", station.file)
    assert second.returncode == 1
    assert "in use by process" in second.stderr

    assert service.stop() == 0, service.log
    assert "Traceback" not in service.log

    request(subscriber, {"part_id": "old", "transaction": "t2"}, retain=True)
    service = station.start()
    wait_until_available(subscriber, 2)
    seen = 2 + len(wrong)
    # Once because it waited at the broker for the station, once because it is retained there.
    subscriber.wait_for(answers, seen + 2)
    both = decoded(subscriber, answers)[seen:]
    assert {answer["transaction"] for answer in both} == {"t2"}
    (refused,) = (answer for answer in both if not answer["ok"])
    assert "retain" in refused["error"]
    (stale,) = (answer["verdict"] for answer in both if answer["ok"])
    assert (stale["verdict"], stale["reason"]) == ("NOT_JUDGED", "stale trigger")
    request(subscriber, {"transaction": "t1"})
    subscriber.wait_for(answers, seen + 3)
    assert decoded(subscriber, answers)[seen + 2] == first
    assert len(station.rows()) == 3
    assert service.stop() == 0


def test_an_old_pass_is_no_answer_to_a_requester_that_counts_anew(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST, port=broker.port)
    station.teach()
    ages_s = {"fresh": 60, "old": REPEATED_WITHIN_S + 60, "of a clock that was set back": -60}
    with Journal.open(station.journal) as journal:
        for transaction, age_s in ages_s.items():
            at = datetime.now(UTC) - timedelta(seconds=age_s)
            journal.commit(a_verdict(transaction=transaction, triggered_at=at))
    subscriber = subscribe(broker)
    station.start()
    wait_until_available(subscriber)
    for transaction in ages_s:
        request(subscriber, {"transaction": transaction})
    subscriber.wait_for(TOPICS.response("trigger"), len(ages_s))
    fresh, *others = decoded(subscriber, TOPICS.response("trigger"))
    assert (fresh["ok"], fresh["verdict"]["verdict"], fresh["verdict"]["seq"]) == (True, "PASS", 1)
    for answer in others:
        assert (answer["ok"], answer["verdict"]) == (False, None)
        assert answer["error"].startswith(f"NOT_JUDGED: transaction {answer['transaction']} was")
    assert len(station.rows()) == len(ages_s)


def test_every_trigger_of_a_burst_is_answered(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 2, trigger=ON_REQUEST, port=broker.port, extra="queue: 1\n"
    )
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    parts = [f"part-{number}" for number in range(6)]
    for part in parts:
        request(subscriber, {"part_id": part})
    subscriber.wait_for(TOPICS.response("trigger"), len(parts))
    answered = [answer["verdict"] for answer in decoded(subscriber, TOPICS.response("trigger"))]
    assert [verdict["part_id"] for verdict in answered] == parts
    assert gapless([verdict["seq"] for verdict in answered])
    overrun = [verdict for verdict in answered if verdict["reason"] == "overrun"]
    assert len(overrun) >= 3
    assert {verdict["verdict"] for verdict in overrun} == {"NOT_JUDGED"}
    assert all(verdict["frame"] is None for verdict in overrun)
    assert service.stop() == 0


# ---- stopping ------------------------------------------------------------------------------------


def test_sigterm_while_the_broker_hangs_loses_nothing(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 1000,
        trigger="{source: interval, interval_s: 0.03}",
        port=broker.port,
        extra="queue: 4\n",
    )
    station.teach()
    service = station.start()
    wait_for_verdicts(subscriber, 5)
    with hanging(broker):
        known = len(station.rows())
        assert eventually(lambda: len(station.rows()) >= known + 5)
        assert service.stop() == 0, service.log
        rows = station.rows()
        unsent = {id_ for _, id_, sent in rows if not sent}
        assert unsent
        assert gapless([seq for seq, _, _ in rows])

    service = station.start()
    wait_until(
        subscriber, TOPICS.verdict, lambda p: json.loads(p)["seq"] == rows[-1][0] + 1
    )  # a live one, so the backlog is under way
    assert eventually(lambda: unsent <= historical(subscriber))
    station.wait_until_sent()
    assert service.stop() == 0
    subscriber.catch_up()
    assert gapless(sorted({verdict["seq"] for verdict in verdicts(subscriber)}))


def test_sigterm_while_the_camera_is_waited_for(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    slow = "capture_timeout_s: 60\n"
    station = make_station(
        camera=SIMULATED % 0.05, trigger=ON_REQUEST, port=broker.port, extra=slow
    )
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    request(subscriber, {"part_id": "A-1"})
    request(subscriber, {"part_id": "A-2"})
    request(subscriber, b"nonsense")  # its answer says that the others have arrived
    subscriber.wait_for(TOPICS.response("trigger"))
    assert service.stop() == 0, service.log
    subscriber.catch_up()
    answered = [answer["verdict"] for answer in decoded(subscriber, TOPICS.response("trigger"))[1:]]
    assert [verdict["part_id"] for verdict in answered] == ["A-1", "A-2"]
    assert {verdict["reason"] for verdict in answered} == {"stopping"}
    assert decoded(subscriber, TOPICS.state)[-1]["last_error"] is None

    # Where the picture is the trigger, no picture is no part.
    station = make_station(
        camera="{driver: replay, path: parts, rate: 0.05}",
        trigger=EVERY_PICTURE,
        port=broker.port,
        extra=slow,
    )
    write_pictures(station.folder / "parts", [20, 21])
    service = station.start()
    wait_until(subscriber, TOPICS.verdict, lambda p: json.loads(p)["frame"] == "20.png")
    assert service.stop() == 0, service.log
    assert len(station.rows()) == 3, service.log


def test_a_stop_does_not_wait_for_the_references_to_be_learned(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
):
    """Learning compiles kernels at the first start, which takes half a minute."""
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST)
    station.teach()
    service = Service(config.load(station.file))
    learning, go_on = threading.Event(), threading.Event()

    def learn(*_arguments: object) -> Lesson:
        learning.set()
        assert go_on.wait(30)
        return Lesson(Inspector(Program(), ()), PROGRAM, "")

    monkeypatch.setattr(programs, "learn_program", learn)
    running = threading.Thread(target=service.run)
    running.start()
    try:
        assert learning.wait(30)
        service.request_stop()
        running.join(30)
        assert not running.is_alive()
        assert service._state.payload.state == "stopping"
    finally:
        go_on.set()
        running.join()


def test_sigkill_loses_no_verdict_and_no_number(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 1000, trigger="{source: interval, interval_s: 0.03}", port=broker.port
    )
    station.teach()
    service = station.start()
    wait_for_verdicts(subscriber, 5)
    service.kill()
    rows = station.rows()
    assert gapless([seq for seq, _, _ in rows])
    assert eventually(  # the last will
        lambda: payloads(subscriber.received(TOPICS.availability))[-1] == b"offline"
    )

    service = station.start()
    wait_until(subscriber, TOPICS.verdict, lambda p: json.loads(p)["seq"] >= rows[-1][0] + 3)
    assert inspectd("status", "-c", station.file).returncode == 0  # past the old control socket
    station.wait_until_sent()
    assert service.stop() == 0, service.log
    subscriber.catch_up()
    received = {verdict["seq"]: verdict["id"] for verdict in verdicts(subscriber)}
    assert gapless(sorted(received))
    assert {id_ for _, id_, _ in rows} <= set(received.values())


def test_the_main_thread_never_waits_without_bound(make_station: Callable[..., Station]):
    # Python runs a signal's handler on the main thread between two of its instructions, and not
    # while that is about to block: a wait without bound that begins then never hears of it.
    class BoundedEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None, "a SIGTERM could be missed here"
            return super().wait(timeout)

    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST)
    service = Service(config.load(station.file))
    service._stopping = BoundedEvent()
    stopping = threading.Timer(0.1, service.request_stop)
    stopping.start()
    service.run()
    stopping.join()
    assert service._state.payload.state == "stopping"


def test_an_unexpected_error_of_the_judging_thread_ends_the_service_with_it(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
):
    station = make_station(camera=SIMULATED % 30, trigger=EVERY_PICTURE)
    service = Service(config.load(station.file))

    def fail(_trigger) -> None:
        raise ZeroDivisionError("a fault in the program")

    monkeypatch.setattr(service._judge, "answer", fail)
    with pytest.raises(ZeroDivisionError, match="a fault in the program"):
        service.run()


# ---- the broker comes and goes -------------------------------------------------------------------


def historical(subscriber: Subscriber) -> set[str]:
    """The ids of those that came late."""
    return {verdict["id"] for verdict in verdicts(subscriber) if verdict["historical"]}


def test_verdicts_follow_when_the_broker_was_away(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    station = make_station(
        camera=SIMULATED % 1000, trigger="{source: interval, interval_s: 0.05}", port=broker.port
    )
    station.teach()
    broker.stop()
    service = station.start()
    assert eventually(lambda: len(station.rows()) >= 5), service.log
    assert "no connection to the MQTT broker" in service.log
    with service.paused():
        broker.start()
        subscriber = subscribe(broker)
        early = {id_ for _, id_, _ in station.rows()}
    assert eventually(lambda: early <= historical(subscriber))
    wait_until_available(subscriber)
    wait_until(subscriber, TOPICS.verdict, lambda p: not json.loads(p)["historical"])

    assert broker.process is not None
    broker.process.send_signal(signal.SIGKILL)
    broker.process.wait()
    known = len(station.rows())
    assert eventually(lambda: len(station.rows()) >= known + 5), service.log
    with service.paused():
        broker.start()
        again = subscribe(broker)
        unsent = {id_ for _, id_, sent in station.rows() if not sent}
    # Some the killed broker may have taken and acknowledged, which the journal had yet to learn.
    taken = {v["id"] for v in verdicts(subscriber)}
    assert len(unsent - taken) >= 5
    assert eventually(lambda: unsent - taken <= historical(again))
    station.wait_until_sent()
    assert service.stop() == 0, service.log
    again.catch_up()

    first, last = verdicts(subscriber), verdicts(again)
    assert gapless(sorted({verdict["seq"] for verdict in first + last}))
    for received, listener in ((first, subscriber), (last, again)):
        live = [f"{v['verdict']} {v['seq']}" for v in received if not v["historical"]]
        results = [payload.decode() for payload in payloads(listener.received(TOPICS.result))]
        # What comes late is no news for the line. The killed broker may have taken a verdict and
        # not its result any more.
        killed_between = listener is subscriber and results == live[:-1]
        assert results == live or killed_between
    assert all(sent for _, _, sent in station.rows())


# ---- what keeps it from judging ------------------------------------------------------------------


def test_a_station_becomes_ready_by_teaching_it(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST, port=broker.port)
    station.teach(range(5))
    damaged = min(station.references.glob("*.png"))
    cut_short(damaged)

    service = station.start()
    state = wait_for_state(subscriber, "not_ready")
    assert "4 usable references of the 5 needed" in state["detail"]
    assert damaged.name in state["detail"]
    request(subscriber, {"part_id": "A-1"})
    (verdict,) = wait_for_verdicts(subscriber, 1)
    assert (verdict["verdict"], verdict["reason"]) == ("NOT_JUDGED", "too few references")
    assert set(payloads(subscriber.received(TOPICS.availability))) == {b"offline"}
    status = inspectd("status", "-c", station.file)
    assert status.returncode == 3
    assert json.loads(status.stdout)["state"] == "not_ready"

    pictures = write_pictures(station.folder / "good", range(10, 13))
    (pictures / "empty.png").touch()
    taught = inspectd("teach", PROGRAM, "--from-folder", pictures, "-c", station.file)
    assert taught.returncode == 1
    assert "refused empty.png: is empty" in taught.stderr
    assert "3 pictures added, 1 refused" in taught.stdout
    wait_until_available(subscriber)
    assert decoded(subscriber, TOPICS.state)[-1]["references"] == 7
    request(subscriber, {"part_id": "A-2"})
    assert wait_for_verdicts(subscriber, 2)[1]["score"] is not None

    taught = inspectd("teach", PROGRAM, "--frames", "2", "-c", station.file)
    assert taught.returncode == 0, taught.stderr
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["references"] == 9)
    files = sorted(file.name for file in station.references.glob("*.png"))
    removing = [argument for name in files[:6] for argument in ("--remove", name)]
    assert inspectd("teach", PROGRAM, *removing, "-c", station.file).returncode == 0
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["references"] == 4)
    assert eventually(lambda: payloads(subscriber.received(TOPICS.availability))[-1] == b"offline")
    assert service.stop() == 0, service.log


def test_a_running_station_is_taught_how_it_looks_when_it_is_empty(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    empty = (SIMULATED % 30).replace("}", ", empty_rate: 1.0}")
    station = make_station(camera=empty, trigger=ON_REQUEST, port=broker.port)
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    before = decoded(subscriber, TOPICS.state)[-1]
    request(subscriber, {"part_id": "A-1"})
    assert "presence" not in wait_for_verdicts(subscriber, 1)[0]["health"]["measures"]

    teaching = ("teach", PROGRAM, "--empty", "-c", station.file)
    taught = inspectd(*teaching, "--frames", "3")
    assert taught.returncode == 0, taught.stderr
    assert "3 pictures added, 0 refused, 3 pictures of the empty station now" in taught.stdout
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["empties"] == 3)
    after = decoded(subscriber, TOPICS.state)[-1]
    assert after["references"] == before["references"] == 8
    assert after["references_hash"] != before["references_hash"]

    request(subscriber, {"part_id": "A-2"})
    verdict = wait_for_verdicts(subscriber, 2)[1]
    assert (verdict["verdict"], verdict["reason"]) == ("NOT_JUDGED", "no part")
    assert "from the empty station" in verdict["detail"]
    assert verdict["health"]["measures"]["presence"]["value"] < 0.05
    assert verdict["references_hash"] == after["references_hash"]

    files = sorted(file.name for file in (station.references / "empty").glob("*.png"))
    listed = inspectd(*teaching, "--list")
    assert listed.returncode == 0
    assert all(file in listed.stdout for file in files)
    removing = [argument for name in files for argument in ("--remove", name)]
    removed = inspectd(*teaching, *removing)
    assert removed.returncode == 0
    assert "0 pictures of the empty station are left" in removed.stdout
    assert eventually(lambda: decoded(subscriber, TOPICS.state)[-1]["empties"] == 0)
    state = decoded(subscriber, TOPICS.state)[-1]
    assert state["references_hash"] == before["references_hash"]
    assert service.stop() == 0, service.log


@contextmanager
def disk_full(pid: int, journal: Path) -> Iterator[None]:
    """The process's files cannot grow meanwhile beyond what the journal's WAL has."""
    free = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    used = journal.with_name("journal.db-wal").stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (used, free[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, free)


def overwrite(journal: Path, begin: int) -> None:
    """As a failing memory card or a mistaken hand might: everything from one byte on."""
    with closing(sqlite3.connect(journal)) as other:
        # Else what stands in the WAL, and in the process's memory, would still be right.
        other.execute("UPDATE meta SET value = value")
        other.commit()
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with journal.open("r+b") as file:
            file.seek(begin)
            file.write(b"\xa5" * (journal.stat().st_size - begin))


@pytest.mark.parametrize("begin", [4096, 0], ids=["in the middle", "all of it"])
def test_a_journal_that_is_overwritten_while_the_service_runs_is_replaced_and_it_goes_on(
    make_station: Callable[..., Station],
    broker: PrivateBroker,
    subscribe: Subscribe,
    begin: int,
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST, port=broker.port)
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    for part in range(8):
        request(subscriber, {"part_id": str(part), "transaction": f"t{part}"})
    before = wait_for_verdicts(subscriber, 8)[-1]
    assert eventually(lambda: all(sent for _, _, sent in station.rows()))

    overwrite(station.journal, begin)
    request(subscriber, {"part_id": "after", "transaction": "t8"})
    (after,) = (v for v in wait_for_verdicts(subscriber, 9) if v["part_id"] == "after")
    assert (after["seq"], after["verdict"]) == (1, "PASS")
    assert after["journal_id"] != before["journal_id"]
    told = wait_until(subscriber, TOPICS.state, lambda raw: b"the journal was damaged" in raw)
    assert json.loads(told)["state"] == "judging"
    assert decoded(subscriber, TOPICS.state)[-1]["journal_id"] == after["journal_id"]
    (aside,) = (f for f in station.journal.parent.glob("*.damaged-*Z"))
    assert aside.stat().st_size >= 4096

    # And it goes on, in the same process, and with the new journal after the next start.
    assert eventually(lambda: station.rows() == [(1, after["id"], True)])
    assert service.stop() == 0, service.log
    assert service.log.count("is damaged") == 1
    assert "Traceback" not in service.log
    station.start()
    wait_until_available(subscriber, 2)
    request(subscriber, {"part_id": "again"})
    assert wait_for_verdicts(subscriber, 10)[-1]["journal_id"] == after["journal_id"]
    assert len(list(station.journal.parent.glob("*.damaged-*Z"))) == 1


def test_without_a_journal_there_is_no_verdict_and_the_station_comes_back_by_itself(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 30, trigger=ON_REQUEST, port=broker.port)
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    request(subscriber, {"part_id": "A-1", "transaction": "t1"})
    wait_for_verdicts(subscriber, 1)
    assert eventually(lambda: station.rows()[0][2])  # marked sent, so that nothing else writes

    with disk_full(service.process.pid, station.journal):
        request(subscriber, {"part_id": "A-2", "transaction": "t2"})
        subscriber.wait_for(TOPICS.response("trigger"), 2)
        answer = decoded(subscriber, TOPICS.response("trigger"))[1]
        assert (answer["ok"], answer["transaction"], answer["verdict"]) == (False, "t2", None)
        assert answer["error"].startswith("NOT_JUDGED: journal unavailable")
        assert "could not be committed" in answer["error"]
        wait_for_state(subscriber, "journal_fault")
        # It has looked again, in vain.
        wait_until(subscriber, TOPICS.state, lambda raw: b"the journal cannot be written" in raw)
        available = payloads(subscriber.received(TOPICS.availability))
        assert (available[-1], available.count(b"online")) == (b"offline", 1)
        assert len(verdicts(subscriber)) == len(subscriber.received(TOPICS.result)) == 1

    # A requester that heeds the availability asks for nothing until then.
    wait_until_available(subscriber, 2)
    request(subscriber, {"part_id": "A-2", "transaction": "t2"})
    last = wait_for_verdicts(subscriber, 2)[1]
    assert (last["seq"], last["part_id"]) == (2, "A-2")
    assert service.stop() == 0
