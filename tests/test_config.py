"""Settings files: every mistake at once, with its line, and words that a technician can act on."""

import enum
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta
from msgspec import inspect as mi

from inspectd import config
from inspectd.commands.check import check
from inspectd.commands.schema import schema
from inspectd.config.nodes import MAX_DEPTH
from inspectd.config.walk import Walk
from inspectd.errors import SettingsError
from inspectd.settings import (
    Box,
    IntervalTrigger,
    Program,
    Region,
    RegionOfInterest,
    ReplayCamera,
    SimulatedCamera,
    SoartcSettings,
    Station,
)

CONFIG = Path(__file__).parent.parent / "config"
EXAMPLES = {
    "inspectd.yaml": Station,
    "programs/terminal-block.yaml": Program,
    "programs/connector.yaml": Program,
}
STATION = "station: cell\nprogram: block\ncamera: {driver: simulated}\n"


def problems_of(text, kind=Program):
    with pytest.raises(SettingsError) as caught:
        config.parse(text, kind, "f.yaml")
    return caught.value.problems


def found(text, kind=Program):
    """(line, key) of every problem."""
    return [(problem.line, problem.key) for problem in problems_of(text, kind)]


def only(text, kind=Program):
    (problem,) = problems_of(text, kind)
    return problem


def write(folder, station=STATION, **programs):
    (folder / "programs").mkdir()
    (folder / "inspectd.yaml").write_text(station)
    for name, text in programs.items():
        (folder / "programs" / f"{name}.yaml").write_text(text)
    return folder / "inspectd.yaml"


# ---- what is right -----------------------------------------------------------------------------


def test_every_kind_of_value_arrives():
    program = config.parse(
        """
roi: [10, 20, 300, 200]
resolution: 120
soartc: {part: 7, p: 2, weights: [1e-3, .5, 10]}
regions:
  - name: pin
    box: [0, 0.1, 0.5, 1]
    threshold: 8E-1
  - name: label
    polygon: [[0, 0], [1, 0], [1, 1]]
    ignore: yes
    box: null
description: |
  two
  lines
""",
        Program,
    )
    assert program == Program(
        roi=RegionOfInterest(10, 20, 300, 200),
        resolution=120,
        soartc=SoartcSettings(part=7, p=2.0, weights=(0.001, 0.5, 10.0)),
        regions=(
            Region(name="pin", box=Box(0.0, 0.1, 0.5, 1.0), threshold=0.8),
            Region(name="label", polygon=((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)), ignore=True),
        ),
        description="two\nlines\n",
    )
    assert isinstance(program.soartc.p, float)
    assert isinstance(program.regions[0].threshold, float)


def test_a_driver_decides_the_keys():
    station = config.parse(
        "station: cell\nprogram: block\ncamera: {driver: replay, path: pictures, loop: on}\n"
        "trigger: {source: interval, interval_s: 2}\n",
        Station,
    )
    assert station.camera == ReplayCamera(path="pictures", loop=True)
    assert station.trigger == IntervalTrigger(interval_s=2.0)


def test_an_enumeration_is_read_by_its_values():
    class Colour(enum.StrEnum):
        RED = "red"
        GREEN = "green"

    class Lamp(msgspec.Struct):
        colour: Colour

    assert config.parse("colour: red", Lamp) == Lamp(Colour.RED)
    problem = only("colour: gren", Lamp)
    assert problem.message == "expected red or green, found 'gren'"
    assert problem.hint == "did you mean green?"


def test_what_only_msgspec_checks_is_a_problem_too():
    class Grid(msgspec.Struct):
        pitch: Annotated[int, Meta(multiple_of=4)]

    class Plate(msgspec.Struct):
        grid: Grid

    assert config.parse("grid: {pitch: 8}", Plate).grid.pitch == 8
    problem = only("\ngrid:\n  pitch: 6\n", Plate)
    assert (problem.line, problem.key) == (3, "grid.pitch")
    assert "multiple of 4" in problem.message


