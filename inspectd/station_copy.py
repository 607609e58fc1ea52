"""A station in one file, and back: settings, references, what was set by request, the journal.

In the file, ``config/`` is the folder of the settings and ``state/`` the station's own folder;
``manifest.json`` comes last and names the rest with its checksums.

The folder of the settings is root's, links in it are somebody's intention, and are followed. The
station's own folder belongs to the service, which may have been taken over: whoever reads or writes
there as root goes by descriptors, from the folder that `storage.directory` names downwards, and
follows no link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import pwd
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from inspectd import __version__, config
from inspectd.errors import PermanentError, Problem, SettingsError
from inspectd.journal.lock import in_use
from inspectd.journal.outside import copy_journal
from inspectd.masking import holds_secret
from inspectd.references import INDEX, ReferenceStore
from inspectd.settings import HANDED_OVER, Settings
from inspectd.tarball import Member, Reader, Writer, open_plain, reading, writing
from inspectd.typed_json import JsonError, JsonReader

FORMAT = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.db"
ARCHIVE = "archive"
CREDENTIALS = "credentials"
PROGRAMS = "programs"
UNITS = Path("/etc/systemd/system")
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


_FORMAT: JsonReader[_Format] = JsonReader(_Format)
_MANIFEST: JsonReader[Manifest] = JsonReader(Manifest)


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
            with _open_settings(file.path) as opened:
                archive.add_file(file.name, opened, private=file.private)
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
    # What systemd has handed to the service is a copy of what lies in the settings' folder.
    private = [
        path
        for path in secret_files(settings)
        if not path.is_relative_to(HANDED_OVER) and path.exists()
    ]
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
    # Not in it, for whoever can write one decides what root runs.
    left_out += [
        f"{path}: it changes systemd's unit; look through it and copy it yourself"
        for path in _drop_ins(settings)
    ]
    return files, left_out


def _drop_ins(settings: Settings) -> list[Path]:
    """What `systemctl edit` has made for the service of this station, or for all."""
    if settings.unit is None:
        return []
    folders = [UNITS / f"{unit}.d" for unit in ("inspectd@.service", settings.unit)]
    return [path for folder in folders for path in sorted(folder.glob("*.conf"))]


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


def _open_settings(path: Path) -> BinaryIO:
    try:
        return open_plain(path.resolve())
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}; try sudo") from error


def _add_state(archive: Writer, folder: Path, wanted: Wanted, target: Path) -> list[str]:
    """Returns in words what of the station's folder is not in the backup."""
    left_out = []
    if (folder / JOURNAL).exists() and not wanted.journal:
        left_out.append("the journal (--journal)")
    if (folder / ARCHIVE).exists() and not wanted.archive:
        left_out.append("the archive of pictures (--archive)")
    for directory, names, descriptor in walk(folder):
        store = ReferenceStore(directory).held() if INDEX in names else nullcontext()
        with store:
            # What was removed since it was listed is in no index any more.
            for name in _names(descriptor):
                path = directory / name
                relative = path.relative_to(folder).as_posix()
                if relative in _OF_THE_JOURNAL or _passes(name) or path == target.absolute():
                    continue
                if not wanted.archive and relative.split("/")[0] == ARCHIVE:
                    continue
                reason = _add_of_state(archive, relative, name, descriptor)
                left_out += [f"{path}: {reason}"] if reason else []
    return left_out


def _add_of_state(archive: Writer, relative: str, name: str, folder: int) -> str:
    """Returns why it is not in the backup; empty where it is, or is not missed."""
    try:
        file = open_plain(name, folder)
    except (FileNotFoundError, IsADirectoryError):  # replaced, or the archive's quota
        return ""
    except PermissionError as error:
        raise PermanentError(f"{relative} cannot be read: {error.strerror}; try sudo") from error
    except OSError as error:
        return str(error.strerror)
    with file:
        if not _DURABLE.fullmatch(relative):
            return "it is none of inspectd's own files"
        archive.add_file(f"state/{relative}", file)
    return ""


def _add_journal(archive: Writer, path: Path, scratch: Path) -> JournalPart | None:
    """None where there is none yet."""
    if not require_plain_journal(path):
        return None
    with tempfile.TemporaryDirectory(prefix=".inspectd-", dir=scratch) as folder:
        taken = Path(folder) / JOURNAL
        copied = copy_journal(path, taken)
        with open_plain(taken) as file:
            archive.add_file(f"state/{JOURNAL}", file)
    return JournalPart(copied.id, copied.last_seq)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(one.name for one in entries)


