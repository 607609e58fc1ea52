"""Other settings, another program and requests while the station runs: a process and a broker."""

import json
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from broker import Subscriber, eventually
from jsonschema import Draft202012Validator
from station import (
    PROGRAM,
    SIMULATED,
    TOPICS,
    Station,
    decoded,
    good_part,
    request,
    verdicts,
    wait_for_verdicts,
    wait_until,
    wait_until_available,
    write_pictures,
)
from station import Service as Process

from inspectd import service as service_module
from inspectd.camera import Camera
from inspectd.commands.private_broker import PrivateBroker
from inspectd.config import load
from inspectd.errors import ControlError
from inspectd.payload import json_schemas
from inspectd.references import ReferenceStore
from inspectd.reload import PROBLEMS_TOLD, Reloader
from inspectd.service import Service
from inspectd.settings import Program, Settings
from inspectd.teaching import Candidate, teach

ALL = "[trigger, program, reload, lot, teach, limits, snapshot, resend]"
Subscribe = Callable[[PrivateBroker], Subscriber]
Running = tuple[Station, Process, Subscriber]


@pytest.fixture
def running(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
) -> Running:
    """A taught station that judges on request, and what it publishes."""
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    return station, service, subscriber


def second_program(station: Station, name: str = "other", settings: str = "") -> None:
    """Another program with the same references."""
    (station.folder / "programs" / f"{name}.yaml").write_text(settings or "description: too\n")
    store = ReferenceStore(station.references.parent / name)
    now = datetime.now(UTC)
    teach(Program(), store, [Candidate(f"{n}.png", good_part(n), now) for n in range(8)], "0" * 12)


def rewrite(path: Path, old: str, new: str) -> None:
    """As an editor does: another file in place of the old one."""
    text = path.read_text()
    assert old in text
    temporary = path.with_name(f".{path.name}.swp")
    temporary.write_text(text.replace(old, new))
    temporary.replace(path)


def answer(subscriber: Subscriber, name: str, payload: dict) -> dict:
    """Ask, and wait for the answer; `transaction` is in the payload."""
    before = len(subscriber.received(TOPICS.response(name)))
    request(subscriber, json.dumps(payload).encode(), name)
    return json.loads(subscriber.wait_for(TOPICS.response(name), before + 1)[-1].payload)


def judged(subscriber: Subscriber, part_id: str) -> dict:
    request(subscriber, {"part_id": part_id})
    raw = wait_until(subscriber, TOPICS.verdict, lambda p: json.loads(p)["part_id"] == part_id)
    return json.loads(raw)


def noted(subscriber: Subscriber, words: str) -> dict:
    """The first state that has a note with these words."""
    return json.loads(
        wait_until(
            subscriber,
            TOPICS.state,
            lambda p: any(words in note for note in json.loads(p)["notes"]),
        )
    )


def last_state(subscriber: Subscriber) -> dict:
    return decoded(subscriber, TOPICS.state)[-1]


def test_of_many_mistakes_some_are_told_and_the_rest_counted(tmp_path: Path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "block.yaml").write_text("description: x\n")
    file = tmp_path / "cell.yaml"
    file.write_text(f"station: cell\nprogram: {PROGRAM}\ncamera: {SIMULATED % 1}\n")
    told: dict[str, str] = {}
    reloader = Reloader(load(file), (), lambda: PROGRAM, lambda _settings: None, told.__setitem__)
    file.write_text(file.read_text() + "".join(f"x{number}: 1\n" for number in range(500)))
    with pytest.raises(ControlError):
        reloader.reload()
    assert told["settings files"].count("unknown key") == PROBLEMS_TOLD
    assert told["settings files"].endswith("and 490 more: see `inspectd check`")


def watched(folder: Path, told: list[tuple[str, str]], adopted: list[Settings]) -> Reloader:
    """The settings of a folder, with nothing else of a station around them."""
    (folder / "programs").mkdir(parents=True)
    (folder / "programs" / "block.yaml").write_text("description: x\n")
    file = folder / "cell.yaml"
    file.write_text(f"station: cell\nprogram: {PROGRAM}\ncamera: {SIMULATED % 1}\n")
    return Reloader(
        load(file), (), lambda: PROGRAM, adopted.append, lambda *note: told.append(note)
    )


