"""Plain facts of the machine this runs on: temperature, power, disk, memory; none of them judged.

What cannot be had, because the machine or a sandbox does not tell it, is None.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")
VCGENCMD = "vcgencmd"
VCGENCMD_TIMEOUT_S = 1.0

_THROTTLE_BITS = 0xF
_SINCE_BOOT_SHIFT = 16
_PROCESSOR_ZONE = re.compile("cpu|soc|x86_pkg", re.IGNORECASE)
"""The kinds of thermal zone that measure the processor, unlike ``acpitz`` or a radio's."""
_HERTZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Throttle(IntFlag):
    """What a Raspberry Pi's firmware tells of its power and speed.

    The bits of ``vcgencmd get_throttled``; those of the time since the start of the machine lie 16
    places higher. See https://www.raspberrypi.com/documentation/computers/os.html#get_throttled.
    """

    UNDER_VOLTAGE = 1
    FREQUENCY_CAPPED = 2
    THROTTLED = 4
    SOFT_TEMPERATURE_LIMIT = 8

    @property
    def words(self) -> tuple[str, ...]:
        """One for each that holds."""
        return tuple(str(one.name).lower().replace("_", " ") for one in self)


@dataclass(frozen=True, slots=True)
class Throttling:
    """What slows the machine down."""

    now: Throttle
    since_boot: Throttle


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds ``folder``; what only root may still write does not count."""

    folder: Path
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and this process at one moment; each None where it cannot be had.

    Attributes:
        model: as the device tree names the board.
        cpu_temperature_c: of the hottest part of the processor.
        throttling: Raspberry Pi only.
        rss_bytes: this process's memory that is not paged out.
        memory_available_bytes: what programs may still take without paging.
        load_1min: processes that run or wait to, on average over a minute.
        process_uptime_s: since this process was started.
    """

    model: str | None = None
    cpu_temperature_c: float | None = None
    throttling: Throttling | None = None
    disk: Disk | None = None
    rss_bytes: int | None = None
    memory_available_bytes: int | None = None
    load_1min: float | None = None
    process_uptime_s: float | None = None

    @property
    def is_raspberry_pi(self) -> bool:
        return self.model is not None and self.model.startswith("Raspberry Pi")


def read_machine(
    folder: Path, *, sys: Path = SYS, proc: Path = PROC, vcgencmd: str = VCGENCMD
) -> Machine:
    """Everything there is to know, in a few milliseconds; VCGENCMD_TIMEOUT_S more at most.

    Args:
        folder: whose disk is asked for.
        sys, proc: where these two file systems are mounted.
        vcgencmd: the Raspberry Pi's command.
    """
    model = _text(proc / "device-tree" / "model")
    return Machine(
        model=model.rstrip("\0\n") if model else None,
        cpu_temperature_c=max(_temperatures(sys), default=None),
        throttling=_throttling(sys, vcgencmd),
        disk=_disk(folder),
        rss_bytes=_rss(proc),
        memory_available_bytes=_memory_available(proc),
        load_1min=_number(_word(proc / "loadavg", 0)),
        process_uptime_s=_process_uptime(proc),
    )


def decode_throttled(bits: int) -> Throttling:
    """The number that the firmware gives."""
    return Throttling(
        now=Throttle(bits & _THROTTLE_BITS),
        since_boot=Throttle(bits >> _SINCE_BOOT_SHIFT & _THROTTLE_BITS),
    )


def _throttling(sys: Path, vcgencmd: str) -> Throttling | None:
    """Of the command first: the kernel's file is said to go, and warns of it when it is read. The
    command in turn needs ``/dev/vcio``, which a sandbox may hide.
    """
    raw = _run(vcgencmd, "get_throttled")
    for file in (sys / "bus/platform/drivers/raspberrypi-firmware").glob("*/get_throttled"):
        raw = raw or _text(file)
    found = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", (raw or "").strip())
    return decode_throttled(int(found[1], 16)) if found else None


def _run(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or hangs."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=VCGENCMD_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _temperatures(sys: Path) -> Iterator[float]:
    for zone in (sys / "class" / "thermal").glob("thermal_zone*"):
        if _PROCESSOR_ZONE.search(_text(zone / "type") or ""):
            millidegrees = _number(_text(zone / "temp"))
            if millidegrees is not None:
                yield millidegrees / 1000


def _disk(folder: Path) -> Disk | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Disk(folder, free_bytes=usage.free, total_bytes=usage.total)


def _rss(proc: Path) -> int | None:
    pages = _number(_word(proc / "self" / "statm", 1))
    return None if pages is None else int(pages) * _PAGE_BYTES


def _memory_available(proc: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _text(proc / "meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _process_uptime(proc: Path) -> float | None:
    """proc(5): field 22 of ``stat`` is the start in ticks, counted like ``uptime``."""
    # The second field is the name in parentheses, which may hold anything.
    fields = (_text(proc / "self" / "stat") or "").rpartition(")")[2].split()
    started = _number(fields[19]) if len(fields) > 19 else None
    running = _number(_word(proc / "uptime", 0))
    return None if started is None or running is None else running - started / _HERTZ


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _word(file: Path, index: int) -> str | None:
    words = (_text(file) or "").split()
    return words[index] if index < len(words) else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
