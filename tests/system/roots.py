"""Root file systems of Debian releases, and the wheels to install in them: made once, then kept.

They lie in the folder that INSPECTD_LAB names, else in the user's cache. A root holds what a fresh
Debian or Raspberry Pi OS has and inspectd builds on, and the packages of the broker downloaded but
not installed: the containers have no network.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
RELEASES = ("bookworm", "trixie")
PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}
PRESENT = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "ca-certificates",
    "openssl",
    "procps",
)
DOWNLOADED = ("mosquitto", "mosquitto-clients")
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
"""Programs, and the Debian packages that they are in."""
BUILD_S = 1200.0
MIRROR_VARIABLE = "INSPECTD_DEBIAN_MIRROR"


class LabUnusable(Exception):
    """What this machine lacks, for a person: the reason why a test is skipped."""


def lab_folder() -> Path:
    """Where roots, wheels and running machines are kept; made where it is missing."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(os.environ.get("INSPECTD_LAB") or Path(cache) / "inspectd-lab")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def require_tools() -> None:
    """Raises LabUnusable where containers cannot be booted; installs Debian's packages for it."""
    if os.geteuid() != 0:
        raise LabUnusable("booting containers needs root")
    with alone(lab_folder() / "tools"):  # two processes must not both call apt
        provide(TOOLS)
    output(["unshare", "-m", "sh", "-c", OWN_CGROUPS])


def provide(tools: Mapping[str, str]) -> None:
    """Install what is missing, where this machine has apt.

    Args:
        tools: programs, and the Debian packages that they are in.

    Raises:
        LabUnusable: one is not to be had.
    """
    missing = [package for program, package in tools.items() if shutil.which(program) is None]
    if missing and shutil.which("apt-get") is not None:
        sys.stderr.write(f"inspectd: installing the Debian packages {' '.join(missing)}\n")
        for words in (["update"], ["install", "--no-install-recommends", "-y", *missing]):
            output(["apt-get", "-qq", *words], {"DEBIAN_FRONTEND": "noninteractive"})
    for program, package in tools.items():
        if shutil.which(program) is None:
            raise LabUnusable(f"there is no {program} (Debian: apt install {package})")


OWN_CGROUPS = """\
set -e
mount --make-rprivate /
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
"""
"""In a mount namespace of its own: systemd inside needs the unified hierarchy at this place."""


def prepared_root(release: str) -> Path:
    """The root of a release, never to be written to; built where it is missing.

    Raises:
        LabUnusable: it cannot be built here.
    """
    recipe = f"{' '.join(PRESENT)}; {' '.join(DOWNLOADED)}\n"
    return kept(release, recipe, lambda root: _build_root(release, root))