def test_a_folder_of_programs_that_is_replaced_is_watched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    told: list[tuple[str, str]] = []
    adopted: list[Settings] = []
    folder = tmp_path / "settings"
    reloader = watched(folder, told, adopted)
    reloader.start()
    try:
        (folder / "programs" / "block.yaml").write_text("description: w\n")
        assert eventually(lambda: len(adopted) == 1)  # so the watch stands
        (folder / "programs").rename(tmp_path / "away")
        assert eventually(lambda: any("block.yaml" in words for _, words in told))
        (tmp_path / "away" / "block.yaml").write_text("description: y\n")
        (tmp_path / "away").rename(folder / "programs")
        assert eventually(lambda: len(adopted) == 2)
        (folder / "programs" / "block.yaml").write_text("description: z\n")
        assert eventually(lambda: len(adopted) == 3)
    finally:
        reloader.stop()
    assert [record for record in caplog.records if record.exc_info] == []
    assert "settings watch" not in dict(told)


def test_a_folder_that_cannot_be_watched_is_told_once_and_read_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("inspectd.reload.RETRY_S", 0.01)
    told: list[tuple[str, str]] = []
    adopted: list[Settings] = []
    folder = tmp_path / "settings"
    reloader = watched(folder, told, adopted)
    tries: list[int] = []
    watch = watchfiles.watch

    def no_watches_left(*folders: Path, **options: Any) -> Iterator[set[Any]]:
        tries.append(len(folders))
        if len(tries) < 20:
            raise OSError("no space left on device (os error 28) about inotify watches")
        return watch(*folders, **options)

    monkeypatch.setattr("watchfiles.watch", no_watches_left)
    (folder / "programs" / "block.yaml").write_text("description: y\n")
    reloader.ask()
    reloader.start()
    try:
        assert eventually(lambda: ("settings watch", "") in told)
    finally:
        reloader.stop()
    assert len(adopted) == 1
    assert not reloader.is_pending
    assert [subject for subject, _ in told].count("settings watch") == 2
    assert len([record for record in caplog.records if record.exc_info]) == 1


# ---- programs ------------------------------------------------------------------------------------


def test_a_switch_among_triggers_loses_none_and_each_names_its_program(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 1000,
        trigger="{source: mqtt}",
        port=broker.port,
        extra="queue: 1000\ncapture_timeout_s: 30\n",  # a slow machine may take its time
    )
    station.teach()
    second_program(station)
    service = station.start()
    wait_until_available(subscriber)
    assert eventually(lambda: answer(subscriber, "program", {"program": "other"})["ok"]), (
        service.log
    )
    assert answer(subscriber, "program", {"program": PROGRAM})["ok"]

    for number in range(60):
        request(subscriber, {"part_id": f"{number}"})
        if number in {20, 40}:
            request(subscriber, {"program": "other" if number == 20 else PROGRAM}, "program")
    found = wait_for_verdicts(subscriber, 60)
    assert [verdict["part_id"] for verdict in found] == [str(number) for number in range(60)]
    assert [verdict["program"] for verdict in found] == (
        [PROGRAM] * 21 + ["other"] * 20 + [PROGRAM] * 19
    )
    hashes = {(verdict["program"], verdict["settings_hash"]) for verdict in found}
    assert len(hashes) == 2
    assert {verdict["reason"] for verdict in found if verdict["score"] is None} == set()


def test_the_chosen_program_outlives_a_restart_and_the_station_file_has_the_last_word(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
    station.teach()
    second_program(station)
    second_program(station, "third")
    (station.folder / "programs" / "untaught.yaml").write_text("description: x\n")
    service = station.start()
    wait_until_available(subscriber)
    assert eventually(lambda: answer(subscriber, "program", {"program": "other"})["ok"])
    for name, words in {"otter": "there is no program 'otter'", "untaught": "untaught"}.items():
        refused = answer(subscriber, "program", {"program": name, "transaction": name})
        assert not refused["ok"]
        assert words in refused["error"]
        assert refused["transaction"] == name
    assert last_state(subscriber)["program"] == "other"
    assert service.stop() == 0, service.log

    service = station.start()
    wait_until_available(subscriber, 2)
    assert judged(subscriber, "A")["program"] == "other"
    rewrite(station.file, f"program: {PROGRAM}", "program: third")
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["program"] == "third")
    assert judged(subscriber, "B")["program"] == "third"
    assert service.stop() == 0, service.log