def _kind(name: str, folder: int) -> int:
    return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _is_link(name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        return _kind(name, folder) == stat.S_IFLNK
    return False


def require_plain_journal(path: Path) -> bool:
    """Whether there is a journal, for SQLite is given names and follows links.

    Raises:
        PermanentError: it is a link or a pipe, or cannot be read.
    """
    try:
        if path.parent.is_symlink():
            raise PermanentError(f"{path.parent} is a symbolic link: move the folder itself there")
        open_plain(path).close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PermanentError(f"the journal {path} cannot be read: {error.strerror}") from error
    return True


def walk(folder: Path) -> Iterator[tuple[Path, list[str], int]]:
    """Each folder in a station's own that is not hidden, the names in it that are no folders
    (links to such are none), and a descriptor of it that holds until the next. No link is followed,
    not even in place of the station's folder, and not one that was put there a moment ago.

    Raises:
        PermanentError: the station's folder is a link, or a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise PermanentError(
                f"{error.filename} cannot be read: {error.strerror}; try sudo"
            ) from error

    if folder.is_symlink():
        raise PermanentError(f"{folder} is a symbolic link: move the folder itself there")
    try:
        for directory, folders, _, descriptor in os.fwalk(folder, onerror=refuse):
            inner = [name for name in sorted(folders) if not _is_link(name, descriptor)]
            names = [name for name in _names(descriptor) if name not in inner]
            folders[:] = [name for name in inner if not name.startswith(".")]
            yield Path(directory), names, descriptor
    except OSError as error:
        refuse(error)


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
        made = _FORMAT.read(raw)
        if made.format > FORMAT:
            raise PermanentError(
                f"{archive.path} was made by a newer inspectd ({made.inspectd}; its format is "
                f"{made.format}, this one knows {FORMAT}): install that version"
            )
        manifest = _MANIFEST.read(raw)
    except JsonError as error:
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
                with (folder / inner).open("xb") as file:
                    archive.unpack(member, file)
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
        holder = in_use(directory / JOURNAL)
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
        self._station_file = manifest.station_file
        self._targets = {self._target(member.name): member for member in manifest.members}
        self._aside: list[Path] = []
        self._stamp = f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"

    def _target(self, name: str) -> Path:
        top, _, rest = name.partition("/")
        return (self._config_dir if top == "config" else self._directory) / rest

    def obstacles(self) -> list[Path]:
        """What is there and is not as in the backup; in the station's folder, also what the backup
        has not.
        """
        if self._directory.is_symlink():
            return [self._directory]
        found = [
            path
            for path, member in self._targets.items()
            if os.path.lexists(path) and not _is_already(path, member)
        ]
        for directory, names, _ in walk(self._directory):
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

        As root it may be done against the will of the service's user, whose folder it is done in.
        What is guaranteed then: until it is complete, everything lies in a folder that is root's
        and closed; owners and rights are given to descriptors, never to names; and whatever the
        user renames or puts in the way meanwhile, nothing is written, given away or opened up
        outside of the folder that `storage.directory` names. That folder's own path, and the
        settings', nobody but root must be able to change.

        Returns:
            Where that lies which was in the way.

        Raises:
            PermanentError: a folder or file cannot be written.
        """
        made: list[Path] = []
        try:
            made += [*_make_folders(self._config_dir, None)]
            made += [*_make_folders(self._directory.parent, _owner())]
            with (
                _opened_folder(self._config_dir) as config_dir,
                _opened_folder(self._directory.parent) as storage,
                _staging(config_dir) as settings,
                _staging(storage) as own,
            ):
                owner = _owner_of(storage)
                self._unpack(settings, own, owner)
                os.sync()
                self._move_aside(obstacles)
                _merge(own, storage)
                _merge(settings, config_dir, last=self._station_file)
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

    def _unpack(self, settings: int, own: int, owner: tuple[int, int] | None) -> None:
        """Into two staging folders, with the owners and rights that everything is to have."""
        for target, member in self._targets.items():
            private = self._archive.is_private(member.name)
            mode = 0o600 if private else 0o644
            if not member.name.startswith("config/"):
                path = target.relative_to(self._directory.parent)
                with _created(own, path, owner, mode, owner) as file:
                    self._archive.unpack(member, file)
                continue
            path = target.relative_to(self._config_dir)
            # What systemd hands over to the service is root's alone, as all settings are root's;
            # another secret is read by the service itself, which must not change it.
            group = None
            if owner and owner[0] != 0 and private and CREDENTIALS not in path.parts:
                group, mode = (0, owner[1]), 0o640
            with _created(settings, path, None, mode, group) as file:
                self._archive.unpack(member, file)

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
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size != member.length:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == member.sha256
    except PermissionError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}; try sudo") from error
    except OSError:  # no plain file
        return False


