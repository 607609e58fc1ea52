"""Debian for 64-bit Arm on a machine of another kind: QEMU runs its programs, one by one.

A root is unpacked, not installed: nothing of it runs while it is made. Each command gets namespaces
of its own, without a network. Its mounts are in them, and so is what tells the kernel that programs
for Arm are QEMU's (binfmt_misc), where the machine itself does not know it: all of that ends with
the command, also when the tests are killed.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roots import (
    PYTHON_OF,
    LabUnusable,
    bundle,
    debian_mirror,
    dependency_wheels,
    kept,
    output,
    provide,
    scratch,
)

MACHINE = "aarch64"
RELEASE = "trixie"
CPU = "cortex-a72"
"""Of the Raspberry Pi 4; QEMU takes 14 times as long over the one that it shows by itself."""
PACKAGES = ("base-files", "ca-certificates", "libstdc++6", "python3", "python3-venv")
TOOLS = {"mmdebstrap": "mmdebstrap"}
EMULATOR = {"qemu-aarch64-static": "qemu-user-static"}
FORMAT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
"""How to tell that a program is for this processor; of Debian's qemu-user-static."""
KNOWN = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
"""Exists where the machine itself knows that format."""
PYTEST = "pytest>=8.0"
BUNDLE, PYTEST_WHEELS = "/srv/bundle", "/srv/pytest"
"""What is there to install, inside: what `deploy/wheels.sh` makes, and pytest."""
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "NUMBA_CACHE_DIR": "/var/cache/inspectd/kernels",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "QEMU_CPU": CPU,
}
COMMAND_S = 1200.0

FIGURES: list[str] = []
"""How long what took; printed at the end of the run."""

ENTER = """\
set -e
mount --make-rprivate /
cd "$FOLDER"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=upper,workdir=work" root
mount -t proc proc root/proc
mount --rbind /dev root/dev
"""
NATIVELY = 'exec chroot root "$@"\n'
EMULATED = """\
exec unshare --user --map-root-user --mount sh -c '
    set -e
    mount -t binfmt_misc binfmt_misc binfmt
    cat "$FORMAT" >binfmt/register
    exec chroot root "$@"' chroot "$@"
"""
"""Since Linux 6.7 each user namespace may have formats of its own."""


class Arm:
    """One root to install in; `bare_arm` makes it."""

    def __init__(self, lower: Path, folder: Path, chroot: str) -> None:
        """Args:
        lower: the prepared root.
        folder: its own, empty.
        chroot: the lines of shell that run a command in it.
        """
        self._script = ENTER + chroot
        self._folder = folder
        self._environment = ENVIRONMENT | {
            "FOLDER": str(folder),
            "LOWER": str(lower),
            "FORMAT": str(FORMAT),
        }
        for name in ("upper", "work", "root", "binfmt"):
            (folder / name).mkdir()

    def on_disk(self, path: str) -> Path:
        """Where a path of the root lies outside; to be written to while no command runs."""
        return self._folder / "upper" / path.lstrip("/")

    def result(self, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run a command inside as root; what it printed, and its exit code."""
        own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        return subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", *own, "sh", "-c", self._script, "enter", *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            text=True,
            check=False,
        )

    def run(self, *command: str | Path) -> str:
        """Likewise, where it must succeed; what it printed on standard output."""
        done = self.result(*command)
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout.strip()


@contextmanager
def measured(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    FIGURES.append(f"{what}: {time.monotonic() - began:.0f} s")


@contextmanager
def bare_arm() -> Iterator[Arm]:
    """A root with Python 3.13, and wheels to install; gone at the end.

    Raises:
        LabUnusable: it cannot be had on this machine.
    """
    if os.geteuid() != 0:
        raise LabUnusable("unpacking and entering a root needs root")
    provide(TOOLS)
    chroot = _chroot()
    recipe = f"{RELEASE} {' '.join(PACKAGES)}\n"
    lower = kept(f"{RELEASE}-{MACHINE}", recipe, _unpack)
    wheels = dependency_wheels(MACHINE, [RELEASE])
    pytest = kept("wheels-pytest", f"{PYTEST} {PYTHON_OF[RELEASE]}\n", _fetch_pytest)
    with scratch(f"inspectd-{MACHINE}") as folder:
        arm = Arm(lower, folder, chroot)
        done = arm.result("/usr/bin/python3", "-c", "")
        if done.returncode != 0:
            raise LabUnusable(f"programs for {MACHINE} do not run here: {done.stderr.strip()}")
        bundle(arm.on_disk(BUNDLE), wheels=wheels)
        shutil.copytree(pytest, arm.on_disk(PYTEST_WHEELS))
        yield arm


def _chroot() -> str:
    """The lines of shell that run a command in the folder `root`."""
    if platform.machine() == MACHINE:
        return NATIVELY
    provide(EMULATOR)
    if KNOWN.is_file() and re.search(r"^flags: .*F", KNOWN.read_text(), re.MULTILINE):
        return NATIVELY  # it keeps QEMU open, which is not in the root
    if not FORMAT.is_file():
        raise LabUnusable(f"there is no {FORMAT}: nothing tells programs for {MACHINE}")
    return EMULATED


def _unpack(root: Path) -> None:
    options = ["--quiet", "--mode=root", "--arch=arm64", "--variant=extract"]
    include = f"--include={','.join(PACKAGES)}"
    output(["mmdebstrap", *options, include, RELEASE, str(root), debian_mirror()])
    # As the script of ca-certificates would, which does not run here; pip asks for it, offline too.
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    together = root / "etc/ssl/certs/ca-certificates.crt"
    together.write_text("".join(file.read_text() for file in certificates))


def _fetch_pytest(folder: Path) -> None:
    python = ["--only-binary=:all:", "--platform=any", f"--python-version={PYTHON_OF[RELEASE]}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    output([*pip, *python, "--dest", str(folder), PYTEST])
