"""A station in one file, and back: settings, references, what was set by request, the journal.

In the file, ``config/`` is the folder of the settings and ``state/`` the station's own folder;
``manifest.json`` comes last and names the rest with its checksums.
"""

from __future__ import annotations

import hashlib
import os
import platform
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import msgspec

from inspectd import __version__, config, journal
from inspectd.errors import PermanentError, Problem, SettingsError
from inspectd.masking import holds_secret
from inspectd.references import INDEX, ReferenceStore
from inspectd.settings import Settings
from inspectd.tarball import Member, Reader, Writer, reading, writing

FORMAT = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.db"
ARCHIVE = "archive"
CREDENTIALS = "credentials"
PROGRAMS = "programs"
LARGEST_MANIFEST = 256 << 20
HEADROOM = 64 << 20
"""Bytes that a disk must have free beyond what is restored to it."""
MOST_NAMED = 5

_PASSING = ("*.lock", "*.ballast", "*.sock", f"{JOURNAL}-shm", ".*")
"""Names of what a station makes anew."""
_OF_THE_JOURNAL = {JOURNAL, f"{JOURNAL}-wal"}
_DURABLE = re.compile(
    rf"(?:[^/]+\.json|{re.escape(JOURNAL)}|references/.+\.(?:json|png)"
    rf"|{ARCHIVE}/.+\.(?:json|png|jpg))"
)
"""Of the station's folder. A backup that someone has tampered with can put nothing else there."""


class JournalPart(msgspec.Struct, frozen=True):
    """The journal in a backup."""

    id: str
    last_seq: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is and has.

    Attributes:
        format: of the file; a newer one is refused.
        inspectd: the version that made it.
        station: its name.
        station_file: the name of its file among the settings.
        hostname: of the machine it was made on.
        created_at: UTC.
        journal: None where the backup has none.
        left_out: for a person, what of the station is not in it, and why.
        secret: whether it has passwords or keys.
        members: every file in it but the manifest.
    """

    format: int = FORMAT
    inspectd: str
    station: str
    station_file: str
    hostname: str
    created_at: datetime
    journal: JournalPart | None
    left_out: tuple[str, ...]
    secret: bool
    members: tuple[Member, ...]


class _Format(msgspec.Struct, frozen=True):
    """What every format of the manifest has."""

    format: int
    inspectd: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What goes into a backup beside settings, references and what was set by request."""

    journal: bool = False
    archive: bool = False
    secrets: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a backup.

    Attributes:
        moved_aside: where that lies now which was in the way.
        problems: of program files that the station does not judge by.
    """

    manifest: Manifest
    settings: Settings
    moved_aside: tuple[Path, ...]
    problems: tuple[Problem, ...]


# ---- backup --------------------------------------------------------------------------------------


def back_up(settings: Settings, target: Path, wanted: Wanted) -> Manifest:
    """Write a station into a file; its service may run meanwhile.

    Raises:
        PermanentError: something of it cannot be read, or the file cannot be written.
        JournalUnusable: the journal is wanted and cannot be copied.
    """
    files, left_out = _settings_files(settings, wanted)
    secret = any(file.private for file in files)
    with writing(target, private=secret) as archive:
        for file in files:
            archive.add_file(file.name, file.path, private=file.private)
        left_out += _add_state(archive, settings.directory, wanted, target)
        part = None
        if wanted.journal:
            part = _add_journal(archive, settings.directory / JOURNAL, target.absolute().parent)
        manifest = Manifest(
            inspectd=__version__,
            station=settings.station.station,
            station_file=settings.path.name,
            hostname=platform.node(),
            created_at=datetime.now(UTC),
            journal=part,
            left_out=tuple(left_out),
            secret=secret,
            members=tuple(archive.members),
        )
        raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        archive.add_content(MANIFEST, raw + b"\n")
    return manifest


@dataclass(frozen=True, slots=True)
class _SettingsFile:
    name: str
    path: Path
    private: bool


def _settings_files(settings: Settings, wanted: Wanted) -> tuple[list[_SettingsFile], list[str]]:
    """Of the settings' folder: what goes into the backup, and in words what does not."""
    folder = settings.path.absolute().parent
    public = [settings.path.absolute(), *_programs(folder)]
    tls, left_out = settings.station.mqtt.tls, []
    if tls is not None:
        public += [settings.resolve(path) for path in (tls.ca, tls.certificate) if path is not None]
    private = [path for path in secret_files(settings) if path.exists()]
    if private and not wanted.secrets:
        left_out.append(f"secrets ({_listed(private)}): put them on the other machine yourself")
        private = []
    files = []
    for path in dict.fromkeys([*public, *private]):
        clean = Path(os.path.normpath(path))
        if clean.is_relative_to(folder):
            name = f"config/{clean.relative_to(folder).as_posix()}"
            files.append(_SettingsFile(name, clean, path in private or _tells_secret(clean)))
        else:
            left_out.append(f"{clean}: it lies outside of {folder}; copy it yourself")
    return files, left_out