def test_every_type_in_the_settings_is_provided_for():
    def kinds(kind):
        if isinstance(kind, mi.Metadata):
            yield from kinds(kind.type)
            return
        yield type(kind)
        inner = [field.type for field in getattr(kind, "fields", ())]
        inner += [*getattr(kind, "types", ()), *getattr(kind, "item_types", ())]
        inner += [kind.item_type] if hasattr(kind, "item_type") else []
        for each in inner:
            yield from kinds(each)

    used = {*kinds(mi.type_info(Station)), *kinds(mi.type_info(Program))} - {mi.NoneType}
    assert used <= Walk._READERS.keys()


# ---- what is wrong -----------------------------------------------------------------------------


def test_all_problems_come_at_once_with_their_lines():
    text = """\
station: line 1
camera:
  driver: simulatd
  wdith: 99
  rate: fast
  rate: 30
  defects: [missing_pin, bent_pni]
triger: {source: interval, interval_s: 0}
queue: 0
mqtt: {port: 70000, host: 5}
storage:
"""
    assert found(text, Station) == [
        (1, "program"),
        (1, "station"),
        (3, "camera.driver"),
        (4, "camera.wdith"),
        (4, "camera.wdith"),
        (5, "camera.rate"),
        (6, "camera.rate"),
        (7, "camera.defects[1]"),
        (8, "triger"),
        (8, "triger.interval_s"),
        (9, "queue"),
        (10, "mqtt.host"),
        (10, "mqtt.port"),
        (11, "storage"),
    ]


