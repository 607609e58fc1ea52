"""The scripts that install inspectd: what they refuse, say and put into the wheel. No root needed.

Each refusal is brought about by a command of the system that tells another tale; on whatever
machine the tests run, nothing after it is reached.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from inspectd import config

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SCRIPTS = ["install.sh", "uninstall.sh", "wheels.sh"]
LIBRARY = (DEPLOY / "install.sh").read_text()
SAYS = "step changed quietly"


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
        (["--finish", "--upgrade"], "--finish stands alone"),
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


def function_of_install(name: str, script: str = LIBRARY) -> str:
    pattern = rf"^{name}\(\) \{{(?:[^\n]*\}}|\n.*?^\}})$"
    (function,) = re.findall(pattern, script, re.DOTALL | re.MULTILINE)
    return str(function)


def functions_of_install(names: str) -> str:
    """Several of them, and what they remember of a run."""
    remembered = "something_changed='' packages='' restart='' wheels='' mosquitto='' work=$PWD"
    return "\n".join([remembered, *map(function_of_install, names.split())])


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
        work={tmp_path}/work switched=yes unfinished='' finish_only=''
        trap finish EXIT
        trap 'exit 130' INT
        kill -INT $$
        echo "goes on"
    """
    done = shell(script, {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert (done.returncode, done.stdout) == (1, "is back\n"), done.stderr


TRAPS = "\n".join(re.findall(r"^trap .*$", LIBRARY, re.MULTILINE))


@pytest.mark.parametrize("kills", [True, False], ids=["by a signal", "by an error"])
def test_goes_back_though_nobody_reads_any_more_what_it_says(tmp_path, kills):
    script = f"""
        {functions_of_install("step changed finish")}
        go_back() {{ say "going back"; step "unit"; echo >back; }}
        work={tmp_path}/work switched=yes unfinished='' finish_only=''
        {TRAPS}
        cat; changed "restarting inspectd@default.service"; echo >went-on
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'set -eu\n. "{DEPLOY}/lib.sh"\n{script}\n'],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        restore_signals=kills,  # Python itself ignores SIGPIPE, and a shell cannot change that
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.close()  # what it waits for
    assert process.wait(60) == 1
    assert (tmp_path / "back").exists()
    assert not (tmp_path / "went-on").exists()


def test_ctrl_c_ends_the_wait_for_a_service(machine, tmp_path):
    """Control in a terminal: it goes to the group in the foreground."""
    machine.tell("systemctl", "case $1 in restart) echo >began; sleep 60 ;; esac")
    script = f"""
        set -eu
        cd {tmp_path}
        PATH={machine.folder}:$PATH START_S=300
        {functions_of_install("step bring_up")}
        trap 'exit 130' INT
        bring_up inspectd@default.service
    """
    terminal, inner = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "/bin/sh", "-c", script], stdin=inner, stdout=inner, stderr=inner
    ) as process:
        os.close(inner)
        try:
            said = b""
            while b"5 minutes at most" not in said:
                said += os.read(terminal, 1024)
            give_up_at = time.monotonic() + 30
            while not (tmp_path / "began").exists():
                assert time.monotonic() < give_up_at, said
                time.sleep(0.05)
            os.write(terminal, b"\x03")
            assert process.wait(30) == 130
        finally:
            process.kill()
            os.close(terminal)


# ---- what is the user's --------------------------------------------------------------------------


def release_with_units(folder: Path, *names: str) -> Path:
    (folder / "share/inspectd/systemd").mkdir(parents=True)
    for name in names:
        (folder / "share/inspectd/systemd" / name).write_text("[Unit]\n")
    return folder


def test_only_units_of_the_other_release_go(machine, tmp_path):
    machine.tell("systemctl", "exit 0")
    new = release_with_units(tmp_path / "releases/new", "inspectd@.service", "inspectd-new.service")
    release_with_units(tmp_path / "releases/old", "inspectd@.service", "inspectd-old.service")
    units = tmp_path / "units"
    (units / "multi-user.target.wants").mkdir(parents=True)
    own = ["inspectd-backup.service", "inspectd@default.service"]
    for name in [*own, "inspectd-old.service"]:
        (units / name).write_text("[Service]\n")
    (units / "multi-user.target.wants/inspectd-old.service").symlink_to(
        units / "inspectd-old.service"
    )
    script = functions_of_install(f"{SAYS} put enable_unit install_units")
    environment = {"PATH": f"{machine.folder}:/usr/bin:/bin"}
    script += f"\nOPT={tmp_path} UNITS={units}\ninstall_units {new}\n"
    done = shell(script, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unit inspectd-old.service is gone" in done.stdout
    left = sorted(path.name for path in units.iterdir() if path.is_file())
    assert left == sorted([*own, "inspectd@.service", "inspectd-new.service"])
    assert not list((units / "multi-user.target.wants").iterdir())
    again = shell(script, environment, tmp_path)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr


def test_a_foreign_command_is_refused(tmp_path):
    command = tmp_path / "inspectd"
    script = f"OPT=/opt/inspectd COMMAND={command}\n"
    script += function_of_install("refuse_foreign_command") + "\nrefuse_foreign_command"
    assert shell(script, {}, tmp_path).returncode == 0
    command.symlink_to("/opt/inspectd/current/bin/inspectd")  # also where it leads nowhere
    assert shell(script, {}, tmp_path).returncode == 0
    command.unlink()
    command.symlink_to("/srv/inspectd")
    done = shell(script, {}, tmp_path)
    assert done.returncode == 1
    assert f"{command} is there already, and was not made by this script" in done.stderr


@pytest.mark.parametrize(("has_one", "words"), [(True, "yours is kept"), (False, "a new example")])
def test_a_changed_example_is_laid_beside(tmp_path, has_one, words):
    for name in ("old", "new", "etc"):
        (tmp_path / name / "share/inspectd/config/programs").mkdir(parents=True)
    (tmp_path / "etc/programs").mkdir()
    (tmp_path / "new/share/inspectd/config/programs/block.yaml").write_text("description: new\n")
    if has_one:
        (tmp_path / "etc/programs/block.yaml").write_text("description: mine\n")
    script = functions_of_install("step changed put show_new_examples")
    script = script.replace('"$2/$examples/inspectd.yaml"', "")
    done = shell(f"ETC={tmp_path}/etc\n{script}\nshow_new_examples old new", {}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert (tmp_path / "etc/programs/block.yaml.new").exists()
    assert (tmp_path / "etc/programs/block.yaml").exists() == has_one


def test_a_station_s_name_that_comes_too_late_is_told(tmp_path):
    (tmp_path / "default.yaml").write_text("station: line1\n")
    script = f"""
        {functions_of_install("name_station")}
        settings_say() {{ echo line1; }}
        ETC={tmp_path} release='' instance=default
        station=line1; name_station
        station=line2; name_station
    """
    done = shell(script, {}, tmp_path)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "--station line2 changes nothing" in line
    assert line.endswith("its station is line1")


@pytest.mark.parametrize(
    ("entry", "goes"),
    [
        ("inspectd:x:997:997::/var/lib/inspectd:/usr/sbin/nologin", True),
        ("inspectd:x:1000:1000:,,,:/home/inspectd:/bin/bash", False),
        ("inspectd:x:997:997::/home/inspectd:/bin/bash", False),
        ("inspectd:x:1000:1000::/var/lib/inspectd:/bin/bash", False),
    ],
)
def test_only_the_user_that_was_made_is_removed(machine, tmp_path, entry, goes):
    machine.tell("getent", f"echo '{entry}'")
    machine.tell("userdel", f"touch {tmp_path}/gone")
    removal = (DEPLOY / "uninstall.sh").read_text()
    script = "\n".join(
        function_of_install(name, removal) for name in ("is_own_user", "remove_user")
    )
    done = shell(f"{script}\nremove_user", {"PATH": f"{machine.folder}:/usr/bin:/bin"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gone").exists() == goes
    assert ("is kept" in done.stdout) != goes


# ---- what is fetched -----------------------------------------------------------------------------


def packages(machine: Machine, folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Debian's packages on a Raspberry Pi that lacks only one of its optional ones."""
    machine.tell("dpkg-query", 'case $* in *python3-lgpio*) ;; *) echo "ii " ;; esac')
    machine.tell("apt-cache", "echo '  Candidate: 2.0'")
    names = (
        f"{SAYS} unchanged is_installed candidate is_worth_it has_package_lists missing_optional "
        "needs_lists install_packages install_package"
    )
    script = (
        f"{functions_of_install(names)}\nrelease={folder}/release\nhas_package_lists() {{ :; }}\n"
        f'{script}\ninstall_packages\necho "changed: $something_changed"\n'
    )
    return shell(script, {"PATH": f"{machine.folder}:/usr/bin:/bin"}, folder)


def test_lists_are_brought_up_to_date_before_an_optional_package(machine, tmp_path):
    done = packages(machine, tmp_path, 'apt_get() { echo "$*" >>calls; }')
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("changed: yes\n")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["update", "install --no-install-recommends -y python3-lgpio"]


def test_a_package_that_cannot_be_had_is_no_change(machine, tmp_path):
    done = packages(machine, tmp_path, "wheels=/srv\napt_get() { return 1; }")
    assert done.returncode == 0, done.stderr
    assert "going on without python3-lgpio" in done.stdout
    assert done.stdout.endswith("changed: \n")


def test_no_index_is_asked_for_a_release_that_is_there(tmp_path):
    script = f"""
        {functions_of_install("refuse_without_index")}
        python=true release={tmp_path}
        make_tools() {{ fail "an index is asked"; }}
        refuse_without_index
    """
    assert "an index is asked" in shell(script, {"PATH": "/usr/bin:/bin"}, tmp_path).stderr
    (tmp_path / "complete").touch()
    assert shell(script, {"PATH": "/usr/bin:/bin"}, tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("root", "container", "warned"),
    [("overlay", 1, True), ("overlay", 0, False), ("ext4", 1, False)],
)
def test_an_overlay_that_forgets_is_told(machine, tmp_path, root, container, warned):
    machine.tell("findmnt", f"echo {root}")
    machine.tell("systemd-detect-virt", f"exit {container}")
    script = f"disk=/opt\n{function_of_install('warn_of_overlay')}\nwarn_of_overlay"
    done = shell(script, {"PATH": f"{machine.folder}:/usr/bin:/bin"}, tmp_path)
    assert done.returncode == 0
    assert ("is gone at the next start" in done.stderr) == warned


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