def kept(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name, never to be written to; made anew where the recipe has changed.

    Args:
        name: of the folder.
        recipe: what it is made of.
        make: makes it, where it is told to.
    """
    folder = lab_folder() / name
    stamp = folder.with_suffix(".recipe")
    with alone(folder):
        if folder.is_dir() and stamp.is_file() and stamp.read_text() == recipe:
            return folder
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write(f"inspectd: making {folder}, which may take a few minutes\n")
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        make(part)
        part.rename(folder)
        stamp.write_text(recipe)
    return folder


def _build_root(release: str, root: Path) -> None:
    include = f"--include={','.join(PRESENT)}"
    output(["debootstrap", "--variant=minbase", include, release, str(root), debian_mirror()])
    apt = ["chroot", str(root), "apt-get", "-qq"]
    output([*apt, "update"])
    download = ["--download-only", "--no-install-recommends", "-y"]
    output([*apt, "install", *download, *DOWNLOADED], {"DEBIAN_FRONTEND": "noninteractive"})
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")  # each machine makes one of its own
    (root / "etc/hostname").write_text("station\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 station\n::1 localhost\n")


STANDS_FOR_PICAMERA2 = {
    "DEBIAN/control": """\
Package: python3-picamera2
Version: 0.3.12
Architecture: all
Depends: python3-numexpr
Maintainer: nobody <nobody@localhost>
Description: stands where the Raspberry Pi's own would be
""",
    "usr/lib/python3/dist-packages/picamera2.py": "",
    "usr/lib/python3/dist-packages/simplejpeg.py": """\
import numexpr


def encode_jpeg(picture):
    return numexpr.evaluate("picture + 1").tobytes()
""",
}
"""A package that Debian lacks. Numexpr it has: compiled, like simplejpeg, against its own numpy."""


def root_with_numpy_1() -> Path:
    """Bookworm with something in Picamera2's place, never to be written to.

    Raises:
        LabUnusable: it cannot be built here.
    """
    below = prepared_root("bookworm")
    recipe = f"{below.with_suffix('.recipe').read_text()}{STANDS_FOR_PICAMERA2}\n"
    return kept("bookworm-numpy-1", recipe, lambda root: _add_picamera2(below, root))


def _add_picamera2(below: Path, root: Path) -> None:
    output(["cp", "-a", str(below), str(root)])
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    for name, text in STANDS_FOR_PICAMERA2.items():
        file = root / "srv/picamera2" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    output(["chroot", str(root), "dpkg-deb", "--build", "/srv/picamera2", "/srv/picamera2.deb"])
    install = ["install", "--no-install-recommends", "-y", "/srv/picamera2.deb"]
    output(["chroot", str(root), "apt-get", "-qq", *install], {"DEBIAN_FRONTEND": "noninteractive"})
    (root / "etc/resolv.conf").unlink()


def debian_mirror() -> str:
    """The one that this machine's own apt uses.

    Raises:
        LabUnusable: it has none.
    """
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    lines: list[str] = []
    if shutil.which("apt-get") is not None:
        form = "$(REPO_URI) $(LABEL) $(COMPONENT)"
        lines = output(["apt-get", "indextargets", "--format", form]).splitlines()
    for line in lines:
        uri, _, rest = line.partition(" ")
        if rest == "Debian main":
            return uri
    raise LabUnusable(f"apt knows no mirror of Debian here; name one in {MIRROR_VARIABLE}")


def dependency_wheels(
    machine: str = platform.machine(), releases: Sequence[str] = RELEASES
) -> Path:
    """A folder with a wheel of everything that inspectd needs, for these releases' Python.

    Raises:
        LabUnusable: they cannot be fetched.
    """
    script = CHECKOUT / "deploy/wheels.sh"
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    recipe = script.read_text() + " ".join([*project["dependencies"], *releases])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = lab_folder() / f"wheels-{machine}-{digest}"
    with alone(folder):
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            pythons = [word for name in releases for word in ("--python", PYTHON_OF[name])]
            output(["sh", str(script), str(part), "--machine", machine, *pythons])
            part.rename(folder)
    return folder


def bundle(
    folder: Path, version: str | None = None, at_start: str = "", wheels: Path | None = None
) -> Path:
    """What `deploy/wheels.sh` makes of the checkout as it is, or of one that differs a little.

    Args:
        folder: to be made, beside the cached wheels.
        version: in place of its own.
        at_start: a line of Python that `inspectd run` begins with.
        wheels: of what it needs, if not for this machine; from `dependency_wheels`.
    """
    sources = folder / "sources"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "tests")
    shutil.copytree(CHECKOUT, sources, ignore=ignore)
    if version is not None:
        package = sources / "inspectd/__init__.py"
        _replace(package, r'__version__ = ".*"', f'__version__ = "{version}"')
    if at_start:
        command = sources / "inspectd/commands/run.py"
        _replace(command, r"( +)signal\.signal\(", rf"\1{at_start}\n\1signal.signal(")
    build = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", *build, "--wheel-dir", str(folder), str(sources)]
    output(pip, otherwise=AssertionError)
    (sources / "deploy").rename(folder / "deploy")
    shutil.rmtree(sources)
    for wheel in (wheels or dependency_wheels()).glob("*.whl"):
        if not wheel.name.startswith("inspectd-"):
            (folder / wheel.name).hardlink_to(wheel)
    return folder


def _replace(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), count=1)
    assert count == 1, f"{file} has no {pattern}"
    file.write_text(text)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder beside the roots, gone at the end; those that killed runs have left go, too."""
    runs = lab_folder() / "runs"
    runs.mkdir(exist_ok=True)
    with alone(runs):
        for left in runs.iterdir():
            with (left / "lock").open("w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
        folder = runs / f"{name}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        held = (folder / "lock").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    with held:
        try:
            yield folder
        finally:
            with alone(runs):  # else another takes it for one that was left
                shutil.rmtree(folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two runs at once must not build the same."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output(
    command: list[str],
    environment: dict[str, str] | None = None,
    otherwise: type[Exception] = LabUnusable,
) -> str:
    """What a command prints; where it fails, `otherwise` with what it said last."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_S,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = " / ".join(error.output.strip().splitlines()[-3:])
        raise otherwise(f"{' '.join(command[:4])}: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise otherwise(f"{' '.join(command[:4])} took more than {BUILD_S:g} s") from error
    return done.stdout