@pytest.mark.parametrize(
    ("text", "key", "message", "hint"),
    [
        ("resolution: abc", "resolution", "a whole number from 16 to 2000", ""),
        ("resolution: 15", "resolution", "found the number 15", ""),
        ("resolution: 2001", "resolution", "found the number 2001", ""),
        ("resolution: 100.5", "resolution", "found the number 100.5", ""),
        ("resolution: 1e2", "resolution", "found the number 1e2", ""),
        ("resolution: on", "resolution", "found on, which YAML reads as true", ""),
        ("resolution: True", "resolution", "found True", ""),
        ('resolution: "100"', "resolution", "found '100'", "take away the quotes"),
        ("resolution: 0100", "resolution", "found 0100, which", "plain decimal"),
        ("resolution: 0x64", "resolution", "found 0x64, which", "plain decimal"),
        ("resolution: 1_00", "resolution", "found 1_00, which", "plain decimal"),
        ("resolution: 1:40", "resolution", "found 1:40, which", "plain decimal"),
        ("resolution: 100 px", "resolution", "found '100 px'", "write 100 alone"),
        ("resolution:", "resolution", "found nothing", ""),
        ("resolution: ~", "resolution", "found ~, which YAML reads as nothing", ""),
        ("resolution: [100]", "resolution", "found a list", ""),
        ("resolution: {px: 100}", "resolution", "found a group of keys", ""),
        (f"resolution: {'9' * 5000}", "resolution", "found the number 9999", "digits"),
        ("limit: {threshold: 0}", "limit.threshold", "a number above 0, at most 100", ""),
        ("limit: {threshold: .nan}", "limit.threshold", "found .nan", "finite"),
        ("limit: {threshold: -.INF}", "limit.threshold", "found -.INF", "finite"),
        ("limit: {threshold: 1e999}", "limit.threshold", "found the number 1e999", "too large"),
        ("limit: {threshold: '1e-3'}", "limit.threshold", "found '1e-3'", "take away the quotes"),
        ("limit:\n  threshold: 0,5", "limit.threshold", "found '0,5'", "write 0.5, with a point"),
        ("references: 5", "references", "a group of keys: minimum", "write {minimum: 5}"),
        ("limit:\n", "limit", "found nothing", "take this line out"),
        ("limit: [1]", "limit", "found a list", "without the '-'"),
        ("description: on", "description", "found on, which YAML reads as true", 'quotes: "on"'),
        ("description: 12", "description", "found the number 12", 'quotes: "12"'),
        ("description: 2024-01-01", "description", "YAML reads as a date", '"2024-01-01"'),
        ("description: [a]", "description", "expected a text", ""),
        ('description: "a\\0b"', "description", "expected a text", "U+0000"),
        ('description: "\\ud800"', "description", "expected a text", "U+D800"),
        (
            "method: publishd",
            "method",
            "auto, nearest, published or statistics",
            "did you mean published?",
        ),
        ("method: 5", "method", "found the number 5", ""),
        ("method: [auto]", "method", "found a list", ""),
        ("roi: [1, 2, 3]", "roi", "a list [x, y, width, height]", ""),
        ("roi: [1, 2, 3, 4, 5]", "roi", "found 5 values", ""),
        ("roi: [1, 2, 0, 4]", "roi[2]", "a whole number of at least 1", ""),
        ("roi: whole", "roi", "found 'whole'", ""),
        ("soartc: {weights: [1, 2]}", "soartc.weights", "found 2 values", ""),
        ("soartc: {weights: [1, -2, 3]}", "soartc.weights[1]", "of at least 0", ""),
        ("soartc: {part: 4}", "soartc.part", "odd and at least 3, not 4", ""),
        ("regions: {name: a}", "regions", "expected a list", "'- '"),
        ("regions: [a]", "regions[0]", "expected a group of keys", ""),
        ("regions: [{name: a}]", "regions[0]", "either a box or a polygon", ""),
        ("regions: [{name: a b, box: [0, 0, 1, 1]}]", "regions[0].name", "letters, digits", ""),
        ('regions: [{name: "a\\n", box: [0, 0, 1, 1]}]', "regions[0].name", "letters", ""),
        ("regions: [{name: a, box: [0, 0, 0, 1]}]", "regions[0].box", "left < right", ""),
        ("regions: [{name: a, box: [0, 0, 2, 1]}]", "regions[0].box[2]", "from 0 to 1", ""),
        (
            "regions: [{name: a, polygon: [[0, 0], [1, 1]]}]",
            "regions[0].polygon",
            "three points",
            "",
        ),
        (
            "regions: [{name: a, box: [0, 0, 1, 1], ignore: 1}]",
            "regions[0].ignore",
            "true or false",
            "",
        ),
        (
            "regions: [{name: a, box: [0, 0, 1, 1], ignore: 'yes'}]",
            "regions[0].ignore",
            "'yes'",
            "take away the quotes",
        ),
        ("regions: [{box: [0, 0, 1, 1]}]", "regions[0].name", "is missing: expected a name", ""),
        ("health: {min_brightness: 0.99}", "health.min_brightness", "(0.99) must be below", ""),
        ("health: {min_contrast: 0.5}", "health.min_contrast", "(0.5) must be below 0.5", ""),
        ("health: {min_match: 1}", "health.min_match", "a number of at least -1, below 1", ""),
        ("health: {max_clipped: 1.5}", "health.max_clipped", "a number from 0 to 1", ""),
        ("resolution: 100\nresolution: 100", "resolution", "twice, first on line 1", "take one"),
        ('resolution: 100\n"resolution": 100', "resolution", "twice, first on line 1", ""),
        ("resolutoin: 100", "resolutoin", "unknown key", "did you mean resolution?"),
        ("xyz: 100", "xyz", "unknown key", "known here: description, roi"),
        ("threshold: 1", "threshold", "unknown key", "limit.threshold or regions[].threshold"),
        ("host: a", "host", "unknown key", "mqtt.host in the station file"),
        ("1: a", "1", "unknown key", ""),
        ("on: a", "on", "unknown key", ""),
        ('"a b\\e": 1', r"'a b\x1b'", "unknown key", ""),
        ("? [a]\n: 1", "", "expected a key", ""),
        ("'': 1", "", "expected a key", ""),
        ("{: 1}", "", "a value or key is missing", ""),
        ("<<: {resolution: 1}", "", "<< would take in", "write the keys out"),
        ("description: &a b", "", "&a is what YAML calls an anchor", "in quotes"),
        ("description: *a", "", "*a is what YAML calls an alias", "in quotes"),
        ("? *a\n: 1", "", "*a is what YAML calls an alias", ""),
        ("resolution: !!int 100", "", "tag", "leave it out"),
        ("!!python/object:os.system {}", "", "tag", ""),
        ("description: a\n---\ndescription: b", "", "a second document", "take away the line"),
        ("", "", "empty: expected the keys description, roi", ""),
        ("# nothing\n", "", "empty", ""),
        ("---\n", "", "found nothing", ""),
        ("- resolution: 100", "", "found a list", "without the '-'"),
        ("resolution:100", "", "found 'resolution:100'", "a space after the ':'"),
        ("resolution: 100\n\tmethod: auto", "", "a tab", "indent with spaces"),
        ("resolution: 100\n  method: auto", "", "a ':' where there can be none", "indented"),
        ("limit:\n    threshold: 1\n  x: 1", "", "does not line up", "same column"),
        ("method auto\nresolution: 100\n", "", "a ':' where there can be none", ""),
        ("resolution: 100\nmethod auto\nroi: null", "", "has no ':' after its key", ""),
        ('method: auto\ndescription: "a\nroi: null', "", "quotes opened here", "same quote"),
        ("roi: [1, 2\nmethod: auto", "", "the bracket [ opened here", ""),
        ("limit: {threshold: 1\nmethod: auto", "", "the brace { opened here", ""),
        ("description: @a", "", "must be in quotes", ""),
        ("description: *", "", "must be in quotes", ""),
        ("description: > 5 mm", "", "must be in quotes", ""),
        ("description: - a", "", "a '- ' where no item", "in quotes"),
        ("{}\nroi: null", "", "does not line up", ""),
        ('description: "C:\\path"', "", "a backslash", "single quotes"),
        ("description: a\x07", "", "U+0007 cannot stand in YAML", ""),
        ('description: "\\U00110000"', "", "an escape that YAML cannot read", ""),
        ("%YAML 3.0\n---\nroi: null", "", "not valid YAML", ""),
        ("description: " + "[" * 100_000, "", f"more than {MAX_DEPTH} levels", ""),
        ("description:\n" + "- " * 5_000 + "a", "", f"more than {MAX_DEPTH} levels", ""),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_each_mistake_is_one_problem_in_plain_words(text, key, message, hint):
    problem = only(text)
    assert problem.key == key
    assert message in problem.message
    assert hint in problem.hint
    assert problem.line >= 1
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('method: auto\ndescription: "a\nroi: null', 2),
        ("method: auto\nroi: [1, 2\nlimit: {}\n", 2),
        ("method: auto\n\n\tx: 1", 3),
        ("method: auto\n---\nx: 1", 2),
        ("method: auto\ndescription: a\x07", 2),
        ('method: auto\ndescription: "\\U00110000"', 2),
    ],
)
def test_a_mistake_of_syntax_is_named_where_it_begins(text, line):
    assert only(text).line == line