def test_a_chosen_program_whose_file_is_faulty_at_the_start_is_not_replaced_by_another(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
    station.teach()
    second_program(station)
    service = station.start()
    wait_until_available(subscriber)
    assert eventually(lambda: answer(subscriber, "program", {"program": "other"})["ok"])
    assert service.stop() == 0
    other = station.folder / "programs" / "other.yaml"
    other.write_text("resolutoin: 100\n")

    service = station.start()
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["state"] == "not_ready")
    refused = judged(subscriber, "A")
    assert (refused["verdict"], refused["program"]) == ("NOT_JUDGED", "other")
    assert "its file is missing or faulty" in refused["detail"]
    other.write_text("description: mended\n")
    assert eventually(lambda: last_state(subscriber)["state"] == "judging"), service.log
    assert judged(subscriber, "B")["score"] is not None
    assert service.stop() == 0, service.log


# ---- files that are saved ------------------------------------------------------------------------


def test_a_limit_that_is_saved_changes_the_verdict_without_a_look_at_the_references(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera="{driver: replay, path: parts, loop: true}",
        trigger="{source: mqtt}",
        port=broker.port,
    )
    station.teach()
    write_pictures(station.folder / "parts", [20])
    service = station.start()
    wait_until_available(subscriber)
    before = judged(subscriber, "A")
    for picture in station.references.glob("*.png"):
        picture.unlink()
    program = station.folder / "programs" / f"{PROGRAM}.yaml"
    rewrite(program, "description: 27 pins", "limit: {threshold: 0.01}")
    wait_until(
        subscriber,
        TOPICS.state,
        lambda p: json.loads(p)["settings_hash"] != before["settings_hash"],
    )
    after = judged(subscriber, "B")
    assert before["score"] == pytest.approx(after["score"] / 100, rel=1e-3)
    assert (before["verdict"], after["verdict"]) == ("PASS", "FAIL")
    assert after["settings_hash"] == last_state(subscriber)["settings_hash"]
    assert last_state(subscriber)["state"] == "judging"
    assert service.stop() == 0, service.log


def test_a_mistake_leaves_the_last_good_settings_in_force_and_is_told_until_it_is_mended(
    running: Running,
):
    station, service, subscriber = running
    before = judged(subscriber, "A")
    program = station.folder / "programs" / f"{PROGRAM}.yaml"
    rewrite(program, "description: 27 pins", "limit:\n  treshold: 2.0")
    told = noted(subscriber, f"{program}:2: limit.treshold: unknown key")
    assert told["state"] == "judging"
    assert judged(subscriber, "B")["settings_hash"] == before["settings_hash"]
    refused = answer(subscriber, "reload", {"transaction": "r1"})
    assert not refused["ok"]
    assert "limit.treshold" in refused["error"]
    rewrite(program, "treshold", "threshold")
    wait_until(
        subscriber,
        TOPICS.state,
        lambda p: (
            json.loads(p)["settings_hash"] != before["settings_hash"] and not json.loads(p)["notes"]
        ),
    )
    assert judged(subscriber, "C")["settings_hash"] != before["settings_hash"]
    assert answer(subscriber, "reload", {})["detail"] == "nothing has changed"
    service.process.send_signal(signal.SIGHUP)
    assert judged(subscriber, "D")["score"] is not None
    assert service.stop() == 0, service.log


def test_another_port_moves_the_station_to_another_broker(
    make_station: Callable[..., Station],
    broker: PrivateBroker,
    broker_directory: Path,
    subscribe: Subscribe,
):
    here = subscribe(broker)
    elsewhere = broker_directory / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    with PrivateBroker(elsewhere) as other:
        there = subscribe(other)
        station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
        station.teach()
        service = station.start()
        wait_until_available(here)
        judged(here, "A")
        rewrite(station.file, f"port: {broker.port}", f"port: {other.port}")
        wait_until_available(there)
        assert eventually(lambda: here.received(TOPICS.availability)[-1].payload == b"offline")
        assert judged(there, "B")["seq"] == 2
        for topic in (TOPICS.state, TOPICS.health, TOPICS.statistics):
            there.wait_for(topic)
        assert [verdict["seq"] for verdict in verdicts(here)] == [1]
        assert service.stop() == 0, service.log


def test_camera_and_trigger_are_replaced_between_two_parts(running: Running):
    station, service, subscriber = running
    write_pictures(station.folder / "parts", [20])
    asking = threading.Thread(
        target=lambda: [request(subscriber, {"part_id": f"{number}"}) for number in range(50)]
    )
    asking.start()
    rewrite(
        station.file,
        f"camera: {SIMULATED % 100}",
        "camera: {driver: replay, path: parts, loop: true}",
    )
    asking.join()
    found = wait_for_verdicts(subscriber, 50)
    assert [verdict["part_id"] for verdict in found] == [str(number) for number in range(50)]
    wait_until(subscriber, TOPICS.state, lambda p: len(json.loads(p)["settings_hash"]) == 12)
    assert eventually(
        lambda: judged(subscriber, f"x{len(verdicts(subscriber))}")["frame"] == "20.png"
    )
    rewrite(station.file, "{source: mqtt}", "{source: interval, interval_s: 0.05}")
    wait_until(subscriber, TOPICS.verdict, lambda p: json.loads(p)["trigger"] == "interval")
    rewrite(station.file, "directory: state", "directory: elsewhere")
    noted(subscriber, "storage.directory: changed in")
    assert service.stop() == 0, service.log


