"""A station as deploy/install.sh makes it, seen from outside: its unit, its files, its messages."""

import json
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lab import Machine

UNIT = "inspectd@default.service"
SETTINGS = "/etc/inspectd/default.yaml"
PROGRAM = "terminal-block"
PROGRAM_FILE = f"/etc/inspectd/programs/{PROGRAM}.yaml"
BUNDLES = "/srv/bundles"
"""Folders that `deploy/wheels.sh` made, as a USB stick would bring them."""
BROKER = "-h localhost -p 8883 --cafile /etc/mosquitto/inspectd/ca.pem"
SCADA = '-u scada -P "$(cat /etc/mosquitto/inspectd/credentials/scada)"'
INSTALL_S = 400.0
START_S = 120.0
VERDICT_S = 20.0

Verdict = dict[str, Any]


class Station:
    """The one of the unit `inspectd@default`, and a consumer that logs in to its broker."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.installed_after_s = 0.0
        # From where it is installed, so that a script which imports from there fails.
        (machine.shared / "numpy.py").write_text("raise SystemExit('not the library')\n")

    # ---- the scripts -----------------------------------------------------------------------------

    def install(self, *options: str, bundle: str = "this") -> "subprocess.CompletedProcess[str]":
        """Run install.sh of a bundle, without a network, by a root who is strict."""
        folder = f"{BUNDLES}/{bundle}"
        words = [
            "cd /srv/shared; umask 077; sh",
            f"{folder}/deploy/install.sh",
            "--wheels",
            folder,
            *options,
        ]
        return self.machine.result(" ".join(words), timeout_s=INSTALL_S)

    def install_wheel(
        self, *options: str, bundle: str = "this"
    ) -> "subprocess.CompletedProcess[str]":
        """Likewise of its wheel of inspectd alone; pip's settings name the folder as the index."""
        folder = f"{BUNDLES}/{bundle}"
        index = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={folder}"
        script = f"{index} sh {folder}/deploy/install.sh --wheel {folder}/inspectd-*.whl"
        return self.machine.result(" ".join([script, *options]), timeout_s=INSTALL_S)

    # ---- the unit --------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the daemon; 0 while there is none."""
        return int(self.machine.property_of(UNIT, "MainPID"))

    @property
    def is_active(self) -> bool:
        return self.machine.property_of(UNIT, "ActiveState") == "active"

    def start_took_s(self) -> float:
        """From the first process of the unit until READY, the last time."""
        began, ready = (
            int(self.machine.property_of(UNIT, f"{name}TimestampMonotonic"))
            for name in ("InactiveExit", "ActiveEnter")
        )
        return (ready - began) / 1e6

    def wait_for_another(self, pid: int, timeout_s: float = START_S) -> None:
        """Until systemd has started the daemon again, and it is READY."""

        def is_another() -> bool:
            return self.is_active and self.pid not in (0, pid)

        self.machine.wait_until("another daemon is READY", is_another, timeout_s)

    def last_seq(self) -> int:
        """Of the verdict committed last, sent or not."""
        code = (
            "import sqlite3; "
            f"print(sqlite3.connect('file:/var/lib/inspectd/{self.name}/journal.db?mode=ro', "
            "uri=True).execute('SELECT max(seq) FROM inspection').fetchone()[0])"
        )
        return int(self.machine.run(f'python3 -c "{code}"'))

    # ---- the consumer ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        (line,) = (
            line for line in self.machine.read(SETTINGS).splitlines() if line.startswith("station:")
        )
        return line.split()[1]

    def consume(self) -> None:
        """Let a consumer of QoS 1 run, whose session the broker keeps while it is away."""
        topics = " ".join(
            f"-t inspectd/+/{name}" for name in ("verdict", "state", "availability", "result")
        )
        script = f"exec stdbuf -oL mosquitto_sub {BROKER} {SCADA} -c -i consumer -q 1 -v {topics}\n"
        (self.machine.shared / "consumer").write_text(script)
        self.machine.run(
            "systemd-run --quiet --collect --unit=consumer --property=Restart=always "
            "--property=RestartSec=200ms --property=StartLimitIntervalSec=0 "
            "--property=StandardOutput=append:/srv/shared/messages "
            "sh /srv/shared/consumer"
        )
        self.machine.wait_until("the consumer hears of the station", self.state)

    def messages(self, name: str) -> list[str]:
        """Payloads on one of the station's topics, in the order of arrival."""
        log = self.machine.shared / "messages"
        if not log.exists():
            return []
        lines = log.read_text().split("\n")[:-1]  # the last one may be half there
        parts = (line.partition(" ") for line in lines)
        return [payload for topic, _, payload in parts if topic.endswith(f"/{name}")]

    def verdicts(self) -> list[Verdict]:
        return [json.loads(payload) for payload in self.messages("verdict")]

    def state(self) -> dict[str, Any]:
        """The last one; empty before the first."""
        said = self.messages("state")
        return json.loads(said[-1]) if said else {}

    def next_verdict(
        self, fits: Callable[[Verdict], bool] = lambda _: True, what: str = "a verdict"
    ) -> Verdict:
        """The next live one of that kind."""
        known = len(self.messages("verdict"))

        def found() -> Verdict | None:
            fresh = (json.loads(payload) for payload in self.messages("verdict")[known:])
            return next((one for one in fresh if not one["historical"] and fits(one)), None)

        verdict = self.machine.wait_until(what, found, VERDICT_S)
        assert verdict is not None
        return verdict

    def wait_until_gapless(self) -> int:
        """Until the consumer has every verdict since its first; their number.

        Also fails where one sequence number stands for two verdicts.
        """

        def missing() -> str:
            ids: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
            for verdict in self.verdicts():
                ids[verdict["journal_id"], verdict["seq"]].add(verdict["id"])
            assert all(len(one) == 1 for one in ids.values()), f"two verdicts of one seq: {ids}"
            assert len({journal for journal, _ in ids}) == 1, "the journal was begun anew"
            numbers = {seq for _, seq in ids}
            return str(sorted(set(range(min(numbers), max(numbers))) - numbers)[:10])

        self.machine.wait_until("no verdict is missing", lambda: missing() == "[]", VERDICT_S)
        return len({verdict["seq"] for verdict in self.verdicts()})

    @contextmanager
    def changed(self, path: str, text: str) -> Iterator[None]:
        """Lines at the end of a settings file, for a time."""
        before = self.machine.read(path)
        self.machine.write(path, f"{before}\n{text}\n")
        try:
            yield
        finally:
            self.machine.write(path, before + "\n")
