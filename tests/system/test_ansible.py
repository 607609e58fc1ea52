"""The Ansible role, run against an installed machine by Ansible's own ssh connection.

Its ssh is a script that enters the container: there is no network to it. The tests are in this
order; each begins with a station that judges by the inventory of `INSTANCES`, and leaves one.
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
from installed import FIGURES
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
REFERENCES = 20
PLAY_S = 900.0
PASSWORD = "correct-horse"
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
        self.machine = machine
        self.programs = programs
        self.folder = folder
        self.bundle = bundle
        self.variables = copy.deepcopy(INSTANCES)
        self.enter = folder / "ssh"
        self.enter.write_text(ENTER.format(leader=machine._leader, path=PATH))
        self.enter.chmod(0o755)

    def play(self, *options: str, **variables: Any) -> Played:
        """Run site.yml, as root by itself; variables in place of those of the inventory."""
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
        inventory.write_text(yaml.safe_dump({"stations": {"hosts": {"station": host}}}))
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


@pytest.fixture(scope="module", params=RELEASES)
def node(
    request: pytest.FixtureRequest,
    programs: Path,
    release: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ControlNode]:
    """After the first run."""
    try:
        with booted(request.param) as machine:
            node = ControlNode(machine, programs, tmp_path_factory.mktemp("node"), release)
            for instance in node.variables["inspectd_instances"]:
                instance["references"] = {PROGRAM: str(pictures)}
            began = time.monotonic()
            node.ok()
            took = time.monotonic() - began
            FIGURES.append(f"{request.param}: the role's first run took {took:.0f} s")
            yield node
    except LabUnusable as error:
        pytest.skip(str(error))


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


# ---- On one --------------------------------------------------------------------------------------


def test_all_instances_are_ready_and_judge_what_was_taught(node):
    for unit, station in zip(UNITS, ("cell1", "cell2"), strict=True):
        assert node.machine.property_of(unit, "ActiveState") == "active"
        assert node.machine.run(f"systemctl is-enabled {unit}") == "enabled"

        def judged(station: str = station) -> bool:
            return node.last_verdict(station)["verdict"] == "PASS"

        node.machine.wait_until(f"{station} judges", judged)


def test_a_second_run_changes_nothing(node, request):
    pids = node.pids()
    began = time.monotonic()
    played = node.ok()
    took = time.monotonic() - began
    FIGURES.append(
        f"{request.node.callspec.params['node']}: a run of the role that changes nothing took "
        f"{took:.0f} s"
    )
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
    node.ok()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (with_program(resolutoin=50), "resolution"),
        ({"inspectd_settings": {**INSTANCES["inspectd_settings"], "queue": "many"}}, "queue"),
    ],
    ids=["program", "station"],
)
def test_wrong_settings_are_refused_and_nothing_is_put_in_place(node, variables, words):
    machine, pids = node.machine, node.pids()
    machine.run("touch /run/marker")
    played = node.play(**variables)
    assert played.code != 0, played.output
    assert words in played.output
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
    instances[0]["secrets"]["mqtt_password"] = "battery-staple"
    played = node.ok("-vv", "--diff", inspectd_instances=instances)
    assert machine.read(file) == "battery-staple"
    after = node.pids()
    assert after[0] not in (pids[0], "0")
    assert after[1] == pids[1]
    assert "battery-staple" not in played.output
    assert PASSWORD not in played.output


def test_another_release_is_refused_unless_asked_for(node):
    other = bundle(node.bundle.parent / "newer", "90.1")
    try:
        current = node.machine.run("readlink /opt/inspectd/current")
        refused = node.play(inspectd_bundle=str(other))
        assert refused.code != 0
        assert "--upgrade" in refused.output
        assert node.machine.run("readlink /opt/inspectd/current") == current
        node.ok(inspectd_bundle=str(other), inspectd_upgrade=True)
        assert node.machine.run("inspectd --version").endswith("90.1")
    finally:
        shutil.rmtree(other)
