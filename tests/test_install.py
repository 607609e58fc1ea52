"""The scripts that install inspectd: what they refuse, say and put into the wheel. No root needed.

Each refusal is brought about by a command of the system that tells another tale; on whatever
machine the tests run, nothing after it is reached.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from inspectd import config

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SCRIPTS = ["install.sh", "uninstall.sh", "wheels.sh"]
LIBRARY = (DEPLOY / "install.sh").read_text()


class Machine:
    """Commands that stand before the system's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.tell("id", "echo 0")
        self.tell("dpkg", "echo arm64")
        self.tell("apt-get", "exit 1")

    def tell(self, command: str, script: str) -> None:
        path = self.folder / command
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", DEPLOY / script, *arguments],
            env={"PATH": f"{self.folder}:/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "bin")


@pytest.mark.parametrize("script", [*SCRIPTS, "lib.sh", "prepare.sh"])
def test_scripts_are_sound_posix_shell(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck on this machine (Debian: apt install shellcheck)")
    done = subprocess.run(
        ["shellcheck", "-x", f"deploy/{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(machine, script):
    done = machine.run(script, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    text = (DEPLOY / script).read_text()
    lines = re.findall(r"^ +(?:--[a-z-]+ \| )*--[a-z-]+\)", text, re.MULTILINE)
    options = [option for line in lines for option in re.findall(r"--[a-z-]+", line)]
    assert "--help" in options
    assert [option for option in options if f"\n  {option}" not in done.stdout] == []


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_an_unknown_option_is_refused(machine, script):
    done = machine.run(script, "--purge-all")
    assert done.returncode == 2
    assert "there is no option --purge-all; see --help" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance"], "--instance needs a value"),
        (["--instance", ""], "--instance needs a value"),
        (["--instance", "../cam"], "--instance ../cam: letters, digits, - and _ only"),
        (["--instance", "-x"], "--instance -x: letters, digits, - and _ only"),
        (["--station", "a/b"], "--station a/b: letters, digits, - and _ only"),
        (["--rollback", "--upgrade"], "--rollback stands alone"),
    ],
)
def test_a_wrong_name_is_refused(machine, arguments, message):
    done = machine.run("install.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_only_root_may_run_it(machine, script):
    machine.tell("id", "echo 1000")
    done = machine.run(script)
    assert done.returncode == 1
    assert "must be run as root: sudo sh " in done.stderr


@pytest.mark.parametrize("architecture", ["armhf", "i386", "riscv64"])
def test_a_32_bit_userland_is_refused(machine, architecture):
    machine.tell("dpkg", f"echo {architecture}")
    done = machine.run("install.sh")
    assert done.returncode == 1
    assert f"this system is {architecture}; inspectd needs a 64-bit one" in done.stderr


def test_a_system_without_apt_is_refused(machine):
    (machine.folder / "apt-get").unlink()
    for command in ("sh", "dirname"):
        (machine.folder / command).symlink_to(shutil.which(command))
    done = subprocess.run(
        ["/bin/sh", DEPLOY / "install.sh"],
        env={"PATH": str(machine.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "neither Debian nor Raspberry Pi OS" in done.stderr


def test_a_system_without_systemd_is_refused(machine):
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs on this machine, so that it is not refused")
    if not Path("/usr/bin/python3").exists():
        pytest.skip("there is no /usr/bin/python3, which the installation looks for first")
    done = machine.run("install.sh")
    assert done.returncode == 1
    assert "systemd does not run here" in done.stderr


def test_wheels_are_not_fetched_for_what_there_are_none(machine, tmp_path):
    done = machine.run("wheels.sh", str(tmp_path / "wheels"), "--machine", "armv7l")
    assert done.returncode == 1
    assert "there are no wheels for --machine armv7l" in done.stderr
    assert not (tmp_path / "wheels").exists()


def function_of_install(name: str) -> str:
    (function,) = re.findall(rf"^{name}\(\) \{{.*?^\}}$", LIBRARY, re.DOTALL | re.MULTILINE)
    return str(function)


def example_station(folder: Path, *, mosquitto: bool) -> str:
    """What install.sh makes of the example."""
    (folder / "share").mkdir()
    (folder / "share" / "inspectd").symlink_to(ROOT)
    function = function_of_install("example_station")
    names = "station=press-3 instance=cam2"
    broker = "yes" if mosquitto else ""
    script = f'set -eu\n{function}\n{names}\nexample_station "{folder}" "{broker}"\n'
    return subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("mosquitto", [False, True])
def test_the_example_becomes_settings_that_are_right(tmp_path, mosquitto):
    path = tmp_path / "cam2.yaml"
    path.write_text(example_station(tmp_path, mosquitto=mosquitto))
    shutil.copytree(ROOT / "config" / "programs", tmp_path / "programs")
    station = config.load(path).station
    assert station.station == "press-3"
    broker = station.mqtt
    if not mosquitto:
        assert (broker.port, broker.tls, broker.username) == (1883, None, None)
        return
    assert (broker.host, broker.port, broker.username) == ("localhost", 8883, "press-3")
    assert str(broker.password_file) == "$CREDENTIALS_DIRECTORY/mqtt-password"
    assert broker.tls is not None
    assert Path(str(broker.tls.ca)).name == "ca.pem"


def shell(
    script: str, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """A script that has read lib.sh."""
    return subprocess.run(
        ["/bin/sh", "-c", f'set -eu\n. "{DEPLOY}/lib.sh"\n{script}\n'],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_module_of_the_working_directory_is_imported(tmp_path):
    (tmp_path / "msgspec.py").write_text("raise SystemExit('not the library')\n")
    script = f'"{sys.executable}" -c "import msgspec"'
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    assert "not the library" in shell(script, environment, tmp_path).stderr
    script = f'place=$(absolute wheels)\nfrom_root\n{script}\necho "$place"'
    done = shell(script, environment, tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/wheels\n"), done.stderr


@pytest.mark.parametrize("written", ["line1", '"line1"', "'line1'  # the first"])
def test_a_station_s_name_is_read_as_inspectd_reads_it(machine, tmp_path, written):
    machine.tell("runuser", 'shift 3; exec "$@"')
    (tmp_path / "release" / "bin").mkdir(parents=True)
    python = tmp_path / "release" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    path = tmp_path / "default.yaml"
    text = (ROOT / "config" / "inspectd.yaml").read_text()
    path.write_text(re.sub(r"(?m)^station: .*", f"station: {written}", text))
    shutil.copytree(ROOT / "config" / "programs", tmp_path / "programs")
    environment = {"PATH": f"{machine.folder}:/usr/bin:/bin"}
    script = f'settings_say "{tmp_path}/release" "{path}" station.station'
    assert shell(script, environment, tmp_path).stdout == "line1\n"
    path.write_text("station: [\n")
    refused = shell(script, environment, tmp_path)
    assert refused.returncode == 1
    assert str(path) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_second_signal_does_not_end_the_way_back(tmp_path):
    script = f"""
        {function_of_install("finish")}
        go_back() {{ kill -INT $$; kill -TERM $$; kill -HUP $$; echo "is back"; }}
        work={tmp_path}/work switched=yes unfinished=''
        trap finish EXIT
        trap 'exit 130' INT
        kill -INT $$
        echo "goes on"
    """
    done = shell(script, {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert (done.returncode, done.stdout) == (1, "is back\n"), done.stderr


def test_a_file_is_put_in_place_at_one_stroke(tmp_path):
    (tmp_path / "victim").write_text("mine\n")
    (tmp_path / "new").write_text("new\n")
    (tmp_path / "unit").symlink_to(tmp_path / "victim")
    done = shell(f"{function_of_install('put')}\nput new {tmp_path}/unit", {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "unit").read_text() == "new\n"
    assert (tmp_path / "unit").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "victim").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "unit", "victim"]


def test_the_constraints_are_for_numpy_1(tmp_path):
    path = tmp_path / "constraints.txt"
    script = f'set -eu\n. "{DEPLOY}/lib.sh"\nwrite_constraints "{path}"\n'
    subprocess.run(["/bin/sh", "-c", script], check=True)
    pinned = dict(re.findall(r"^([\w-]+)<(\S+)$", path.read_text(), re.MULTILINE))
    assert pinned == {"numpy": "2", "opencv-python-headless": "4.12"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {"numpy": "1.24", "opencv-python-headless": "4.9"}
    assert {f"{name}>={bound}" for name, bound in bounds.items()} <= set(project["dependencies"])


def test_the_copy_that_a_wheel_is_built_from_has_all_it_names(tmp_path):
    script = f'set -eu\n. "{DEPLOY}/lib.sh"\ncopy_source "{ROOT}" "{tmp_path}"\n'
    subprocess.run(["/bin/sh", "-c", script], check=True)
    assert not list(tmp_path.rglob("__pycache__"))
    setuptools = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in setuptools["packages"]:
        assert (tmp_path / package.replace(".", "/") / "__init__.py").is_file()
    for patterns in setuptools["data-files"].values():
        for pattern in patterns:
            assert list(tmp_path.glob(pattern)), pattern


def test_this_python_is_supported():
    (check,) = re.findall(
        r"^supported_python='(.*)'$", (DEPLOY / "lib.sh").read_text(), re.MULTILINE
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