def _programs(folder: Path) -> list[Path]:
    """Sound and unsound: they are the technician's work."""
    return sorted(
        path
        for path in (folder / PROGRAMS).glob("[!.]*")
        if path.suffix in {".yaml", ".yml"} and path.is_file()
    )


def secret_files(settings: Settings) -> list[Path]:
    """The files that hold the station's passwords and keys, as far as this user may know; those
    that the settings name need not be there.
    """
    mqtt = settings.station.mqtt
    named = (mqtt.password_file, mqtt.tls.key if mqtt.tls else None)
    return [
        *(settings.resolve(path) for path in named if path is not None),
        *handed_over(settings.path),
    ]


def handed_over(station_file: Path) -> list[Path]:
    """The secrets that systemd hands over to the service; none where this user may not look."""
    with suppress(PermissionError):
        folder = station_file.absolute().parent / CREDENTIALS
        return sorted(folder.glob(f"{station_file.stem}.*"))
    return []


def _tells_secret(path: Path) -> bool:
    """Such as the password in the URL of a camera."""
    if path.suffix not in {".yaml", ".yml"}:
        return False
    try:
        return holds_secret(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}; try sudo") from error


def _add_state(archive: Writer, folder: Path, wanted: Wanted, target: Path) -> list[str]:
    """Returns in words what of the station's folder is not in the backup."""
    left_out = []
    if (folder / JOURNAL).exists() and not wanted.journal:
        left_out.append("the journal (--journal)")
    if (folder / ARCHIVE).exists() and not wanted.archive:
        left_out.append("the archive of pictures (--archive)")
    for directory, names in _walk(folder):
        store = ReferenceStore(directory).held() if INDEX in names else nullcontext()
        with store:
            # What was removed since it was listed is in no index any more.
            for name in sorted(path.name for path in directory.iterdir()):
                path = directory / name
                relative = path.relative_to(folder).as_posix()
                linked = path.is_symlink()
                if (path.is_dir() and not linked) or relative in _OF_THE_JOURNAL or _passes(name):
                    continue
                if not wanted.archive and relative.split("/")[0] == ARCHIVE:
                    continue
                if linked or not _DURABLE.fullmatch(relative):
                    if path.absolute() != target.absolute():
                        left_out.append(f"{path}: it is a link, or none of inspectd's own files")
                    continue
                with suppress(FileNotFoundError):  # replaced, or the archive's quota
                    archive.add_file(f"state/{relative}", path)
    return left_out


def _add_journal(archive: Writer, path: Path, scratch: Path) -> JournalPart | None:
    """None where there is none yet."""
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory(prefix=".inspectd-", dir=scratch) as folder:
        taken = Path(folder) / JOURNAL
        copied = journal.copy(path, taken)
        archive.add_file(f"state/{JOURNAL}", taken)
    return JournalPart(copied.id, copied.last_seq)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder in it that is not hidden, and the names of its files."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise PermanentError(
                f"{error.filename} cannot be read: {error.strerror}; try sudo"
            ) from error

    for directory, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(directory), names


def _passes(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _PASSING)


# ---- restore -------------------------------------------------------------------------------------


def restore(path: Path, config_dir: Path, *, force: bool) -> Restored:
    """Put the station of a backup in place, after everything was found in order.

    Args:
        path: of the backup.
        config_dir: for the settings.
        force: what is in the way is moved aside.

    Raises:
        SettingsError: the settings in it are wrong.
        PermanentError: the file is damaged or not sound, the station runs, or something is in the
            way. Until the files are moved to where they belong, nothing was changed.
    """
    config_dir = config_dir.absolute()
    with reading(path) as archive:
        manifest = _verified(archive)
        settings, problems = _settings_in(archive, manifest, config_dir)
        _refuse_while_running(settings)
        work = _Work(archive, manifest, config_dir, settings.directory)
        obstacles = work.obstacles()
        if obstacles and not force:
            raise PermanentError(
                f"there is another station already: {_listed(obstacles)}; with --force they are "
                "moved aside, and nothing is deleted"
            )
        work.require_room()
        return Restored(manifest, settings, work.carry_out(obstacles), problems)


