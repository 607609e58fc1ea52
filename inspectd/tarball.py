"""Files of files: ``.tar.gz`` written whole or not at all, and read with suspicion.

Whoever reads one must expect that it was cut short, that its medium has damaged it, or that it was
made to do harm: a member is a plain file below the folder it is unpacked into, or is refused.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from inspectd.errors import PermanentError

MOST_MEMBERS = 1_000_000
LARGEST_CONTENT = 256 << 30
"""Bytes of all members together."""
_LEVEL = 1  # of compression: pictures are compressed already, and a Raspberry Pi is slow at more
_CHUNK = 1 << 20
_LONGEST_READ = 16 << 20  # tarfile reads headers of any announced length in one go
_PLAIN = {tarfile.REGTYPE, tarfile.AREGTYPE}


class Member(msgspec.Struct, frozen=True):
    """A file in it: its name with slashes, its length in bytes, its SHA-256 in hex."""

    name: str
    length: int
    sha256: str


def open_plain(path: Path | str, folder: int | None = None) -> io.BufferedReader:
    """Open a plain file to be read, and nothing else: for folders in which somebody who is not to
    be trusted may put a link, a pipe or a device, also in the moment before this. What is opened
    is what is looked at.

    Args:
        path: links in the folders above its last part are followed, unless it is a mere name.
        folder: descriptor of the folder that a mere name is in.

    Raises:
        OSError: it is no plain file, is not there, or cannot be read; `strerror` says it in words.
    """
    # Without O_NONBLOCK, a pipe would keep us until somebody writes into it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a plain file", str(path))


class Writer:
    """An open archive; `members` are those that it has so far."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        """Use `writing`."""
        self._tar = tar
        self.members: list[Member] = []

    def add_content(self, name: str, content: bytes, *, private: bool = False) -> None:
        """``private`` members are for their owner alone."""
        self._add(name, io.BytesIO(content), len(content), time.time(), private=private)

    def add_file(self, name: str, file: BinaryIO, *, private: bool = False) -> None:
        """Add a plain file as it is now.

        Raises:
            PermanentError: it cannot be read whole.
        """
        facts = os.fstat(file.fileno())
        self._add(name, file, facts.st_size, facts.st_mtime, private=private)

    def _add(
        self, name: str, source: BinaryIO, length: int, modified: float, *, private: bool
    ) -> None:
        header = tarfile.TarInfo(name)
        header.size, header.mtime = length, int(modified)
        header.mode = 0o600 if private else 0o644
        hashed = _Hashed(name, source)
        self._tar.addfile(header, hashed)
        self.members.append(Member(name, length, hashed.digest.hexdigest()))


class _Hashed(io.RawIOBase):
    """Hands on what it reads, and computes its checksum by the way."""

    def __init__(self, name: str, source: BinaryIO) -> None:
        self._name = name
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        try:
            content = self._source.read(size)
        except OSError as error:  # not to be taken for one of the archive's own file
            raise PermanentError(f"{self._name} cannot be read: {error.strerror}") from error
        self.digest.update(content)
        return content


@contextmanager
def writing(path: Path, *, private: bool = False) -> Iterator[Writer]:
    """An archive that is at ``path`` when the block has ended, in place of what was there; if the
    block raises, nothing changes there.

    Args:
        path: of the archive.
        private: only its owner may read it.

    Raises:
        PermanentError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    mode = 0o600 if private else 0o666
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with (
                    # Without the temporary name in it.
                    gzip.GzipFile("", "wb", _LEVEL, file) as packed,
                    tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
                ):
                    yield Writer(tar)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise PermanentError(
            f"{path} cannot be written: {error.strerror or error}; choose another place, or make "
            "room there"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """An open archive whose headers have been read; nothing of it is believed yet.

    Attributes:
        unsound: why none of it must be unpacked, continuing a sentence that begins with the
            archive's name; empty when there is no such reason.
    """

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        """Use `reading`."""
        self.path = path
        self._tar = tar
        self._headers: dict[str, tarfile.TarInfo] = {}
        self.unsound = ""
        with self._suspicion():
            self._read_headers()

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    @property
    def names(self) -> set[str]:
        return set(self._headers)

    @property
    def length(self) -> int:
        """Bytes of all members together."""
        return sum(header.size for header in self._headers.values())

    def is_private(self, name: str) -> bool:
        """Whether only its owner may read it; of a member that is there."""
        return not self._headers[name].mode & 0o077

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member that is there.

        Raises:
            PermanentError: the archive is damaged.
        """
        with self._suspicion():
            source = self._tar.extractfile(self._headers[name])
        assert source is not None, "it is a plain file"
        left = self._headers[name].size
        while left:
            with self._suspicion():
                content = source.read(min(left, _CHUNK))
            if not content:
                raise PermanentError(f"{self.path} is damaged: it ends within {name}")
            left -= len(content)
            yield content

    def content(self, name: str, at_most: int) -> bytes:
        """The whole of a small member.

        Raises:
            PermanentError: the archive is damaged, or the member is larger than ``at_most``.
        """
        if self._headers[name].size > at_most:
            raise PermanentError(f"{self.path}: {name} is too large ({self._headers[name].size} B)")
        return b"".join(self.chunks(name))

    def verify(self, member: Member) -> None:
        """Raises PermanentError when the member is not what it was when it was packed."""
        for _ in self._verified(member):
            pass

    def unpack(self, member: Member, file: BinaryIO) -> None:
        """Write a member to an open file, and verify it by the way.

        Raises:
            PermanentError: the archive is damaged.
            OSError: it cannot be written.
        """
        for content in self._verified(member):
            file.write(content)

    def _verified(self, member: Member) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for content in self.chunks(member.name):
            digest.update(content)
            yield content
        if digest.hexdigest() != member.sha256:
            raise PermanentError(
                f"{self.path} is damaged: {member.name} is not what it was (its checksum differs); "
                "copy the file from its origin again, or take another backup"
            )

    def _read_headers(self) -> None:
        total = 0
        for header in self._tar:
            total += header.size
            if len(self._headers) >= MOST_MEMBERS or total > LARGEST_CONTENT:
                raise PermanentError(f"{self.path} is too large to be a backup")
            self.unsound = self.unsound or self._why_unsound(header)
            if header.type in _PLAIN:
                self._headers[header.name] = header
        folders = {str(parent) for name in self._headers for parent in PurePosixPath(name).parents}
        for name in sorted(folders & self._headers.keys()):
            self.unsound = self.unsound or f"has {name} both as a file and as a folder"

    def _why_unsound(self, header: tarfile.TarInfo) -> str:
        name = header.name
        if header.type not in _PLAIN or header.issparse():
            return f"has {name!r}, which is no plain file but a link, a folder or a device"
        parts = name.split("/")
        if not name.isprintable() or "\\" in name or any(part in {"", ".", ".."} for part in parts):
            return f"has {name!r}, which would be unpacked outside of its folder"
        if name in self._headers:
            return f"has {name!r} twice"
        return ""

    @contextmanager
    def _suspicion(self) -> Iterator[None]:
        with _damage_told(self.path):
            yield


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """An archive to be read.

    Raises:
        PermanentError: it cannot be read, is none, or is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror}") from error
    with file, closing(_Bounded(fileobj=file, mode="rb")) as packed:
        with _damage_told(path):
            tar = tarfile.open(fileobj=packed, mode="r:")  # noqa: SIM115 - closed below
        with tar:
            yield Reader(path, tar)


class _Bounded(gzip.GzipFile):
    """Reads no more at once than a sound archive needs."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise PermanentError(
            f"{path} is no backup, or it is damaged ({error}); copy it from its origin again, or "
            "take another one"
        ) from error
