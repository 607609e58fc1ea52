"""Machines to install on: Debian with systemd as PID 1, in containers without a network.

Each has a root of its own over a prepared one, which outlives a reboot and is gone at the end.
Everything is mounted in a mount namespace that dies with the container, so that a test that is
killed leaves no mount behind.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from roots import OWN_CGROUPS, LabUnusable, prepared_root, scratch

T = TypeVar("T")

BOOT_S = 120.0
SHUTDOWN_S = 60.0
COMMAND_S = 60.0
POLL_S = 0.1
ASKED_TO_REBOOT = 133
"""Exit code of `systemd-nspawn --keep-unit` when the container wants to be started again."""
CAPABILITIES = "CAP_BPF,CAP_NET_ADMIN"
"""For the address filters of units."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_OF_THE_CHECKOUT = (".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "demo-output")

BOOT = (
    OWN_CGROUPS
    + """\
mkdir -p "/sys/fs/cgroup/$NAME"
echo $$ >"/sys/fs/cgroup/$NAME/cgroup.procs"
cd "$FOLDER"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=upper,workdir=work" root
exec systemd-nspawn --directory="$FOLDER/root" --boot --register=no --keep-unit --link-journal=no \\
    --private-network --resolv-conf=off --capability="$CAPABILITIES" --system-call-filter=bpf \\
    --machine="$NAME" "$@"
"""
)
FORGET = OWN_CGROUPS + 'find "/sys/fs/cgroup/$NAME" -depth -type d -exec rmdir {} +\n'