def _owner() -> tuple[int, int] | None:
    """User and group that a new folder for stations is to have; None for those of this process."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam("inspectd")
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def _owner_of(storage: int) -> tuple[int, int] | None:
    """The same of what lies in an open one."""
    if os.geteuid() != 0:
        return None
    facts = os.fstat(storage)
    return facts.st_uid, facts.st_gid


def _make_folders(folder: Path, owner: tuple[int, int] | None) -> Iterator[Path]:
    """With those above it; yields each that was made.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with _opened_folder(path.parent) as parent:
            os.close(_new_folder(parent, path.name, owner))
        yield path


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """A descriptor of a folder whose path is trusted."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _inner_folder(parent: int, name: str) -> int:
    """A descriptor of a folder in another, which is no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=parent)


def _new_folder(
    parent: int, name: str, owner: tuple[int, int] | None, mode: int | None = None
) -> int:
    """A descriptor of a folder just made. The one of the secrets is closed to others.

    Raises:
        OSError: it cannot be made, or somebody has put another one in its place.
    """
    os.mkdir(name, 0o700, dir_fd=parent)
    descriptor = _inner_folder(parent, name)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, "somebody has replaced the folder just made", name)
        os.fchmod(descriptor, mode or (0o700 if name == CREDENTIALS else 0o755))
        if owner is not None:
            os.fchown(descriptor, *owner)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _staging(parent: int) -> Iterator[int]:
    """A descriptor of a folder that only this user may enter, as long as the block lasts. Whoever
    owns the folder above may rename it, and gains nothing: by its name it is only removed.
    """
    name = f".restore-{secrets.token_hex(8)}"
    descriptor = _new_folder(parent, name, None, 0o700)
    try:
        yield descriptor
    finally:
        for left in _names(descriptor):
            if _kind(left, descriptor) == stat.S_IFDIR:
                shutil.rmtree(left, dir_fd=descriptor)
            else:
                os.unlink(left, dir_fd=descriptor)
        os.close(descriptor)
        with suppress(OSError):  # it was renamed
            os.rmdir(name, dir_fd=parent)


@contextmanager
def _created(
    root: int,
    path: Path,
    folder_owner: tuple[int, int] | None,
    mode: int,
    owner: tuple[int, int] | None,
) -> Iterator[BinaryIO]:
    """A new file in a staging folder, with the folders above it."""
    folder = os.dup(root)
    try:
        for name in path.parent.parts:
            try:
                inner = _inner_folder(folder, name)
            except FileNotFoundError:
                inner = _new_folder(folder, name, folder_owner)
            os.close(folder)
            folder = inner
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)  # whatever the user's umask
        yield file


def _merge(source: int, target: int, last: str = "") -> None:
    """Move what is in one folder into another; what is there already stays.

    Args:
        source: descriptor of a staging folder, or of one in it.
        target: descriptor.
        last: the name that is moved when all else is there. Of an index and its pictures, the
            index is.
    """
    for name in sorted(_names(source), key=lambda one: (one == last, one == INDEX, one)):
        try:
            there = _kind(name, target)
        except FileNotFoundError:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            continue
        if _kind(name, source) == stat.S_IFDIR:
            inner = _inner_folder(source, name)
            try:
                there_too = _inner_folder(target, name)
                try:
                    _merge(inner, there_too)
                finally:
                    os.close(there_too)
            finally:
                os.close(inner)
        elif there != stat.S_IFREG:
            raise FileExistsError(errno.EEXIST, "somebody has put something else there", name)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(str(path) for path in paths[:MOST_NAMED]) + more