def _verified(archive: Reader) -> Manifest:
    """The manifest, once all that it says was found true."""
    if MANIFEST not in archive:
        raise PermanentError(
            f"{archive.path} has no {MANIFEST}: it is no backup of a station, or was cut short"
        )
    raw = archive.content(MANIFEST, LARGEST_MANIFEST)
    try:
        made = msgspec.json.decode(raw, type=_Format)
        if made.format > FORMAT:
            raise PermanentError(
                f"{archive.path} was made by a newer inspectd ({made.inspectd}; its format is "
                f"{made.format}, this one knows {FORMAT}): install that version"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PermanentError(f"{archive.path} is damaged: its {MANIFEST}: {error}") from error
    if archive.unsound:
        raise PermanentError(f"{archive.path} {archive.unsound}: nothing of it is unpacked")
    listed = {member.name for member in manifest.members}
    for name in sorted(archive.names - {MANIFEST} - listed):
        raise PermanentError(f"{archive.path} has {name}, of which its {MANIFEST} knows nothing")
    for name in sorted(listed - archive.names):
        raise PermanentError(f"{archive.path} is not complete: {name} is missing")
    for member in manifest.members:
        _refuse_elsewhere(archive, member)
        archive.verify(member)
    return manifest


def _refuse_elsewhere(archive: Reader, member: Member) -> None:
    top, _, rest = member.name.partition("/")
    if not ((top == "config" and rest) or (top == "state" and _DURABLE.fullmatch(rest))):
        raise PermanentError(f"{archive.path} has {member.name}, which belongs to no station")


def _settings_in(
    archive: Reader, manifest: Manifest, config_dir: Path
) -> tuple[Settings, tuple[Problem, ...]]:
    """The settings as they will be; their problems name the files as they are in the backup."""
    station_file = manifest.station_file
    if "/" in station_file or f"config/{station_file}" not in archive:
        raise PermanentError(f"{archive.path} has no station file {station_file!r}")
    with tempfile.TemporaryDirectory(prefix="inspectd-") as name:
        folder = Path(name)
        (folder / PROGRAMS).mkdir()
        for member in manifest.members:
            inner = PurePosixPath(member.name).relative_to(PurePosixPath(member.name).parts[0])
            if member.name == f"config/{station_file}" or (
                member.name.startswith(f"config/{PROGRAMS}/") and len(inner.parts) == 2
            ):
                archive.unpack(member, folder / inner, 0o600)
        try:
            settings, problems = config.load_to_run(folder / station_file)
        except SettingsError as error:
            raise SettingsError([_placed(one, folder, archive) for one in error.problems]) from None
        told = tuple(_placed(one, folder, archive) for one in problems)
    settings = msgspec.structs.replace(settings, path=config_dir / station_file)
    if settings.station.station != manifest.station:
        raise PermanentError(
            f"{archive.path} contradicts itself: its settings are of station "
            f"{settings.station.station}, its {MANIFEST} of {manifest.station}"
        )
    settings.control_socket  # noqa: B018 - raises where the path would be too long
    return settings, told


def _placed(problem: Problem, folder: Path, archive: Reader) -> Problem:
    place = f"{archive.path.name}:config"
    return replace(
        problem,
        file=problem.file.replace(str(folder), place),
        message=problem.message.replace(str(folder), place),
    )


def _refuse_while_running(settings: Settings) -> None:
    """Neither the station itself may run, nor the one whose file is to be replaced."""
    directories = {settings.directory}
    with suppress(SettingsError):  # it cannot run by that
        directories.add(config.load_to_run(settings.path)[0].directory)
    for directory in sorted(directories):
        holder = journal.in_use(directory / JOURNAL)
        if holder:
            raise PermanentError(
                f"the service of station {directory.name} runs ({holder}): stop it first, such as "
                f"with sudo systemctl stop inspectd@{settings.path.stem}"
            )


class _Work:
    """The files of a backup on their way to where they belong."""

    def __init__(
        self, archive: Reader, manifest: Manifest, config_dir: Path, directory: Path
    ) -> None:
        self._archive = archive
        self._config_dir, self._directory = config_dir, directory
        self._targets = {
            self._target(member.name): member
            # An index after its pictures, the station file after all that it stands for.
            for member in sorted(
                manifest.members,
                key=lambda one: (
                    one.name == f"config/{manifest.station_file}",
                    one.name.startswith("config/"),
                    one.name.endswith(INDEX),
                ),
            )
        }
        self._aside: list[Path] = []
        self._stamp = f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"

    def _target(self, name: str) -> Path:
        top, _, rest = name.partition("/")
        return (self._config_dir if top == "config" else self._directory) / rest

    def obstacles(self) -> list[Path]:
        """What is there and is not as in the backup; in the station's folder, also what the backup
        has not.
        """
        found = [
            path
            for path, member in self._targets.items()
            if os.path.lexists(path) and not _is_already(path, member)
        ]
        for directory, names in _walk(self._directory):
            found += [
                directory / name
                for name in sorted(names)
                if directory / name not in self._targets
                # A WAL would be taken for that of the journal restored, unless it is empty.
                and not (_passes(name) or _is_empty(directory / name))
            ]
        return list(dict.fromkeys(found))

    def require_room(self) -> None:
        """Raises PermanentError when the disks are too small."""
        for folder in {self._config_dir, self._directory}:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            free, needed = shutil.disk_usage(there).free, self._archive.length + HEADROOM
            if free < needed:
                raise PermanentError(
                    f"the disk of {there} is too full: {free >> 20} MiB are free, "
                    f"{needed >> 20} are needed"
                )

    def carry_out(self, obstacles: Sequence[Path]) -> tuple[Path, ...]:
        """Unpack beside the places, move what is in the way aside, and the files in.

        Returns:
            Where that lies which was in the way.

        Raises:
            PermanentError: a folder or file cannot be written.
        """
        made: list[Path] = []
        try:
            owner = _owner_of(self._directory.parent)
            made += [*_make_folder(self._config_dir, None)]
            made += [*_make_folder(self._directory.parent, owner)]
            with (
                tempfile.TemporaryDirectory(prefix=".restore-", dir=self._config_dir) as settings,
                tempfile.TemporaryDirectory(prefix=".restore-", dir=self._directory.parent) as own,
            ):
                roots = {self._config_dir: Path(settings), self._directory: Path(own)}
                ready = [*self._unpack(roots, owner)]
                os.sync()
                self._move_aside(obstacles)
                for source, target, folder_owner in ready:
                    if not os.path.lexists(target):
                        made += [*_make_folder(target.parent, folder_owner)]
                        source.rename(target)
                os.sync()
            return tuple(self._aside)
        except OSError as error:
            for folder in reversed(made):
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise PermanentError(
                f"{error.filename2 or error.filename}: {error.strerror}; restore as root (sudo), "
                f"or into folders that this user may write to{self._where_the_old_is()}"
            ) from error

    def _unpack(
        self, roots: dict[Path, Path], owner: tuple[int, int] | None
    ) -> Iterator[tuple[Path, Path, tuple[int, int] | None]]:
        """Each file as it is unpacked, where it belongs, and whose its folder is to be."""
        for number, (target, member) in enumerate(self._targets.items()):
            settings = member.name.startswith("config/")
            source = roots[self._config_dir if settings else self._directory] / str(number)
            private = self._archive.is_private(member.name)
            self._archive.unpack(member, source, 0o600 if private else 0o644)
            # What systemd hands over to the service is root's, as all settings are; another secret
            # is read by the service itself.
            services = not settings or (private and CREDENTIALS not in target.parts)
            if owner is not None and services:
                os.chown(source, *owner)
            yield source, target, None if settings else owner

    def _move_aside(self, obstacles: Iterable[Path]) -> None:
        """The station's folder as a whole, of the settings what differs."""
        ways = dict.fromkeys(
            self._directory if path.is_relative_to(self._directory) else path for path in obstacles
        )
        for path in ways:
            aside = path.with_name(f"{path.name}.{self._stamp}")
            path.rename(aside)
            self._aside.append(aside)

    def _where_the_old_is(self) -> str:
        return f"; moved aside so far: {_listed(self._aside)}" if self._aside else ""


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _is_already(path: Path, member: Member) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != member.length:
        return False
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == member.sha256
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}; try sudo") from error


def _owner_of(folder: Path) -> tuple[int, int] | None:
    """User and group that the station's files are to have; None for those of this process."""
    if os.geteuid() != 0:
        return None
    if folder.exists():
        facts = folder.stat()
        return facts.st_uid, facts.st_gid
    try:
        user = pwd.getpwnam("inspectd")
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def _make_folder(folder: Path, owner: tuple[int, int] | None) -> Iterator[Path]:
    """With those above it; yields each that was made. The one of the secrets is closed to others.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        yield path
        path.chmod(0o700 if path.name == CREDENTIALS else 0o755)
        if owner is not None:
            os.chown(path, *owner)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(str(path) for path in paths[:MOST_NAMED]) + more
