"""Typing errors in settings files and nonsense in requests: each is told, none does harm."""

import json
import shutil
import time
from pathlib import Path

import msgspec
from broker import eventually
from hypothesis import strategies as st
from station import NAME, PROGRAM, SIMULATED, Station

from inspectd import config
from inspectd.commands.private_broker import PrivateBroker
from inspectd.errors import Problem, SettingsError
from inspectd.mqtt.topics import Topics
from inspectd.payload import REQUESTS
from inspectd.settings import MqttSettings, Settings
from inspectd.typed_json import JsonError, JsonReader
from soak import mutations
from soak.consumer import Arrival, Consumer
from soak.report import Report, percentile
from soak.rig import crashes, kept, start, wait_online, workplace

ANSWER_S = 10.0
RELOAD_MS = 1000.0
ANSWERS = "plant/answer"
_READERS = {name: JsonReader[msgspec.Struct](kind) for name, kind in REQUESTS.items()}
PROGRAM_TEXT = """\
description: 27 pins
resolution: 100
light: gain
alignment:
  mode: rigid
  max_shift: 0.1
limit:
  false_reject: 0.02
  threshold: 1.0
regions:
  - name: row_1
    box: [0.1, 0.1, 0.9, 0.4]
    threshold: 1.2
  - name: label
    polygon: [[0.0, 0.9], [0.5, 0.9], [0.0, 1.0]]
    ignore: true
references:
  minimum: 5
health:
  min_focus: 0.4
  max_light_change: 0.3
soartc:
  part: 7
  step: 2
"""


def fuzz(*, files: int = 1000, requests: int = 1000) -> Report:
    """FILES mutated settings files and REQUESTS mutated payloads against a running station."""
    report = Report("Fuzz")
    topics = Topics(NAME)
    wanted = [topics.availability, topics.state, f"{ANSWERS}/#"]
    with (
        workplace() as folder,
        PrivateBroker(folder) as broker,
        kept(_station(folder, broker.port)) as station,
        Consumer(broker.port, topics, wanted) as consumer,
    ):
        service = start(station, consumer)
        technician = _Technician(report, station, consumer)
        if technician.can_reload():
            technician.save_all(files)
        _ask_all(report, consumer, requests)
        alive = service.process.poll() is None
        report.demand(alive, f"the service has ended:\n{service.log[-2000:]}")
        report.demand(wait_online(consumer), f"not online at the end: {_state(consumer)}")
        report.violations += [f"in the log: {line}" for line in crashes(station)]
    return report


def _station(folder: Path, port: int) -> Station:
    station = Station(
        folder / "station", camera=SIMULATED % 200, trigger="{source: mqtt}", port=port
    )
    _program_file(station).write_text(PROGRAM_TEXT)
    station.teach()
    return station


def _program_file(station: Station) -> Path:
    return station.folder / "programs" / f"{PROGRAM}.yaml"


def _state(consumer: Consumer) -> dict:
    return consumer.received(consumer.topics.state)[-1].json


# ---- settings files ------------------------------------------------------------------------------