def test_something_refused_among_right_values_is_the_only_problem():
    # The checks between values must not meet what stands in for the refused one.
    assert found("soartc: {part: !!int 5, band: 3}") == [(1, "")]
    assert found("health: {min_brightness: &low 0.1, max_brightness: 0.2}") == [(1, "")]


def test_a_hint_repeats_nothing_unprintable():
    assert str(only("limit: a\u2028b")).isprintable()
    assert str(only(f"description: {'1' * 500}")).count("1") < 100


def test_an_alias_bomb_is_refused_without_unfolding_it():
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    problems = problems_of("\n".join(lines))
    assert sum("alias" in problem.message for problem in problems) == 29 * 9


def test_the_station_names_what_is_missing_and_what_belongs_elsewhere():
    assert [problem.key for problem in problems_of("{}", Station)] == [
        "camera",
        "program",
        "station",
    ]
    problem = only(STATION.replace("simulated", "picamera"), Station)
    assert (problem.line, problem.key) == (3, "camera.driver")
    assert "expected picamera2, opencv, replay or simulated, found 'picamera'" in problem.message
    problem = only(STATION.replace("driver: ", "width: 1000, drivr: "), Station)
    assert (problem.key, problem.hint) == ("camera.drivr", "did you mean driver?")
    problem = only(STATION.replace("driver: simulated", "width: 200"), Station)
    assert (problem.key, problem.message) == (
        "camera.driver",
        "is missing: expected picamera2, opencv, replay or simulated",
    )
    problem = only(STATION.replace("{driver: simulated}", "simulated"), Station)
    assert problem.hint == "write {driver: simulated}"
    replay = STATION.replace("driver: simulated", "driver: replay, seed: 3")
    missing, misplaced = problems_of(replay, Station)
    assert (missing.key, missing.line) == ("camera.path", 3)
    assert "folder of images" in missing.message
    assert "camera.seed (with driver: simulated) in the station file" in misplaced.hint