def test_no_part_is_judged_by_the_new_settings_in_the_picture_of_the_old_camera(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
):
    interval = "{source: interval, interval_s: 0.02}"
    station = make_station(camera=SIMULATED % 100, trigger=interval, port=1)
    station.teach()
    write_pictures(station.folder / "parts", [20])
    service = Service(load(station.file))
    make_camera = service_module.make_camera

    def hesitate(settings: Settings) -> Camera:
        """As the import of a driver does."""
        count = len(station.rows())
        assert eventually(lambda: len(station.rows()) >= count + 5)
        return make_camera(settings)

    monkeypatch.setattr(service_module, "make_camera", hesitate)
    main = threading.Thread(target=service.run)
    main.start()
    try:
        assert eventually(lambda: len(station.rows()) >= 5, 30)
        replayed = "camera: {driver: replay, path: parts, loop: true}"
        rewrite(station.file, f"camera: {SIMULATED % 100}", replayed)
        assert eventually(lambda: len(judged_of(station, "20.png")) >= 5, 30)
    finally:
        service.request_stop()
        main.join(30)
    after = {one["settings_hash"] for one in judged_of(station, "20.png")}
    before = {one["settings_hash"] for one in judged_of(station) if one["frame"] != "20.png"}
    assert (len(before), len(after)) == (1, 1)
    assert before != after


def judged_of(station: Station, frame: str = "") -> list[dict]:
    """What the journal has of those that a picture was looked at for, or that one."""
    with closing(sqlite3.connect(f"file:{station.journal}?mode=ro", uri=True)) as database:
        found = [json.loads(raw) for (raw,) in database.execute("SELECT payload FROM inspection")]
    return [one for one in found if one["frame"] and frame in {"", one["frame"]}]


# ---- requests ------------------------------------------------------------------------------------


def test_each_request_does_what_it_says_once(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=broker.port)
    rewrite(station.file, f"port: {broker.port}", f"port: {broker.port}, requests: {ALL}")
    station.teach()
    service = station.start()
    wait_until_available(subscriber)

    assert answer(subscriber, "lot", {"name": "L-1", "transaction": "l1"})["ok"]
    first = judged(subscriber, "A")
    assert first["lot"] == "L-1"

    limits = {"threshold": 0.01, "transaction": "m1"}
    assert answer(subscriber, "limits", limits)["ok"]
    second = judged(subscriber, "B")
    assert second["verdict"] == "FAIL"
    assert second["settings_hash"] != first["settings_hash"]
    noted(subscriber, f"threshold of {PROGRAM}: 0.01 (program file: 1)")
    refused = answer(subscriber, "limits", {"threshold": 2.0, "region": "x", "transaction": "m2"})
    assert "judges no region 'x'" in refused["error"]

    taught = answer(subscriber, "teach", {"frames": 2, "transaction": "t1"})
    assert "2 added, 10 now" in taught["detail"], taught
    again = answer(subscriber, "teach", {"frames": 2, "transaction": "t1"})
    assert again == taught
    assert last_state(subscriber)["references"] == 10

    assert answer(subscriber, "snapshot", {"transaction": "s1"})["ok"]
    (picture,) = subscriber.wait_for(TOPICS.snapshot)
    assert picture.payload.startswith(b"\x89PNG")

    assert answer(subscriber, "resend", {"first": 1, "last": 9})["detail"].endswith(": 2")
    found = wait_for_verdicts(subscriber, 4)
    assert [(one["seq"], one["historical"]) for one in found] == [
        (1, False),
        (2, False),
        (1, True),
        (2, True),
    ]
    assert not answer(subscriber, "resend", {"first": 7, "last": 9})["ok"]
    assert service.stop() == 0, service.log

    service = station.start()
    wait_until_available(subscriber, 2)
    assert answer(subscriber, "teach", {"frames": 2, "transaction": "t1"}) == taught
    third = judged(subscriber, "C")
    assert third["settings_hash"] == second["settings_hash"]
    # At once, while its acknowledgement may still have to be noted.
    assert answer(subscriber, "resend", {"first": 3, "last": 3})["detail"].endswith(": 1")
    wait_until(subscriber, TOPICS.verdict, lambda p: json.loads(p) == third | {"historical": True})
    assert last_state(subscriber)["references"] == 10
    assert service.stop() == 0, service.log


