"""The machines themselves, with a small unit in place of inspectd."""

from collections.abc import Iterator

import pytest
from lab import Machine, booted
from roots import PYTHON_OF, RELEASES, LabUnusable

UNIT = """\
[Service]
ExecStart=sleep infinity
Restart=always
StateDirectory=something
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module", params=RELEASES)
def machine(request: pytest.FixtureRequest, lab: None) -> Iterator[Machine]:
    try:
        with booted(request.param) as machine:
            yield machine
    except LabUnusable as error:
        pytest.skip(str(error))


def test_is_the_release_that_was_asked_for(machine, request):
    release = request.node.callspec.params["machine"]
    assert f"VERSION_CODENAME={release}" in machine.read("/etc/os-release")
    version = machine.run("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")
    assert version == PYTHON_OF[release]


def test_systemd_runs_what_a_unit_says_and_a_reboot_keeps_the_disk(machine):
    machine.write("/etc/systemd/system/something.service", UNIT)
    machine.run("systemctl enable --now something.service")
    first = machine.property_of("something.service", "MainPID")
    machine.run(f"kill -KILL {first}")

    def another() -> bool:
        return machine.property_of("something.service", "MainPID") not in ("0", first)

    machine.wait_until("the killed service runs again", another)
    boot = machine.read("/proc/sys/kernel/random/boot_id"), machine.read("/proc/1/stat")
    machine.reboot()
    assert machine.run("systemctl is-active something.service") == "active"
    assert machine.read("/proc/1/stat") != boot[1]


def test_takes_in_folders_and_files(machine, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("something")
    machine.copy_in(tmp_path / "folder", "/srv/folder")
    machine.copy_in(tmp_path / "folder/file", "/srv/alone")
    assert machine.read("/srv/folder/file") == machine.read("/srv/alone/file") == "something"


def test_has_no_network_but_the_packages_of_the_broker(machine):
    assert machine.run("ls /sys/class/net") == "lo"
    machine.run("DEBIAN_FRONTEND=noninteractive apt-get -y install mosquitto", timeout_s=120)
    assert machine.run("systemctl is-active mosquitto") == "active"


def test_what_is_done_to_a_machine_does_not_touch_the_prepared_root(machine):
    assert machine.run("test -e /etc/systemd/system/something.service; echo $?") == "0"
    with booted(next(iter(RELEASES))) as other:
        assert other.result("test -e /etc/systemd/system/something.service").returncode == 1