def test_a_misspelt_key_is_one_mistake_and_its_value_is_still_checked():
    assert found("station: c\nprogramm: a b\ncamera: {driver: simulated}", Station) == [
        (2, "programm"),
        (2, "programm"),
    ]
    assert found("regons:\n  - {name: a}\n") == [(1, "regons"), (2, "regons[0]")]


def test_checks_between_values_need_only_the_values_they_read():
    assert found("health: {min_brightness: 0.9, max_brightness: 0.1, min_focus: x}") == [
        (1, "health.min_brightness"),
        (1, "health.min_focus"),
    ]
    assert found("soartc:\n  part: 4\n  band: 2\n  weights: [0, 0, 0]\n") == [
        (2, "soartc.part"),
        (3, "soartc.band"),
        (4, "soartc.weights"),
    ]
    same_name = """\
resolution: 1
regions:
  - {name: pin, box: [0, 0, 1, 1]}
  - {name: pin, box: [0, 0, 3, 1]}
"""
    assert found(same_name) == [(1, "resolution"), (4, "regions[1].box[2]"), (4, "regions[1].name")]


def test_a_check_that_reads_a_wrong_value_waits():
    assert found("health: {min_brightness: 0.99, max_brightness: high}") == [
        (1, "health.max_brightness")
    ]


# ---- files -------------------------------------------------------------------------------------


def problems_of_file(path):
    with pytest.raises(SettingsError) as caught:
        config.load(path)
    return caught.value.problems


def test_a_misspelt_program_is_a_problem_like_any_other(tmp_path):
    path = write(tmp_path, STATION.replace("program:", "progam:"))
    problems = problems_of_file(path)
    assert any(problem.hint and "program" in problem.hint for problem in problems), problems
    assert any("there is no file" in problem.message for problem in problems)


def test_a_station_is_loaded_with_all_programs_beside_it(tmp_path):
    path = write(tmp_path, block="resolution: 50", other="method: published")
    (tmp_path / "programs" / "notes.txt").write_text("not a program")
    (tmp_path / "programs" / ".#block.yaml").write_text("an editor's")
    loaded = config.load(path)
    assert loaded.path == path
    assert loaded.station.camera == SimulatedCamera()
    assert set(loaded.programs) == {"block", "other"}
    assert loaded.program == Program(resolution=50)


def test_problems_of_all_files_come_together(tmp_path):
    path = write(
        tmp_path,
        station=STATION + "queue: none\n",
        block="resolution: 1",
        other="\nmethod: x",
    )
    problems = problems_of_file(path)
    assert [(Path(problem.file).name, problem.line) for problem in problems] == [
        ("inspectd.yaml", 4),
        ("block.yaml", 1),
        ("other.yaml", 2),
    ]


def test_the_program_must_exist(tmp_path):
    path = write(tmp_path, station=STATION + "queue: 0\n", blok="", connector="{}")
    (_, program, queue) = sorted(problems_of_file(path), key=lambda problem: problem.key)
    assert (program.line, program.key) == (2, "program")
    assert "the programs there are blok, connector" in program.message
    assert program.hint == "did you mean blok?"
    assert queue.key == "queue"


def test_a_station_runs_in_spite_of_a_mistake_in_a_program_it_does_not_judge_by(tmp_path):
    path = write(tmp_path, block="{}", other="resolution: 1", more="{}")
    (tmp_path / "programs" / "late.yml").write_text("{}")
    settings, problems = config.load_to_run(path)
    assert set(settings.programs) == {"block", "more"}
    assert [Path(problem.file).name for problem in problems] == ["late.yml", "other.yaml"]
    with pytest.raises(SettingsError) as caught:
        config.load(path)
    assert caught.value.problems == problems


@pytest.mark.parametrize("wrong", ["station", "block"])
def test_a_mistake_in_what_it_judges_by_keeps_a_station_from_running(tmp_path, wrong):
    texts = {"station": STATION, "block": "{}"}
    texts[wrong] += "\nrate: 1\n" if wrong == "station" else "x"
    path = write(tmp_path, texts["station"], block=texts["block"], other="resolution: 1")
    with pytest.raises(SettingsError) as caught:
        config.load_to_run(path)
    assert len(caught.value.problems) == 2  # the other program's mistake is told as well


