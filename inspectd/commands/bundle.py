"""``inspectd bundle``: what whoever helps from afar needs to know of a station, without secrets."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import msgspec
import typer

from inspectd import __version__, config, jit
from inspectd.commands.checks import NotChecked
from inspectd.errors import InspectdError, PermanentError, SettingsError
from inspectd.journal.outside import summarise_journal
from inspectd.machine import read_machine
from inspectd.masking import MASK, credentials_in, mask
from inspectd.mqtt.retained import read_retained
from inspectd.mqtt.topics import Topics
from inspectd.references import INDEX
from inspectd.settings import Settings
from inspectd.soartc import kernels
from inspectd.station_copy import (
    CREDENTIALS,
    JOURNAL,
    PROGRAMS,
    handed_over,
    require_plain_journal,
    secret_files,
    walk,
)
from inspectd.tarball import Writer, open_plain, writing

LOG_LINES = 200
VERDICTS = 100
DOCTOR_S = 300.0
COMMAND_S = 30.0
RETAINED_S = 5.0
LARGEST_SECRET = 1 << 20
LARGEST_TEXT = 16 << 20

_NAMED_FILE = re.compile(r"(?:password_file|\bkey)\s*:\s*['\"]?([^\s'\",{}]+)")
_STATE = re.compile(r"[^/]+\.json")
_INDEX = re.compile(rf"references/(?:.+/)?{re.escape(INDEX)}")
_PICTURE = re.compile(r"references/.+\.png")
_FACTS = ("/etc/os-release", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/mounts")


@dataclass
class _Station:
    """What is known of the station; its settings may be wrong.

    Attributes:
        path: the station file.
        loaded: None while the settings are wrong.
        secrets: that must not be in any text.
        left_out: files of its own folder that are not in the bundle, and why.
    """

    path: Path
    loaded: Settings | None = None
    secrets: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """Raises NotChecked while they are wrong."""
        if self.loaded is None:
            raise NotChecked("the settings are wrong: see check.txt")
        return self.loaded

    @property
    def unit(self) -> str:
        return f"inspectd@{self.path.stem}.service"


Texts = Iterator[tuple[str, str]]
"""Names of files in the bundle and their contents."""


def bundle(path: Path, target: Path | None, *, pictures: bool) -> int:
    """Collect it; a part that cannot be had is noted in its place.

    Args:
        path: the station file.
        target: of the bundle; None for one in the working directory with the time in its name.
        pictures: whether the reference pictures go in.

    Raises:
        PermanentError: the bundle cannot be written, or a file with a secret cannot be read, so
            that the secret could not be recognised elsewhere.
    """
    station = _know(path.absolute())  # the commands run elsewhere
    stem = f"inspectd-bundle-{path.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    target = target or Path(f"{stem}.tar.gz")
    failed: list[str] = []
    with writing(target, private=True) as archive:
        for title, collect in _PARTS:
            typer.echo(f"  {title}", err=True)
            failed += _add_part(archive, stem, title, collect, station)
        if pictures:
            failed += _add_pictures(archive, stem, station)
        failed += station.left_out
        contents = _contents(archive, station, failed, pictures=pictures)
        archive.add_content(f"{stem}/contents.txt", contents.encode())
    typer.echo(contents, nl=False)
    size = target.stat().st_size / 1024
    typer.echo(f"written to {target} ({size:.0f} KiB); only its owner can read it")
    return 0


def _know(path: Path) -> _Station:
    station = _Station(path)
    with suppress(SettingsError):
        station.loaded = config.load_to_run(path)[0]
    files = handed_over(path)
    for text in _settings_texts(path).values():
        station.secrets.update(credentials_in(text))
        # Wrong settings name their files, too.
        files += [path.absolute().parent / found[1] for found in _NAMED_FILE.finditer(text)]
    if station.loaded is not None:
        device = getattr(station.loaded.station.camera, "device", None)
        station.secrets.update(credentials_in(device or ""))
        files += secret_files(station.loaded)
    for file in dict.fromkeys(files):
        station.secrets.update(_secret_in(file))
    return station


def _secret_in(file: Path) -> Iterator[str]:
    try:
        with open_plain(file.resolve()) as stream:
            yield stream.read(LARGEST_SECRET).decode("utf-8-sig", errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except OSError as error:
        raise PermanentError(
            f"{file} cannot be read ({error.strerror}), so that its content could not be "
            "recognised and masked elsewhere; try sudo"
        ) from error


def _settings_texts(path: Path) -> dict[str, str]:
    """Station file and programs by name, as far as they can be read."""
    texts = {}
    for file in (path, *sorted((path.parent / PROGRAMS).glob("*.y*ml"))):
        name = file.name if file == path else f"{PROGRAMS}/{file.name}"
        try:
            with open_plain(file.resolve()) as stream:
                texts[name] = stream.read(config.MAX_BYTES).decode(errors="replace")
        except OSError as error:
            texts[name] = f"# cannot be read: {error.strerror}\n"
    return texts


def _add_part(
    archive: Writer, stem: str, title: str, collect: Callable[[_Station], Texts], station: _Station
) -> list[str]:
    """Returns what could not be had, and why."""
    try:
        for name, text in collect(station):
            archive.add_content(f"{stem}/{name}", mask(text, station.secrets).encode())
    except Exception as error:  # noqa: BLE001 - the other parts are wanted the more
        kind = "" if isinstance(error, (InspectdError, NotChecked)) else f"{type(error).__name__}: "
        return [f"{title}: {kind}{mask(str(error), station.secrets)}"]
    return []


def _add_pictures(archive: Writer, stem: str, station: _Station) -> list[str]:
    if station.loaded is None:
        return ["pictures: the settings are wrong"]
    try:
        for name, file in _plain_files(station, _PICTURE):
            archive.add_file(f"{stem}/{name}", file)
    except PermanentError as error:
        return [f"pictures: {error}"]
    return []


def _plain_files(
    station: _Station, wanted: re.Pattern[str]
) -> Iterator[tuple[str, io.BufferedReader]]:
    """Of the station's own folder, in which the service may put what it likes: whatever is no
    plain file there is left out, and noted.
    """
    folder = station.settings.directory
    for directory, names, descriptor in walk(folder):
        for name in names:
            relative = (directory / name).relative_to(folder).as_posix()
            if not wanted.fullmatch(relative):
                continue
            try:
                file = open_plain(name, descriptor)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                station.left_out.append(f"{directory / name}: {error.strerror}")
                continue
            with file:
                yield relative, file


def _plain_texts(station: _Station, wanted: re.Pattern[str]) -> Texts:
    for name, file in _plain_files(station, wanted):
        content = file.read(LARGEST_TEXT + 1)
        if len(content) > LARGEST_TEXT:
            path = station.settings.directory / name
            station.left_out.append(f"{path}: larger than {LARGEST_TEXT >> 20} MiB")
        else:
            yield name, content.decode(errors="replace")


def _contents(archive: Writer, station: _Station, failed: list[str], *, pictures: bool) -> str:
    lines = [f"bundle of {station.path}, made {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", ""]
    names = [member.name.partition("/")[2] for member in archive.members]
    lines += [f"  {name}" for name in names if not name.endswith(".png")]
    if pictures:
        lines.append(f"  {sum(name.endswith('.png') for name in names)} reference pictures")
    lines += ["", *(f"not in it: {one}" for one in failed)]
    lines += [
        "It has no passwords, keys or pictures of parts judged; what looks like a secret in "
        f"settings and logs is {MASK}.",
        "Comments in the settings are in it: look through them before you hand it on.",
        f"The last {VERDICTS} verdicts are in it as they were sent, with their part ids: your "
        "serial numbers, where the line gives them to the station.",
    ]
    return "\n".join(lines) + "\n"


# ---- the parts -----------------------------------------------------------------------------------


def _versions(_station: _Station) -> Texts:
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    facts = {
        "inspectd": __version__,
        "python": sys.version,
        "executable": sys.executable,
        "package": str(Path(__file__).parents[1].resolve()),
        "kernel": platform.version(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "user": os.geteuid(),
        "packages": dict(sorted(packages.items(), key=lambda one: one[0].lower())),
    }
    yield "versions.json", _json(facts)


def _settings(station: _Station) -> Texts:
    for name, text in _settings_texts(station.path).items():
        yield f"settings/{name}", text


def _check(station: _Station) -> Texts:
    yield "check.txt", _own("check", station)


def _status(station: _Station) -> Texts:
    yield "status.txt", _own("status", station)


def _doctor(station: _Station) -> Texts:
    # A process of its own: a driver that hangs or crashes takes only this part with it.
    yield "doctor.txt", _own("doctor", station, limit_s=DOCTOR_S)


def _service(station: _Station) -> Texts:
    commands = (
        ("systemctl", "status", "--no-pager", "--full", "--lines=0", station.unit),
        ("systemctl", "show", "--no-pager", station.unit),
        ("systemctl", "cat", "--no-pager", station.unit),
        ("systemd-analyze", "security", "--no-pager", station.unit),
    )
    yield "systemd.txt", "\n".join(_run(*command) for command in commands)


def _log(station: _Station) -> Texts:
    lines = f"--lines={LOG_LINES}"
    yield (
        "log.txt",
        _run("journalctl", f"--unit={station.unit}", lines, "--no-pager", "--output=short-iso"),
    )


def _retained(station: _Station) -> Texts:
    settings = station.settings
    mqtt, name = settings.station.mqtt, settings.station.station
    topics = Topics(name)
    wanted = (topics.availability, topics.state, topics.health, topics.statistics)
    for topic, payload in read_retained(mqtt, name, wanted, settings.resolve, RETAINED_S).items():
        text = payload.decode(errors="replace")
        with suppress(ValueError, RecursionError):
            text = _json(json.loads(text))
        yield f"mqtt/{topic.rpartition('/')[2]}.json", text


def _journal(station: _Station) -> Texts:
    path = station.settings.directory / JOURNAL
    if not require_plain_journal(path):
        raise NotChecked(f"there is none yet ({path})")
    found = summarise_journal(path, VERDICTS)
    facts = {
        "path": str(path),
        "bytes": {file.name: file.lstat().st_size for file in path.parent.glob(f"{JOURNAL}*")},
        "journal_id": found.id,
        "last_seq": found.last_seq,
        "unsent": found.unsent,
        "rows": found.counts,
        "oldest": found.oldest,
        "newest": found.newest,
    }
    yield "journal.json", _json(facts)
    yield (
        "verdicts.jsonl",
        "".join(f"{row.payload.decode(errors='replace')}\n" for row in found.last),
    )


def _references(station: _Station) -> Texts:
    yield from _plain_texts(station, _INDEX)


def _state(station: _Station) -> Texts:
    for name, text in _plain_texts(station, _STATE):
        yield f"state/{name}", text


def _folders(station: _Station) -> Texts:
    """Names, sizes, owners and modes: rights are what goes wrong most."""
    settings = station.path.absolute().parent
    folders = [settings, settings / PROGRAMS, settings / CREDENTIALS]
    if station.loaded is not None:
        directory = station.loaded.directory
        folders += [directory.parent, directory, directory / "references"]
    yield "folders.txt", _run("ls", "-lA", "--", *(str(one) for one in folders if one.exists()))


def _machine(station: _Station) -> Texts:
    folder = station.path.absolute().parent if station.loaded is None else station.loaded.directory
    yield "machine.json", _json(asdict(read_machine(folder)))
    for name in _FACTS:
        with suppress(OSError):
            text = Path(name).read_text(encoding="utf-8", errors="replace")
            yield f"machine/{Path(name).name}.txt", text
    commands = (("df", "-hT"), ("df", "-hi"), ("timedatectl",), ("ip", "-brief", "address"))
    yield "machine/commands.txt", "\n".join(_run(*command) for command in commands)


def _kernels(_station: _Station) -> Texts:
    folder = jit.cache_folder(kernels.responses)
    variables = {name: os.environ.get(name) for name in ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT")}
    facts: dict[str, object] = {"folder": str(folder), **variables}
    if folder is not None and folder.exists():
        files = [file for file in folder.iterdir() if file.suffix in {".nbi", ".nbc"}]
        facts["files"] = len(files)
        facts["bytes"] = sum(file.stat().st_size for file in files)
        facts["writable"] = os.access(folder, os.W_OK)
    yield "kernels.json", _json(facts)


_PARTS: tuple[tuple[str, Callable[[_Station], Texts]], ...] = (
    ("versions", _versions),
    ("settings", _settings),
    ("check", _check),
    ("status", _status),
    ("service", _service),
    ("log", _log),
    ("broker", _retained),
    ("journal", _journal),
    ("references", _references),
    ("state", _state),
    ("folders", _folders),
    ("machine", _machine),
    ("kernels", _kernels),
    ("doctor", _doctor),
)


def _json(facts: object) -> str:
    encoded = msgspec.json.encode(facts, enc_hook=str)
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def _own(command: str, station: _Station, limit_s: float = COMMAND_S) -> str:
    """What another command of inspectd prints; at low priority, for a station may be judging."""
    # -P: whoever can write to the working directory must not choose what runs here.
    arguments = (sys.executable, "-P", "-m", "inspectd", command, "-c", str(station.path))
    return _run("nice", *arguments, limit_s=limit_s)


def _run(*command: str, limit_s: float = COMMAND_S) -> str:
    """What a command prints, whatever becomes of it."""
    head = f"$ {' '.join(command)}\n"
    if shutil.which(command[0]) is None:
        return f"{head}(there is no {command[0]} here)\n"
    try:
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=limit_s,
            env={**os.environ, "LC_ALL": "C.UTF-8", "COLUMNS": "200", "NO_COLOR": "1"},
        )
    except subprocess.TimeoutExpired as hanging:
        told = (hanging.stdout or b"").decode(errors="replace")
        return f"{head}{told}(no answer within {limit_s:g} s)\n"
    told = done.stdout.decode(errors="replace")
    return f"{head}{told}(exit status {done.returncode})\n"
