"""The facts of the machine: of this one, and of folders that look like a Raspberry Pi."""

import mmap
import os
import resource
import shutil
from pathlib import Path

import pytest
from broker import eventually

from inspectd.machine import Machine, Throttle, Throttling, decode_throttled, read_machine

NONE = Throttle(0)
MODEL = "Raspberry Pi 4 Model B Rev 1.5"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


class Pi:
    """Folders as they look on a Raspberry Pi, as far as they are read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sys, self.proc = folder / "sys", folder / "proc"
        self.vcgencmd = str(folder / "vcgencmd")
        zone = self.sys / "class/thermal/thermal_zone0"
        write(zone / "type", "cpu-thermal\n")
        write(zone / "temp", "51121\n")
        write(self.proc / "device-tree/model", f"{MODEL}\0")
        write(self.proc / "loadavg", "0.75 0.38 0.24 1/216 3056\n")
        write(
            self.proc / "meminfo",
            "MemTotal:        3884360 kB\nMemFree:  201 kB\nMemAvailable:    3212340 kB\n",
        )
        write(self.proc / "uptime", "5000.25 19000.00\n")
        write(self.proc / "self/statm", "61234 25000 9000 800 0 41000 0\n")
        started = 2000 * os.sysconf("SC_CLK_TCK")
        after_name = f"S 1 714 714 0 -1 4194560 {' '.join(['7'] * 12)} {started} 250814464 25000\n"
        write(self.proc / "self/stat", f"714 (in) spec) td) {after_name}")

    def firmware_file(self, text: str) -> None:
        """As the kernel shows it: the driver's folder points to the device."""
        device = self.sys / "devices/platform/soc/soc:firmware"
        write(device / "get_throttled", text)
        driver = self.sys / "bus/platform/drivers/raspberrypi-firmware"
        driver.mkdir(parents=True)
        (driver / "soc:firmware").symlink_to(device)

    def command(self, script: str) -> None:
        Path(self.vcgencmd).write_text(f"#!/bin/sh\n{script}\n")
        Path(self.vcgencmd).chmod(0o755)

    def read(self) -> Machine:
        return read_machine(self.folder, sys=self.sys, proc=self.proc, vcgencmd=self.vcgencmd)


@pytest.fixture
def pi(tmp_path: Path) -> Pi:
    return Pi(tmp_path)


# ---- this machine ------------------------------------------------------------------------------


def test_this_machine(tmp_path):
    machine = read_machine(tmp_path)
    assert machine.disk is not None
    assert machine.disk.folder == tmp_path
    assert machine.disk.total_bytes == shutil.disk_usage(tmp_path).total
    assert 0 < machine.disk.free_bytes <= machine.disk.total_bytes
    # A Python with pytest loaded takes more than 10 MB; the peak is what the kernel says itself.
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert machine.rss_bytes is not None
    assert 10e6 < machine.rss_bytes <= peak_bytes * 1.01
    assert machine.memory_available_bytes is not None
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.memory_available_bytes <= memory_bytes
    assert machine.load_1min is not None
    assert machine.load_1min >= 0


def test_the_process_grows_older():
    first = read_machine(Path("/")).process_uptime_s
    assert first is not None
    assert first >= 0
    assert eventually(lambda: read_machine(Path("/")).process_uptime_s > first)


def test_new_memory_is_seen():
    before = read_machine(Path("/")).rss_bytes
    # Not from what the process has freed and keeps.
    with mmap.mmap(-1, 64_000_000) as block:
        block.write(b"1" * 64_000_000)
        after = read_machine(Path("/")).rss_bytes
    assert before is not None
    assert after is not None
    assert after - before > 50e6


def test_what_is_free_is_what_anyone_may_write(tmp_path):
    """Not what is kept for root."""
    for _ in range(100):  # until nobody else writes to the disk meanwhile
        before = os.statvfs(tmp_path)
        disk = read_machine(tmp_path).disk
        if os.statvfs(tmp_path).f_bavail == before.f_bavail:
            break
    assert disk is not None
    assert disk.free_bytes == before.f_bavail * before.f_frsize


# ---- a Raspberry Pi ----------------------------------------------------------------------------