def test_no_programs_at_all(tmp_path):
    path = tmp_path / "inspectd.yaml"
    path.write_text(STATION)
    (problem,) = problems_of_file(path)
    assert str(tmp_path / "programs" / "block.yaml") in problem.message
    assert "no programs yet" in problem.message


def test_a_faulty_program_exists_nonetheless(tmp_path):
    (problem,) = problems_of_file(write(tmp_path, block="roi: {"))
    assert Path(problem.file).name == "block.yaml"


def test_program_files_must_be_named_as_programs(tmp_path):
    path = write(tmp_path, **{"block": "{}", "my block": "{}"})
    (tmp_path / "programs" / "late.yml").write_text("{}")
    late, named = problems_of_file(path)
    assert late.hint == "rename it to late.yaml"
    assert "letters, digits" in named.message


def test_files_that_cannot_be_read(tmp_path):
    (problem,) = problems_of_file(tmp_path / "none.yaml")
    assert problem.message == "there is no such file"
    path = write(tmp_path, block="{}")
    (tmp_path / "programs" / "folder.yaml").mkdir()
    (tmp_path / "programs" / "large.yaml").write_bytes(b"#" * (config.MAX_BYTES + 1))
    (tmp_path / "programs" / "latin.yaml").write_bytes("\ndescription: für".encode("latin-1"))
    folder, large, latin = sorted(problems_of_file(path), key=lambda problem: problem.message)[:3]
    assert "Is a directory" in folder.message
    assert "larger than 256 KiB" in large.message
    assert (latin.line, "0xFC" in latin.message) == (2, True)
    assert "UTF-8" in latin.hint


def test_a_pipe_is_not_waited_for(tmp_path):
    path = write(tmp_path, block="{}")
    os.mkfifo(tmp_path / "programs" / "pipe.yaml")
    (problem,) = problems_of_file(path)
    assert problem.message == "cannot be read: Is a pipe"


def test_a_folder_of_programs_that_is_a_file(tmp_path):
    (tmp_path / "inspectd.yaml").write_text(STATION)
    (tmp_path / "programs").write_text("")
    problems = problems_of_file(tmp_path / "inspectd.yaml")
    assert any("Not a directory" in problem.message for problem in problems)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "block.yaml"
    path.write_bytes(b"\xef\xbb\xbfresolution: 50\r\nmethod: auto\r\n")
    assert config.load_program(path) == Program(resolution=50)
    path.write_bytes(b"\xef\xbb\xbfresolution: 50\r\nmethod: x\r\n")
    with pytest.raises(SettingsError) as caught:
        config.load_program(path)
    assert [problem.line for problem in caught.value.problems] == [2]


def test_the_hash_follows_what_is_set_and_nothing_else(tmp_path):
    station = config.parse(STATION, Station)
    program = Program()
    first = config.settings_hash(station, program)
    assert re.fullmatch("[0-9a-f]{12}", first)
    same = config.parse(
        "# written otherwise\ncamera: {driver: simulated, rate: 30}\n"
        "program: block\nqueue: 16\nstation: cell\n",
        Station,
    )
    assert config.settings_hash(same, config.parse("limit: {threshold: 1}", Program)) == first
    assert config.settings_hash(station, Program(resolution=101)) != first
    other = config.parse(STATION + "queue: 17", Station)
    assert config.settings_hash(other, program) != first
    path = write(tmp_path, block="{}", unused="resolution: 50")
    assert config.load(path).hash == first


# ---- the examples ------------------------------------------------------------------------------

COMMENTED_OUT = re.compile(r"^( *)#((?:  )*)(?=[a-z_]+:)", re.MULTILINE)


