"""The machine: its clock, its disk with the journal on it, its temperature, its pins."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from inspectd.clock import clock_synchronised
from inspectd.commands.checks import Examination, Finding, NotChecked, error, ok, warning
from inspectd.gpio import GpioEdge, GpioOutputs
from inspectd.journal.outside import examine_journal
from inspectd.machine import Machine, Throttle, read_machine
from inspectd.settings import GpioTrigger, output_pins

FIRST_YEAR = 2025
"""Nobody runs this version earlier; a Raspberry Pi without a network starts long before."""
LAST_YEAR = 2100
LOW_SHARE, LOW_BYTES = 0.10, 1e9
FULL_SHARE, FULL_BYTES = 0.02, 100e6
JOURNAL_CHECK_S = 5.0
HOT_C, TOO_HOT_C = 70.0, 80.0
_PROBE_BYTES = 65536
_FORGETFUL = {
    "tmpfs": "in the main memory",
    "ramfs": "in the main memory",
    "overlay": "on an overlay",
}
"""File systems that may begin anew at each start, and in words."""


def check_clock(_known: Examination) -> Iterator[Finding]:
    """Whether instants in verdicts can be believed, and certificates be judged."""
    yield clock(datetime.now(UTC), synchronised=clock_synchronised())


def clock(now: datetime, *, synchronised: bool) -> Finding:
    """What the clock says, in UTC, and the kernel says of it."""
    told = f"it says {now:%Y-%m-%d %H:%M:%S} UTC"
    if not FIRST_YEAR <= now.year <= LAST_YEAR:
        return error(
            "clock",
            f"{told}: certificates seem invalid, and verdicts bear a wrong time",
            "`sudo timedatectl set-ntp true` and a time server that the station can reach, or a "
            "clock module with a battery",
        )
    if not synchronised:
        return warning(
            "clock",
            f"not synchronised; {told}",
            "`sudo timedatectl set-ntp true`; without internet, the plant's time server as NTP= "
            "in /etc/systemd/timesyncd.conf; `timedatectl timesync-status` tells more",
        )
    return ok("clock", f"synchronised; {told}")


def check_disk(known: Examination) -> Iterator[Finding]:
    """Room for the station's folder, the right to write there, and whether it outlives a start."""
    directory = known.settings.directory
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not there.is_dir():
        yield error("disk", f"{there} is no folder", "change storage.directory, or move it away")
        return
    usage = shutil.disk_usage(there)
    yield room(usage.free, usage.total, directory)
    yield from _rights(there, directory)
    kind = _file_system(there)
    if kind in _FORGETFUL:
        yield warning(
            "disk",
            f"{directory} lies {_FORGETFUL[kind]} ({kind}): journal and references are wiped when "
            "the machine starts anew",
            "set storage.directory to a folder on a disk, or mount one there",
        )


def room(free: int, total: int, directory: Path) -> Finding:
    """What so many bytes on the disk of the station's folder mean."""
    share = free / total if total else 0.0
    told = f"{_in_words(free)} free ({share:.0%}) for {directory}"
    fix = "make room: on a full disk no verdict can be committed, and no part be judged"
    if share < FULL_SHARE or free < FULL_BYTES:
        return error("disk", told, fix)
    if share < LOW_SHARE or free < LOW_BYTES:
        return warning("disk", told, fix)
    return ok("disk", told)


def _rights(there: Path, directory: Path) -> Iterator[Finding]:
    """Tried, not asked: a read-only file system grants rights that it does not keep."""
    me, owner = _user(os.geteuid()), _user(there.stat().st_uid)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0" * _PROBE_BYTES)
    except OSError as refused:
        if refused.errno == errno.EROFS:
            fix = "mount it writable; a system that found damage on the disk makes it read-only"
        elif refused.errno in {errno.EACCES, errno.EPERM}:
            fix = (
                f"it belongs to {owner}: ask as the user that the service runs as, or give the "
                "folder to that user, or change storage.directory"
            )
        else:
            fix = "make room, or test the disk"
        yield error("disk", f"the user {me} cannot write to {there}: {refused.strerror}", fix)
        return
    if there == directory and owner != me:
        yield warning(
            "disk",
            f"{directory} belongs to {owner}, and the user {me} asks: rights and kernels may look "
            "other than to the service",
            f"sudo -u {owner} inspectd doctor ...",
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _file_system(folder: Path) -> str:
    """Its type, such as ext4; empty where the system does not tell."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return ""


def check_journal(known: Examination) -> Iterator[Finding]:
    """Whether the verdicts so far can be read, and how many wait for the broker."""
    path = known.settings.directory / "journal.db"
    if not path.exists():
        yield ok("journal", f"none yet; the service begins {path}")
        return
    found = examine_journal(path, JOURNAL_CHECK_S)
    told = f"{found.last_seq} verdicts, {found.unsent} of them not yet taken by the broker"
    sound = "sound" if found.searched else f"no damage found in {JOURNAL_CHECK_S:g} s"
    yield ok("journal", f"{told}; {sound} ({path})")


def check_heat(_known: Examination) -> Iterator[Finding]:
    """The processor's temperature, and whether it runs slower for heat or want of power."""
    machine = read_machine(Path("/"))
    yield temperature(machine.cpu_temperature_c)
    yield power(machine)


def temperature(celsius: float | None) -> Finding:
    """What the processor's temperature means."""
    if celsius is None:
        return ok("temperature", "this machine does not tell it")
    fix = "a heat sink, a fan or a cooler place; a Raspberry Pi runs slower from 80 °C on"
    told = f"{celsius:.0f} °C"
    if celsius >= TOO_HOT_C:
        return error("temperature", told, fix)
    if celsius >= HOT_C:
        return warning("temperature", told, fix)
    return ok("temperature", told)


def power(machine: Machine) -> Finding:
    """What the firmware of a Raspberry Pi says of its power and speed."""
    if not machine.is_raspberry_pi:
        return ok("power", "no Raspberry Pi")
    told = machine.throttling
    if told is None:
        return warning(
            "power",
            "the firmware does not tell whether it throttles the processor",
            "`vcgencmd get_throttled` must work for this user: sudo usermod -aG video USER",
        )
    before = [word for word in told.since_boot.words if word not in told.now.words]
    words = [*told.now.words, *(f"{word} since the start" for word in before)]
    weak = Throttle.UNDER_VOLTAGE in told.now | told.since_boot
    fix = (
        "the power supply made for this model, on a short cable: pictures may fail without it"
        if weak
        else "a heat sink, a fan or a cooler place"
    )
    if told.now:
        return error("power", ", ".join(words), fix)
    if told.since_boot:
        return warning("power", ", ".join(words), fix)
    return ok("power", "neither throttled nor short of power since the start")


def check_pins(known: Examination) -> Iterator[Finding]:
    """Whether the pins of trigger and outputs can be had."""
    station = known.settings.station
    pins = dict(output_pins(station.outputs))
    if isinstance(station.trigger, GpioTrigger):
        pins = {"trigger": station.trigger.pin, **pins}
    if not pins:
        yield ok("pins", "none are used")
        return
    told = ", ".join(f"{name} {pin}" for name, pin in pins.items())
    if known.hidden:
        raise NotChecked(f"{known.hidden}, and may have the pins")
    if known.service is not None:
        yield ok("pins", f"the service has them: {told}")
        return
    if isinstance(station.trigger, GpioTrigger):
        edge = GpioEdge(station.trigger, lambda _at_ns: None)
        edge.start()
        edge.stop()
    outputs = GpioOutputs(station.outputs)
    outputs.open()
    outputs.close()
    yield ok("pins", f"can be had: {told}")