class Machine:
    """One container; `booted` makes it."""

    def __init__(self, lower: Path, folder: Path, options: Sequence[str]) -> None:
        """Args:
        lower: the prepared root.
        folder: its own, empty.
        options: further ones for systemd-nspawn.
        """
        self.folder = folder
        self.shared = folder / "shared"
        """Appears inside as /srv/shared, whatever becomes of the root."""
        self._options = [*options, f"--bind={self.shared}:/srv/shared"]
        self._lower = lower
        self._name = folder.name
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        for name in ("upper", "work", "root", "shared"):
            (folder / name).mkdir()

    # ---- its life --------------------------------------------------------------------------------

    def boot(self, *options: str) -> None:
        """Start it and wait until systemd is done.

        Args:
            options: further ones for systemd-nspawn, for this time only.
        """
        environment = {
            "NAME": self._name,
            "LOWER": str(self._lower),
            "FOLDER": str(self.folder),
            "CAPABILITIES": CAPABILITIES,
        }
        # The container ends with this process, however that ends.
        tied = ["setpriv", "--pdeathsig", "TERM", "unshare", "-m", "sh", "-c", BOOT, "boot"]
        with (self.folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [*tied, *self._options, *options],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + BOOT_S
        while not (leader := self._find_leader()):
            if self._process.poll() is not None:
                raise LabUnusable(f"the container does not start: {self._console()}")
            assert time.monotonic() < give_up_at, f"no PID 1 inside: {self._console()}"
            time.sleep(POLL_S)
        self._leader = leader
        self.wait_until("systemd has started everything", self._is_up, BOOT_S)

    def _find_leader(self) -> int:
        """The process that is PID 1 inside; 0 as long as there is none."""
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                status = Path(f"/proc/{child}/status").read_text()
                inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if inside.split()[2:] == ["1"] and status.startswith("Name:\tsystemd\n"):
                    return int(child)
        except FileNotFoundError:  # it ended meanwhile
            pass
        return 0

    def _is_up(self) -> bool:
        state = self.result("systemctl is-system-running").stdout.strip()
        assert state != "degraded", f"units failed: {self.run('systemctl --failed --no-legend')}"
        return state == "running"

    def reboot(self, *options: str) -> None:
        """As `systemctl reboot` inside does it; what is on its disk stays."""
        assert self._process is not None
        self.result("systemctl reboot --no-block")
        assert self._process.wait(SHUTDOWN_S) == ASKED_TO_REBOOT, self._console()
        self._process = None
        self.boot(*options)

    def power_off(self) -> None:
        """Shut it down in order, or by force where that fails; twice does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            process.kill()  # which kills PID 1 inside, and with it all
            process.wait(SHUTDOWN_S)
            raise AssertionError(f"it does not shut down: {self._console()}") from None

    def forget(self) -> None:
        """Take away its cgroup."""
        subprocess.run(
            ["unshare", "-m", "sh", "-c", FORGET],
            env=os.environ | {"NAME": self._name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_S,
            check=False,
        )

    # ---- inside ----------------------------------------------------------------------------------

    def result(
        self, command: str, *, timeout_s: float = COMMAND_S, stdin: bytes = b""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell command inside as root; what it printed, and its exit code."""
        enter = ["nsenter", "--target", str(self._leader), "--all", "--root", "--wd"]
        clean = ["env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"]
        done = subprocess.run(
            [*enter, *clean, "sh", "-c", command],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def run(self, command: str, *, timeout_s: float = COMMAND_S) -> str:
        """Likewise, where it must succeed; what it printed on standard output."""
        done = self.result(command, timeout_s=timeout_s)
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout.strip()

    def read(self, path: str) -> str:
        return self.run(f"cat '{path}'")

    def write(self, path: str, text: str) -> None:
        """At one stroke, with the owner and mode of the file that it replaces, if any."""
        done = self.result(
            f"set -e; touch '{path}'; cp -p '{path}' '{path}.new'; cat >'{path}.new'; "
            f"mv '{path}.new' '{path}'",
            stdin=text.encode(),
        )
        assert done.returncode == 0, done.stderr

    def edit(self, path: str, old: str, new: str) -> None:
        text = self.read(path)
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times:\n{text}"
        self.write(path, text.replace(old, new) + "\n")

    def on_disk(self, path: str) -> Path:
        """Where what was written to a path of the root lies outside."""
        return self.folder / "upper" / path.lstrip("/")

    def copy_in(self, source: Path, destination: str) -> None:
        """A folder with what is in it, or a file; without what is made anew everywhere."""
        exclude = [f"--exclude={name}" for name in NOT_OF_THE_CHECKOUT]
        folder, names = (source, ["."]) if source.is_dir() else (source.parent, [source.name])
        archive = subprocess.run(
            ["tar", "-c", *exclude, "--owner=root", "--group=root", "-C", str(folder), *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=True,
        ).stdout
        done = self.result(f"mkdir -p '{destination}' && tar -x -C '{destination}'", stdin=archive)
        assert done.returncode == 0, done.stderr

    def wait_until(self, what: str, condition: Callable[[], T], timeout_s: float = 30.0) -> T:
        """The first true thing that the condition gives; a failure tells what the journal says."""
        give_up_at = time.monotonic() + timeout_s
        while not (answer := condition()):
            if time.monotonic() > give_up_at:
                raise AssertionError(
                    f"not within {timeout_s:g} s: {what}\n{self.journal(lines=40)}"
                )
            time.sleep(POLL_S)
        return answer

    # ---- systemd ---------------------------------------------------------------------------------

    def journal(self, *options: str, lines: int = 1000) -> str:
        words = " ".join(options)
        return self.run(
            f"journalctl --no-pager --quiet --output=short-monotonic -n {lines} {words}"
        )

    def journal_records(self, *options: str) -> list[dict[str, Any]]:
        """Records of the journal with all their fields."""
        printed = self.run(f"journalctl --no-pager --quiet --output=json {' '.join(options)}")
        return [json.loads(line) for line in printed.splitlines()]

    def property_of(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value '{unit}'")

    def _console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")[-2000:]


@contextmanager
def booted(release: str, options: Sequence[str] = ()) -> Iterator[Machine]:
    """A machine with a fresh Debian of that release; gone at the end.

    Raises:
        LabUnusable: it cannot be had on this machine.
    """
    with booted_from(prepared_root(release), options) as machine:
        yield machine


@contextmanager
def booted_from(lower: Path, options: Sequence[str] = ()) -> Iterator[Machine]:
    """A machine over a root of `roots`; gone at the end."""
    with scratch(f"inspectd-{lower.name}") as folder:
        machine = Machine(lower, folder, options)
        try:
            machine.boot()
            yield machine
        finally:
            try:
                machine.power_off()
            finally:
                machine.forget()