def test_the_examples_load():
    loaded = config.load(CONFIG / "inspectd.yaml")
    assert loaded.station.station == "line1-cell3"
    assert isinstance(loaded.station.camera, SimulatedCamera)
    assert set(loaded.programs) == {"terminal-block", "connector"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_has_commented_out_is_the_default(name):
    text = (CONFIG / name).read_text()
    with_all = COMMENTED_OUT.sub(r"\1\2", text)
    kind = EXAMPLES[name]
    assert config.parse(with_all, kind) == config.parse(text, kind)


def test_every_key_stands_in_the_examples():
    texts = "".join((CONFIG / name).read_text() for name in EXAMPLES)

    def keys(kind):
        if isinstance(kind, mi.Metadata):
            yield from keys(kind.type)
        elif isinstance(kind, mi.UnionType):
            for variant in kind.types:
                yield from keys(variant)
        elif isinstance(kind, mi.VarTupleType):
            yield from keys(kind.item_type)
        elif isinstance(kind, mi.StructType) and not kind.array_like:
            if kind.tag_field:
                yield f"{kind.tag_field}: {kind.tag}"
            for field in kind.fields:
                yield f"{field.encode_name}:"
                yield from keys(field.type)

    known = {*keys(mi.type_info(Station)), *keys(mi.type_info(Program))}
    assert len(known) > 40
    assert {key for key in known if not re.search(rf"(?<!\w){re.escape(key)}", texts)} == set()


# ---- whatever a person may type ----------------------------------------------------------------

FRAGMENTS = (
    *"[]{}:,-#&*!|>'\"%@`\\?~=\n\t ",
    "\n  - ",
    ": ",
    "<<: ",
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "!!int ",
    "%YAML 1.1\n",
    "\\x",
    '"\\U00110000"',
    '"\\ud800"',
    "1e999",
    ".nan",
    "0x1F",
    "1:30",
    "2024-01-01T00:00:00Z",
    "null",
    "on",
    "9" * 30,
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "ä",
)


@st.composite
def mutated(draw):
    """An example with some places replaced by things that mean something to YAML."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    text = COMMENTED_OUT.sub(r"\1\2", (CONFIG / name).read_text())
    text = re.sub(r"(?m)^ *#.*\n", "", text)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)))
        text = text[:start] + piece + text[end:]
    return name, text


def outcome(text, kind):
    """The record, or the problems; anything else that is raised fails the test."""
    try:
        return config.parse(text, kind), ()
    except SettingsError as error:
        return None, error.problems


@settings(max_examples=200)
@given(mutated())
def test_any_text_is_settings_or_problems_with_lines(case):
    name, text = case
    kind = EXAMPLES[name]
    record, problems = outcome(text, kind)
    if record is None:
        assert problems
        last = len(re.findall("[\n\r\x85\u2028\u2029]", text)) + 1
        for problem in problems:
            assert 1 <= problem.line <= last
            assert problem.message
            assert str(problem).isprintable()
    else:
        assert isinstance(record, kind)
        assert msgspec.json.decode(msgspec.json.encode(record), type=kind) == record


# ---- the commands ------------------------------------------------------------------------------


def test_check_says_in_short_what_the_settings_are(capsys):
    assert check(CONFIG / "inspectd.yaml") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "line1-cell3: camera simulated, trigger interval" in output.out
    assert "connector, terminal-block" in output.out
    assert config.load(CONFIG / "inspectd.yaml").hash in output.out


def test_check_prints_every_problem_on_a_line_and_counts_them(tmp_path, capsys):
    path = write(tmp_path, station=STATION + "queue: 0\n", block="resolution: 1\nroi: [1]")
    assert check(path) == 1
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0].startswith(f"{path}:4: queue: expected a whole number from 1 to 10000")
    assert lines[-1] == "3 problems in 2 files"
    assert len(lines) == 4
    path.write_text(STATION)
    (tmp_path / "programs" / "block.yaml").write_text("resolution: 1")
    assert check(path) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "1 problem in 1 file"


def test_schema_prints_all_or_one(capsys):
    assert schema(None) == 0
    everything = json.loads(capsys.readouterr().out)
    assert {"station", "program", "verdict", "request/trigger"} <= everything.keys()
    assert schema("program") == 0
    program = json.loads(capsys.readouterr().out)
    assert program == everything["program"]
    properties = program["$defs"]["Program"]["properties"]
    assert set(properties) == {field.encode_name for field in mi.type_info(Program).fields}
    assert program["$defs"]["Program"]["additionalProperties"] is False


def test_an_unknown_schema_is_answered_with_the_names(capsys):
    assert schema("verdit") == 2
    error = capsys.readouterr().err
    assert "station, program, verdict" in error
    assert "did you mean verdict?" in error


def test_reading_settings_needs_no_numpy():
    code = "import inspectd.config, sys; sys.exit('numpy' in sys.modules)"
    root = CONFIG.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