def test_a_request_that_is_wrong_or_not_allowed_is_answered_and_echoes_its_transaction(
    running: Running,
):
    _, service, subscriber = running
    for name, payload, words in (
        ("teach", {"transaction": "1"}, "mqtt.requests in the station file lacks it"),
        ("program", {"transaction": "2"}, "program"),
        ("program", {"transaction": "3", "program": 5}, "program"),
        ("lot", {"transaction": "4", "name": "x", "more": 1}, "more"),
        ("nonsense", {"transaction": "5"}, "there is no request 'nonsense'"),
    ):
        refused = answer(subscriber, name, payload)
        assert not refused["ok"]
        assert words in refused["error"]
        assert refused["transaction"] == payload["transaction"]
    assert service.stop() == 0, service.log


# ---- what is reported ----------------------------------------------------------------------------


def test_a_subscriber_sees_statistics_heartbeat_and_home_assistant_and_the_disk_the_pictures(
    make_station: Callable[..., Station], broker: PrivateBroker, subscribe: Subscribe
):
    subscriber = subscribe(broker)
    station = make_station(
        camera=SIMULATED % 100,
        trigger="{source: mqtt}",
        port=broker.port,
        extra="alarm_after: 2\narchive: {keep: [PASS, FAIL]}\n",
    )
    rewrite(station.file, f"port: {broker.port}", f"port: {broker.port}, homeassistant: {{}}")
    rewrite(
        station.folder / "programs" / f"{PROGRAM}.yaml",
        "description: 27 pins",
        "limit: {threshold: 0.01}",
    )
    station.teach()
    service = station.start()
    wait_until_available(subscriber)
    assert judged(subscriber, "A")["verdict"] == judged(subscriber, "B")["verdict"] == "FAIL"
    wait_until(subscriber, TOPICS.state, lambda p: json.loads(p)["alarm"] is not None)
    beats = subscriber.wait_for(TOPICS.heartbeat, 2)
    counts = [json.loads(beat.payload)["count"] for beat in beats]
    assert counts == list(range(1, len(counts) + 1))
    assert service.stop() == 0, service.log
    subscriber.catch_up()
    statistics = decoded(subscriber, TOPICS.statistics)[-1]
    assert statistics["since_start"]["by_verdict"]["FAIL"] == 2
    Draft202012Validator(json_schemas()["statistics"]).validate(statistics)
    Draft202012Validator(json_schemas()["state"]).validate(last_state(subscriber))
    assert subscriber.received("homeassistant/device/inspectd_cell/config")
    archive = station.folder / "state" / "cell" / "archive"
    assert len(list(archive.rglob("*.json"))) == 2


def test_settings_that_are_being_put_in_force_while_the_station_stops_leave_nothing_running(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
):
    station = make_station(camera=SIMULATED % 100, trigger="{source: mqtt}", port=1)
    station.teach()
    service = Service(load(station.file))
    adopt = service._broker.adopt
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def hesitate(settings: Settings) -> None:
        begun.set()
        assert go_on.wait(30)
        adopt(settings)
        done.set()

    monkeypatch.setattr(service._broker, "adopt", hesitate)
    main = threading.Thread(target=service.run)
    main.start()
    assert eventually(lambda: service._state.payload.state == "judging", 30)
    rewrite(station.file, "port: 1}", "port: 2}")  # a connection that is begun anew
    assert begun.wait(30)
    service.request_stop()
    main.join(1.0)  # time enough to close what would be begun after it
    go_on.set()
    main.join(30)
    assert not main.is_alive()
    assert done.wait(30)
    assert eventually(lambda: not service._broker._client._thread.is_alive())
    with pytest.raises(ControlError, match="is stopping"):
        service._adopt(load(station.file))


def test_a_reload_that_is_asked_for_while_the_station_stops_does_not_end_it_otherwise(
    running: Running,
):
    _, service, _ = running
    service.process.send_signal(signal.SIGTERM)

    def has_ended() -> bool:
        service.process.send_signal(signal.SIGHUP)
        return service.process.poll() is not None

    assert eventually(has_ended)
    assert service.process.returncode == 0, service.log