def test_a_raspberry_pi(pi):
    pi.command("[ $1 = get_throttled ] && echo throttled=0x50001")
    machine = pi.read()
    assert machine.model == MODEL
    assert machine.is_raspberry_pi
    assert machine.cpu_temperature_c == pytest.approx(51.121)
    assert machine.throttling == Throttling(
        now=Throttle.UNDER_VOLTAGE, since_boot=Throttle.UNDER_VOLTAGE | Throttle.THROTTLED
    )
    assert machine.rss_bytes == 25000 * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_available_bytes == 3212340 * 1024
    assert machine.load_1min == 0.75
    assert machine.process_uptime_s == pytest.approx(3000.25)


def test_another_board_is_none(pi):
    write(pi.proc / "device-tree/model", "Radxa ROCK 5B\0")
    assert pi.read().model == "Radxa ROCK 5B"
    assert not pi.read().is_raspberry_pi


def test_what_is_not_there_is_none(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert read_machine(nowhere, sys=nowhere, proc=nowhere, vcgencmd=str(nowhere)) == Machine()
    assert not Machine().is_raspberry_pi


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "1 2\n", ") (", "\0"])
def test_what_makes_no_sense_is_none(pi, text):
    for file in [*pi.sys.rglob("*"), *pi.proc.rglob("*")]:
        if file.is_file() and file.name not in {"model", "type"}:
            file.write_text(text)
    pi.firmware_file(text or "x")
    pi.command(f"printf '{text}'")
    machine = pi.read()
    assert machine.memory_available_bytes is None
    assert machine.process_uptime_s is None
    if text != "1 2\n":
        assert machine.load_1min is None
        assert machine.rss_bytes is None
    assert machine.cpu_temperature_c is None
    assert machine.throttling is None


# ---- temperature -------------------------------------------------------------------------------


def test_the_hottest_part_of_the_processor_counts_and_nothing_else(pi):
    for number, (kind, temperature) in enumerate(
        [("acpitz", 99000), ("soc-thermal", 61500), ("cpu1-thermal", 60000), ("iwlwifi_1", 97000)],
        start=1,
    ):
        write(pi.sys / f"class/thermal/thermal_zone{number}/type", f"{kind}\n")
        write(pi.sys / f"class/thermal/thermal_zone{number}/temp", f"{temperature}\n")
    assert pi.read().cpu_temperature_c == 61.5


def test_a_zone_that_cannot_be_read_does_not_hide_another(pi):
    """The kernel answers with an error where a sensor is asleep."""
    write(pi.sys / "class/thermal/thermal_zone1/type", "cpu-big\n")
    (pi.sys / "class/thermal/thermal_zone1/temp").mkdir()
    assert pi.read().cpu_temperature_c == pytest.approx(51.121)


# ---- throttling --------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", range(4))
def test_each_bit_now_and_since_boot(bit):
    flag = list(Throttle)[bit]
    assert decode_throttled(1 << bit) == Throttling(now=flag, since_boot=NONE)
    assert decode_throttled(1 << (bit + 16)) == Throttling(now=NONE, since_boot=flag)


def test_bits_of_no_known_meaning_are_left_out():
    assert decode_throttled(0) == Throttling(NONE, NONE)
    assert decode_throttled(0xFFF0FFF0) == Throttling(NONE, NONE)


def test_the_words():
    assert NONE.words == ()
    assert decode_throttled(0xF).now.words == (
        "under voltage",
        "frequency capped",
        "throttled",
        "soft temperature limit",
    )


def test_the_file_of_the_kernel_serves_where_the_command_does_not(pi):
    pi.firmware_file("80008\n")
    expected = decode_throttled(0x80008)
    assert pi.read().throttling == expected  # no such command
    pi.command("echo VCHI initialization failed; exit 255")
    assert pi.read().throttling == expected
    pi.command("exec sleep 60")
    assert pi.read().throttling == expected


def test_the_command_is_asked_first(pi):
    pi.firmware_file("0\n")
    pi.command("echo throttled=0x4")
    assert pi.read().throttling == decode_throttled(4)


def test_a_command_that_does_not_know_the_word_tells_nothing(pi):
    pi.command("""echo 'error=1 error_msg="Command not registered"'""")
    assert pi.read().throttling is None