class _Technician:
    """Saves files, and sees what the station makes of each."""

    def __init__(self, report: Report, station: Station, consumer: Consumer) -> None:
        self._report, self._station, self._consumer = report, station, consumer
        self._program = _program_file(station)
        self._texts = {file: file.read_bytes() for file in (station.file, self._program)}
        self._aside = station.folder / "aside"  # where a file is judged before it is saved
        self._good = config.load(station.file)
        self._took_ms: list[float] = []
        self._saved = 0
        (self._aside / "programs").mkdir(parents=True)

    def can_reload(self) -> bool:
        return self._report.demand(
            self._put_right(), f"a saved file is not in force after {ANSWER_S:.0f} s"
        )

    def save_all(self, count: int) -> None:
        """``count`` mutations, the most of them of the program's file."""
        strategies = {
            self._program: mutations.settings_files(PROGRAM_TEXT),
            self._station.file: mutations.settings_files(self._texts[self._station.file].decode()),
        }
        kinds = {"bad": 0, "good": 0, "good, but of another station": 0}
        drawn = st.sampled_from([self._program, *strategies]).flatmap(
            lambda file: strategies[file].map(lambda raw: (file, raw))
        )
        for file, raw in mutations.examples(drawn, count):
            kinds[self._save_one(file, raw)] += 1
        for kind, number in kinds.items():
            self._report.figure(f"settings files, {kind}", number)
        took = percentile(self._took_ms, 0.5)
        self._report.figure("saved to in force, p50", took, "ms", at_most=RELOAD_MS)
        self._report.figure("the same, longest", max(self._took_ms), "ms")

    def _save_one(self, file: Path, raw: bytes) -> str:
        try:
            expected = self._judge_aside(file, raw)
        except Exception as error:  # noqa: BLE001 - the checker must never do that, whatever it is
            self._report.demand(False, f"{error!r} while {file.name} was checked: {raw!r}")
            return "bad"
        if isinstance(expected, Settings):
            if file != self._program:
                return "good, but of another station"
            in_force = self._in_force_after(file, raw, expected)
            self._report.demand(in_force, f"{file.name} is good but not in force: {raw!r}")
            self._put_right()
            return "good"
        since = len(self._consumer.received(self._consumer.topics.state))
        self._replace(file, raw)
        place = f"{file.name}:{expected.line}" if expected.line else file.name
        self._report.demand(
            eventually(lambda: self._is_told(place, since), ANSWER_S),
            f"{place} is not told on state, though {expected.message!r}: {raw!r}",
        )
        judged_by = self._settings_judged_by()
        self._report.demand(
            judged_by == self._good.hash,
            f"judged by {judged_by}, not the last good {self._good.hash}, after {raw!r}",
        )
        self._replace(file, self._texts[file])
        self._put_right()
        return "bad"

    def _judge_aside(self, file: Path, raw: bytes) -> Settings | Problem:
        """What the station must make of it: other settings, or the first of its problems."""
        for one, text in self._texts.items():
            aside = self._aside / one.relative_to(self._station.folder)
            aside.write_bytes(raw if one == file else text)
        try:
            return config.load_to_run(self._aside / self._station.file.name)[0]
        except SettingsError as error:
            return error.problems[0]

    def _in_force_after(self, file: Path, raw: bytes, expected: Settings) -> bool:
        begun = time.monotonic()
        self._replace(file, raw)
        topic = self._consumer.topics.state
        came = eventually(
            lambda: self._consumer.received(topic)[-1].json["settings_hash"] == expected.hash,
            ANSWER_S,
        )
        self._took_ms.append((time.monotonic() - begun) * 1000)
        self._good = expected if came else self._good
        return came

    def _put_right(self) -> bool:
        """A good file again, like no other before it."""
        self._saved += 1
        raw = PROGRAM_TEXT.replace("27 pins", f"saved {self._saved} times").encode()
        expected = self._judge_aside(self._program, raw)
        assert isinstance(expected, Settings)
        return self._in_force_after(self._program, raw, expected)

    def _is_told(self, place: str, since: int) -> bool:
        states = self._consumer.received(self._consumer.topics.state)[since:]
        return any(place in state.payload.decode() for state in states)

    def _settings_judged_by(self) -> str | None:
        answer = _ask(self._consumer, "trigger", b"", f"{ANSWERS}/settings-{self._saved}")
        return answer[0].json["verdict"]["settings_hash"] if answer else None

    def _replace(self, file: Path, raw: bytes) -> None:
        """As an editor does: whole, or not at all."""
        new = file.with_name(f".{file.name}.new")
        new.write_bytes(raw)
        shutil.copymode(file, new)
        new.replace(file)


# ---- requests ------------------------------------------------------------------------------------


def _ask_all(report: Report, consumer: Consumer, count: int) -> None:
    kinds = {"bad": 0, "good": 0}
    before = _state(consumer)
    for number, (name, raw) in enumerate(mutations.examples(mutations.payloads(REQUESTS), count)):
        good = _is_good(name, raw)
        kinds["good" if good else "bad"] += 1
        said = f"request/{name} {raw[:200]!r}"
        answers = _ask(consumer, name, raw, f"{ANSWERS}/{number}")
        if not report.demand(len(answers) == 1, f"{said} was answered {len(answers)} times"):
            continue
        answer = answers[0].json
        report.demand(answer["request"] == name, f"{said} was answered as {answer['request']}")
        report.demand(
            bool(answer["ok"]) != bool(answer["error"]), f"{said}: neither done nor an error"
        )
        if not good:
            report.demand(not answer["ok"], f"{said} was done: {json.dumps(answer)[:300]}")
    after = _state(consumer)
    same = all(before[key] == after[key] for key in ("state", "program", "settings_hash"))
    report.demand(same, f"requests have changed the station from {before} to {after}")
    for kind, number in kinds.items():
        report.figure(f"requests, {kind}", number)


def _is_good(name: str, raw: bytes) -> bool:
    """Whether it is a request that may be done; by the types of the schemas that we ship."""
    if name not in REQUESTS or name not in MqttSettings().requests:
        return False
    try:
        _READERS[name].read(raw or b"{}")
    except JsonError:
        return False
    return True


def _ask(consumer: Consumer, name: str, raw: bytes, answer_to: str) -> list[Arrival]:
    consumer.publish(consumer.topics.request(name), raw, answer_to=answer_to)
    eventually(lambda: bool(consumer.received(answer_to)), ANSWER_S)
    return consumer.received(answer_to)
