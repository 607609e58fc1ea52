"""The Ansible role, run against an installed machine by Ansible's own ssh connection.

Its ssh is a script that enters the container: there is no network to it. The tests are in this
order; each begins with a station that was installed and judges, and says by its own run what it
should be like.
"""

import copy
import json
import os
import platform
import re
import shutil
import subprocess
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from installed import BROKER, BUNDLES, SCADA
from lab import PATH, Machine, booted
from roots import CHECKOUT, RELEASES, LabUnusable, alone, bundle, lab_folder, output, scratch

from inspectd.camera.simulated import render
from inspectd.settings import SimulatedCamera

PACKAGES = ("ansible-core>=2.19,<2.20", "ansible-lint>=25", "PyYAML>=6")
"""For a virtual environment of their own; the last Ansible for Python 3.11."""
ROLE = CHECKOUT / "deploy/ansible"
UNITS = ("inspectd@default.service", "inspectd@second.service")
PROGRAM = "block"
PROGRAM_FILE = f"/etc/inspectd/programs/{PROGRAM}.yaml"
REFERENCES = 10
PLAY_S = 900.0
PASSWORD = "correct-horse"
OTHER_PASSWORD = "battery-staple"
INSTANCES: dict[str, Any] = {
    "inspectd_settings": {
        "program": PROGRAM,
        "camera": {"driver": "simulated", "seed": 7},
        "trigger": {"source": "interval", "interval_s": 0.5},
        "mqtt": {"password_file": "$CREDENTIALS_DIRECTORY/mqtt-password"},
    },
    "inspectd_programs": {PROGRAM: {"limit": {"threshold": 1.0}}},
    "inspectd_instances": [
        {
            "name": "default",
            "settings": {"station": "cell1", "mqtt": {"username": "cell1"}},
            "secrets": {"mqtt_password": PASSWORD},
        },
        {
            "name": "second",
            "settings": {"station": "cell2", "mqtt": {"username": "cell2"}},
            "secrets": {"mqtt_password": f"{PASSWORD}-2"},
        },
    ],
}
ENTER = """\
#!/bin/sh
for command; do :; done
exec nsenter --target {leader} --all --root --wd env -i PATH={path} HOME=/root LANG=C.UTF-8 \\
    sh -c "$command"
"""


def ansible_programs() -> Path:
    """The folder of ansible-playbook and ansible-lint; made in the lab's cache where it is missing.

    Raises:
        LabUnusable: they cannot be had.
    """
    recipe = " ".join((platform.python_version(), *PACKAGES))
    folder = lab_folder() / "ansible"  # made where it stays: its programs name their interpreter
    complete = folder / "complete"
    with alone(folder):
        if not complete.is_file() or complete.read_text() != recipe:
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
            output([str(folder / "bin/python"), *install])
            complete.write_text(recipe)
    return folder / "bin"


NO_DEBIAN_PACKAGES = """\
Package: python3-picamera2 python3-gpiozero python3-lgpio
Pin: release *
Pin-Priority: -1
"""
"""With an index at hand, install.sh insists on those that apt knows; there is no network for it."""
LOCAL_INDEX = f"[global]\nno-index = true\nfind-links = {BUNDLES}/this\n"
"""Pip's configuration: a folder is its package index."""


@dataclass
class Played:
    """How a run of the playbook ended."""

    code: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks changed something."""
        found = re.search(r"^station +: ok=\d+ +changed=(\d+)", self.output, re.MULTILINE)
        assert found is not None, self.output
        return int(found[1])


class ControlNode:
    """Whoever runs the playbook, with an inventory of one machine."""

    def __init__(self, machine: Machine, programs: Path, folder: Path, bundle: Path) -> None:
        self.first_run_took_s = 0.0
        self.machine = machine
        self.programs = programs
        self.folder = folder
        self.bundle = bundle
        self.variables = copy.deepcopy(INSTANCES)
        self.enter = folder / "ssh"
        self.enter.write_text(ENTER.format(leader=machine._leader, path=PATH))
        self.enter.chmod(0o755)

    def play(
        self, *options: str, neighbour: dict[str, Any] | None = None, **variables: Any
    ) -> Played:
        """Run site.yml, as root by itself.

        Args:
            options: further ones for ansible-playbook.
            neighbour: a station that comes after this one, with these variables of its own.
            variables: in place of those of the inventory.
        """
        host = {
            "ansible_ssh_executable": str(self.enter),
            "ansible_ssh_transfer_method": "piped",
            "ansible_ssh_use_tty": False,
            "ansible_ssh_args": "",
            "ansible_become": False,
            "ansible_python_interpreter": "/usr/bin/python3",
            "inspectd_bundle": str(self.bundle),
            **self.variables,
            **variables,
        }
        inventory = self.folder / "inventory.yml"
        hosts = {"station": host}
        if neighbour is not None:
            hosts["neighbour"] = {**host, **neighbour}
        text = yaml.safe_dump({"stations": {"hosts": hosts}}, sort_keys=False)  # they go in order
        inventory.write_text(text)
        words = ["ansible-playbook", "-i", str(inventory), str(ROLE / "site.yml"), *options]
        return Played(*run_ansible(self.programs, self.folder, words))

    def ok(self, *options: str, **variables: Any) -> Played:
        """Likewise, where it must succeed."""
        played = self.play(*options, **variables)
        assert played.code == 0, played.output
        return played

    def pids(self) -> list[str]:
        return [self.machine.property_of(unit, "MainPID") for unit in UNITS]

    def last_verdict(self, station: str = "cell1") -> dict[str, Any]:
        code = (
            "import sqlite3; "
            f"db = sqlite3.connect('file:/var/lib/inspectd/{station}/journal.db?mode=ro', uri=True)"
            "; print(bytes(db.execute('SELECT payload FROM inspection ORDER BY seq DESC LIMIT 1')"
            ".fetchone()[0]).decode())"
        )
        verdict: dict[str, Any] = json.loads(self.machine.run(f'python3 -c "{code}"'))
        return verdict


def run_ansible(programs: Path, folder: Path, words: list[str]) -> tuple[int, str]:
    """The exit code, and what was printed."""
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PLAY_S,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def programs() -> Path:
    try:
        return ansible_programs()
    except LabUnusable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(REFERENCES):
        part, _ = render(SimulatedCamera(seed=3), number)
        assert cv2.imwrite(str(folder / f"{number:02}.png"), part)
    return folder


@pytest.fixture(scope="module")
def release(lab: None, programs: Path) -> Iterator[Path]:
    with scratch("inspectd-ansible") as folder:
        try:
            yield bundle(folder / "this")
        except LabUnusable as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def newer(release: Path) -> Path:
    """Another release, without the wheels of what it needs."""
    nothing = release.parent / "nothing"
    nothing.mkdir()
    return bundle(release.parent / "newer", "90.1", wheels=nothing)


@pytest.fixture(scope="module", params=RELEASES)
def fresh(
    request: pytest.FixtureRequest,
    programs: Path,
    release: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ControlNode]:
    """A machine that the role has never been run on, until `node`."""
    try:
        with booted(request.param, [f"--bind-ro={release.parent}:{BUNDLES}"]) as machine:
            folder = tmp_path_factory.mktemp("node")
            node = ControlNode(machine, programs, folder, release)
            for instance in node.variables["inspectd_instances"]:
                instance["references"] = {PROGRAM: str(pictures)}
            yield node
    except LabUnusable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def node(fresh: ControlNode) -> ControlNode:
    """The same after the first run."""
    began = time.monotonic()
    fresh.ok()
    fresh.first_run_took_s = time.monotonic() - began
    return fresh


def play_nowhere(
    programs: Path, folder: Path, names: list[str], *options: str, **variables: Any
) -> tuple[int, str]:
    """Run site.yml for machines that do not answer; the exit code, and what was printed."""
    host = {"ansible_ssh_executable": "/bin/false", **INSTANCES, **variables}
    inventory = folder / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"stations": {"hosts": dict.fromkeys(names, host)}}))
    words = ["ansible-playbook", "-i", str(inventory), str(ROLE / "site.yml"), *options]
    return run_ansible(programs, folder, words)


def with_program(**keys: Any) -> dict[str, Any]:
    return {"inspectd_programs": {PROGRAM: keys}}


# ---- Without a machine ---------------------------------------------------------------------------


def test_ansible_lint_finds_nothing(programs, tmp_path):
    copied = tmp_path / "ansible"
    shutil.copytree(ROLE, copied, ignore=shutil.ignore_patterns(".*"))
    words = ["ansible-lint", "--offline", "--strict", "--profile", "production", str(copied)]
    code, output = run_ansible(programs, copied, words)
    assert code == 0, output


def test_the_example_inventory_is_one(programs, tmp_path):
    inventory = str(ROLE / "inventory.example.yml")
    words = ["ansible-playbook", "-i", inventory, str(ROLE / "site.yml"), "--list-hosts"]
    code, output = run_ansible(programs, tmp_path, words)
    assert code == 0, output
    assert "hosts (2)" in output


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"inspectd_instances": INSTANCES["inspectd_instances"][:1] * 2}, "the same name"),
        ({"inspectd_removed_programs": [PROGRAM]}, f"both at once: {PROGRAM}"),
        ({"inspectd_removed_instances": ["second"]}, "both at once: second"),
        ({"inspectd_install_options": ["--mosquitto"]}, "take secrets.mqtt_password out"),
        (
            {
                "inspectd_instances": [
                    {"name": "default", "settings": {}, "secrets": {"mqtt_pasword": PASSWORD}}
                ]
            },
            "mqtt_pasword",
        ),
    ],
    ids=["name", "program", "instance", "password", "key"],
)
def test_an_inventory_that_contradicts_itself_is_refused(programs, tmp_path, variables, words):
    code, output = play_nowhere(programs, tmp_path, ["station"], "-vvv", **variables)
    assert code != 0, output
    assert words in output
    assert "UNREACHABLE" not in output, "before the station is asked for anything"
    assert PASSWORD not in output


@pytest.mark.parametrize(
    ("options", "tried"),
    [((), ["cell1"]), (("-e", "inspectd_at_once=2"), ["cell1", "cell2"])],
    ids=["one", "two"],
)
def test_a_run_ends_at_the_first_stations_that_fail(programs, tmp_path, options, tried):
    stations = ["cell1", "cell2", "cell3"]
    wrong = {"inspectd_removed_programs": [PROGRAM]}
    code, output = play_nowhere(programs, tmp_path, stations, *options, **wrong)
    assert code != 0, output
    assert re.findall(r"^(cell\d) +: .*failed=1", output, re.MULTILINE) == tried
    assert "cell3" not in output


# ---- On one --------------------------------------------------------------------------------------


def test_a_dry_run_on_a_fresh_machine_changes_nothing(fresh):
    played = fresh.ok("--check", "--diff")
    assert "inspectd is not installed yet" in played.output
    assert PASSWORD not in played.output
    made = "/etc/inspectd /opt/inspectd /var/lib/inspectd /usr/local/bin/inspectd"
    assert fresh.machine.result(f"ls -d {made}").stdout == ""


def test_all_instances_are_ready_and_judge_what_was_taught(node, measured):
    measured(f"the role's first run took {node.first_run_took_s:.0f} s")
    for unit, station in zip(UNITS, ("cell1", "cell2"), strict=True):
        assert node.machine.property_of(unit, "ActiveState") == "active"
        assert node.machine.run(f"systemctl is-enabled {unit}") == "enabled"

        def judged(station: str = station) -> bool:
            return node.last_verdict(station)["verdict"] == "PASS"

        node.machine.wait_until(f"{station} judges", judged)


def test_a_second_run_changes_nothing(node, measured):
    pids = node.pids()
    began = time.monotonic()
    played = node.ok()
    took = time.monotonic() - began
    measured(f"a run of the role that changes nothing took {took:.0f} s")
    assert played.changed == 0, played.output
    assert node.pids() == pids


def test_a_changed_threshold_is_judged_by_without_a_restart(node):
    pids, before = node.pids(), node.last_verdict()
    assert node.ok(**with_program(limit={"threshold": 0.5})).changed > 0
    after = node.machine.wait_until(
        "a verdict by the new threshold",
        lambda: (
            verdict
            if (verdict := node.last_verdict())["settings_hash"] != before["settings_hash"]
            else None
        ),
    )
    assert after["limit"] == pytest.approx(before["limit"] / 2, rel=1e-3)
    assert node.pids() == pids


def test_wrong_settings_are_told_and_neither_put_in_place_nor_brought_to_the_next_station(node):
    machine, pids = node.machine, node.pids()
    machine.run("touch /run/marker")
    played = node.play(
        neighbour={"inspectd_settings": INSTANCES["inspectd_settings"]},
        inspectd_settings={**INSTANCES["inspectd_settings"], "queue": "many"},
        inspectd_programs={PROGRAM: {"limit": {"threshold": 0.1}}, "next": {"resolutoin": 50}},
    )
    assert played.code != 0, played.output
    for line in (
        r"/etc/inspectd/programs/next\.yaml:2: .*resolution",
        r"/etc/inspectd/default\.yaml:\d+: queue: .*",
        r"/etc/inspectd/second\.yaml:\d+: queue: .*",
    ):
        assert re.search(f"^{line}", played.output, re.MULTILINE), played.output
    assert "neighbour" not in played.output
    assert machine.run("find /etc/inspectd -newer /run/marker") == ""
    assert machine.run("find /tmp -name '*.inspectd'") == ""
    assert node.pids() == pids


def test_a_dry_run_tells_what_would_change_and_changes_nothing(node):
    before = node.machine.read(PROGRAM_FILE)
    played = node.ok("--check", "--diff", **with_program(limit={"threshold": 0.25}))
    assert re.search(r"^\+ +threshold: 0\.25$", played.output, re.MULTILINE), played.output
    assert node.machine.read(PROGRAM_FILE) == before


def test_a_new_secret_restarts_its_instance_and_is_shown_nowhere(node):
    machine, pids = node.machine, node.pids()
    file = "/etc/inspectd/credentials/default.mqtt-password"
    assert machine.run(f"stat -c '%a %U' {file}") == "600 root"
    assert machine.read(file) == PASSWORD
    instances = copy.deepcopy(node.variables["inspectd_instances"])
    instances[0]["secrets"]["mqtt_password"] = OTHER_PASSWORD
    played = node.ok("-vvv", "--diff", inspectd_instances=instances)
    assert machine.read(file) == OTHER_PASSWORD
    after = node.pids()
    assert after[0] not in (pids[0], "0")
    assert after[1] == pids[1]
    assert OTHER_PASSWORD not in played.output
    assert PASSWORD not in played.output


def test_what_is_to_go_goes_and_what_it_inspected_stays(node):
    machine = node.machine
    machine.run(f"cp {PROGRAM_FILE} /etc/inspectd/programs/former.yaml")
    node.ok(
        inspectd_instances=node.variables["inspectd_instances"][:1],
        inspectd_removed_instances=["second"],
        inspectd_removed_programs=["former"],
    )
    assert machine.property_of(UNITS[0], "ActiveState") == "active"
    assert machine.property_of(UNITS[1], "ActiveState") == "inactive"
    assert machine.result(f"systemctl is-enabled {UNITS[1]}").stdout.strip() == "disabled"
    assert machine.run("find /etc/inspectd -name 'second*' -o -name 'former*'") == ""
    assert node.last_verdict("cell2")["verdict"] == "PASS"


def test_an_instance_that_does_not_get_ready_fails_the_run_which_tells_what_it_waits_for(node):
    shared = copy.deepcopy(INSTANCES["inspectd_settings"])
    simulated = shared.pop("camera")
    instances = copy.deepcopy(node.variables["inspectd_instances"])
    absent = {"driver": "opencv", "device": "/dev/absent", "exposure_us": 5000}
    node.machine.run(f"systemctl stop {UNITS[1]}")
    for instance, camera in zip(instances, (simulated, absent), strict=True):
        instance["settings"]["camera"] = camera
    played = node.play(
        inspectd_settings=shared, inspectd_instances=instances, inspectd_start_timeout=4
    )
    assert played.code != 0, played.output
    assert "inspectd@second is activating" in played.output
    assert "/dev/absent" in played.output
    assert "inspectd@default is" not in played.output
    node.ok()  # with the camera that is there, it gets READY without a restart


def test_a_broker_of_its_own_hears_both_instances(node):
    machine = node.machine
    machine.run("rm /etc/inspectd/credentials/*")  # those that run have the ones before
    settings = copy.deepcopy(INSTANCES["inspectd_settings"])
    settings["mqtt"] |= {"host": "localhost", "port": 8883, "tls": {"ca": "ca.pem"}}
    instances = copy.deepcopy(node.variables["inspectd_instances"])
    for instance in instances:
        del instance["secrets"]
    variables = {
        "inspectd_install_options": ["--mosquitto"],
        "inspectd_settings": settings,
        "inspectd_instances": instances,
    }
    played = node.ok("--diff", **variables)
    for instance, station in (("default", "cell1"), ("second", "cell2")):
        file = f"/etc/inspectd/credentials/{instance}.mqtt-password"
        assert machine.run(f"stat -c '%a %U' {file}") == "600 root"
        assert machine.read(file) not in played.output
        machine.run(f"mosquitto_sub {BROKER} {SCADA} -t inspectd/{station}/verdict -C 1 -W 30")
    again = node.ok(**variables)
    assert again.changed == 0, again.output


def test_another_release_is_refused_unless_asked_for(node, newer):
    current = node.machine.run("readlink /opt/inspectd/current")
    played = node.play(inspectd_bundle=str(newer))
    assert played.code != 0
    assert "to replace it by 90.1" in played.output
    assert "add -e inspectd_upgrade=true" in played.output
    assert node.machine.run("readlink /opt/inspectd/current") == current


def test_a_release_that_cannot_be_installed_is_told_and_brought_to_no_other_station(node, newer):
    current, pids = node.machine.run("readlink /opt/inspectd/current"), node.pids()
    played = node.play(neighbour={}, inspectd_bundle=str(newer), inspectd_upgrade=True)
    assert played.code != 0
    assert "No matching distribution found for" in played.output
    assert "inspectd: what inspectd needs could not be installed" in played.output
    assert "neighbour" not in played.output
    assert node.machine.run("readlink /opt/inspectd/current") == current
    assert node.pids() == pids


def test_an_upgrade_takes_what_it_needs_from_the_index_of_pip_where_told_to(node, newer):
    machine, pids = node.machine, node.pids()
    machine.write("/etc/pip.conf", LOCAL_INDEX)
    machine.write("/etc/apt/preferences.d/none", NO_DEBIAN_PACKAGES)
    node.ok(inspectd_bundle=str(newer), inspectd_upgrade=True, inspectd_offline=False)
    assert machine.run("inspectd --version").endswith("90.1")
    assert machine.run("cd /opt/inspectd/bundle && ls *.whl | wc -l") == "1"
    assert not set(pids) & set(node.pids())
    assert [machine.property_of(unit, "ActiveState") for unit in UNITS] == ["active"] * 2
