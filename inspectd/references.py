"""The pictures of good parts that a program is judged by: a folder of PNG files and an index.

The pictures are the model; all else is derived from them. So nothing here may be half written or
quietly mended. A picture is on the disk, under a name made from its own pixels, before the index
names it, and the index is replaced as a whole: whatever stops a writer leaves the old index or the
new one, and at most pictures that no index names, which the next writer deletes. A lock file lets
one writer in at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from inspectd.durable import TEMPORARY, replace_file, sync_folder
from inspectd.errors import ReferencesError
from inspectd.records import Image
from inspectd.settings import RegionOfInterest
from inspectd.typed_json import JsonReader

Kept = TypeVar("Kept")
"""What is kept of a picture that was read."""

INDEX = "index.json"
LOCK = ".lock"
INDEX_SCHEMA = 1

_OWN_NAME = re.compile(r"[0-9a-f]{16}\.png")


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A picture as the index knows it.

    Attributes:
        file: its name in the folder: the checksum's first 16 digits and ``.png``.
        sha256: checksum of the pixels and their shape (see `pixel_checksum`).
        taken_at: UTC.
        origin: what it was taken from: a file name, or the camera's own name of the frame.
        settings_hash: of the settings it was taken with.
        width: pixels.
        height: pixels.
        anchor_only: removed from the references, and kept because the others are aligned to it.
    """

    file: Annotated[str, Meta(pattern=rf"^{_OWN_NAME.pattern}$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    taken_at: Annotated[datetime, Meta(tz=True)]
    origin: str
    settings_hash: str
    width: int
    height: int
    anchor_only: bool = False


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The index file.

    Attributes:
        schema: of this file; another one is refused.
        roi: the region of interest that all pictures were cut with; None for whole frames.
        anchor: file of the picture that the others are aligned to: the first one ever taught.
            It stays the same when others go, or the regions would move.
    """

    schema: int = INDEX_SCHEMA
    roi: RegionOfInterest | None = None
    anchor: str | None = None
    entries: tuple[Entry, ...] = ()

    def require_consistent(self) -> None:
        """Raises ValueError when the entries cannot all be meant."""
        files = [entry.file for entry in self.entries]
        twice = sorted({file for file in files if files.count(file) > 1})
        if twice:
            raise ValueError(f"it lists {', '.join(twice)} twice")
        if (self.anchor not in files) if files else (self.anchor is not None):
            raise ValueError(f"its anchor {self.anchor} is not in its list")


_INDEX: JsonReader[Index] = JsonReader(Index)


@dataclass(frozen=True, slots=True, eq=False)
class NewReference:
    """A picture to be added.

    Attributes:
        pixels: uint8 (height, width) or (height, width, 3): the region of interest at full
            resolution, as captured.
        taken_at: UTC.
        origin: a file name, or the camera's own name of the frame.
        settings_hash: of the settings it was taken with.
    """

    pixels: Image
    taken_at: datetime
    origin: str
    settings_hash: str


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a picture to be added.

    Attributes:
        origin: as it was given.
        file: the picture's file in the folder.
        duplicate_of: origin of the reference that has the same pixels; None when it was added.
    """

    origin: str
    file: str
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reference(Generic[Kept]):
    """A usable reference: its file in the folder, its checksum and what was kept of its pixels."""

    file: str
    sha256: str
    kept: Kept


@dataclass(frozen=True, slots=True, eq=False)
class References(Generic[Kept]):
    """What a program's folder holds.

    Attributes:
        pictures: the usable ones, in the order they were taught.
        anchor: the picture that the others are aligned to, a reference itself or not; None
            without references, or where it is damaged.
        roi: the region of interest that they were cut with; None for whole frames.
        problems: for a person, what is not usable and what to do about it.
    """

    pictures: tuple[Reference[Kept], ...] = ()
    anchor: Reference[Kept] | None = None
    roi: RegionOfInterest | None = None
    problems: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """12 hex digits over the checksums of the usable pictures, whatever their order."""
        checksums = sorted(picture.sha256 for picture in self.pictures)
        return sha256("\n".join(checksums).encode()).hexdigest()[:12]


class ReferenceStore:
    """The references of one program on one station.

    Attributes:
        directory: the program's own folder; made by the first `add`.
    """

    def __init__(self, directory: Path, command: str = "teach") -> None:
        """Open nothing yet.

        Args:
            directory: as above.
            command: what a technician fills and prunes this store with.
        """
        self.directory = directory
        self._command = command

    def load(self, keep: Callable[[Image], Kept]) -> References[Kept]:
        """Read and verify everything. A picture that is damaged or missing is left out and named
        in ``problems``; whether enough are left is for the caller to judge.

        Args:
            keep: is given each picture as it is read, and returns what is to be kept of it: no
                more than one is in memory as a whole, unless it returns the picture itself.

        Raises:
            ReferencesError: the index is damaged or lost, or the folder cannot be read.
        """
        with self._locked(fcntl.LOCK_SH):
            index = self._read_index()
            found: dict[str, Reference[Kept]] = {}
            problems = []
            for entry in index.entries:
                try:
                    found[entry.file] = self._read(entry, keep)
                except ReferencesError as damage:
                    problems.append(str(damage))
            problems += self._unlisted(index)
        return References(
            pictures=tuple(
                found[entry.file]
                for entry in index.entries
                if entry.file in found and not entry.anchor_only
            ),
            anchor=found.get(index.anchor or ""),
            roi=index.roi,
            problems=tuple(problems),
        )

    def check(self) -> References[None]:
        """`load` without keeping the pictures.

        Raises:
            ReferencesError: the index is damaged or lost, or the folder cannot be read.
        """
        return self.load(lambda _pixels: None)

    def entries(self) -> tuple[Entry, ...]:
        """The references as the index lists them, in the order they were taught; no picture is
        opened.

        Raises:
            ReferencesError: the index is damaged or lost, or the folder cannot be read.
        """
        with self._locked(fcntl.LOCK_SH):
            return tuple(entry for entry in self._read_index().entries if not entry.anchor_only)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody adds or removes within the block: for whoever copies the folder as it is.

        Raises:
            ReferencesError: the folder cannot be read.
        """
        with self._locked(fcntl.LOCK_SH):
            yield

    def add(
        self,
        pictures: Sequence[NewReference],
        roi: RegionOfInterest | None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Added, ...]:
        """Add pictures, all of them or none; the first ever becomes the anchor.

        Args:
            pictures: a picture with the pixels of one that is there is not added again.
            roi: the region of interest that they were cut with.
            progress: called with the number of pictures written so far.

        Returns:
            What became of each, in their order.

        Raises:
            ReferencesError: they do not fit the references that are there, the index is damaged or
                lost, or the disk refuses.
        """
        if not pictures:
            return ()
        self._make_directory()
        with self._locked(fcntl.LOCK_EX):
            index = self._read_index()
            _require_fit(index, pictures, roi, self.directory)
            # From here on the folder has an index, so that pictures without one mean a lost one.
            self._write_index(index)
            self._sweep(index)
            entries = {entry.file: entry for entry in index.entries}
            outcomes = []
            for count, new in enumerate(pictures, start=1):
                entry = _entry(new)
                known = entries.get(entry.file)
                if known is None or known.anchor_only:
                    entries[entry.file] = entry
                    outcomes.append(Added(new.origin, entry.file))
                else:
                    outcomes.append(Added(new.origin, entry.file, duplicate_of=known.origin))
                # A duplicate is written too: teaching a damaged picture again mends it.
                self._write(entry.file, _png(new))
                if progress:
                    progress(count)
            self._sync()
            anchor = index.anchor or next(iter(entries))
            self._write_index(Index(roi=roi, anchor=anchor, entries=tuple(entries.values())))
        return tuple(outcomes)

    def remove(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """Take references out, all that are named or none.

        The anchor's picture stays in the folder for the others' alignment; with the last
        reference, everything goes.

        Args:
            names: file names, or beginnings that only one file has.

        Returns:
            What was removed.

        Raises:
            ReferencesError: a name fits none or several, with the nearest; the index is damaged or
                lost, or the disk refuses.
        """
        if not names:
            return ()
        with self._locked(fcntl.LOCK_EX):
            index = self._read_index()
            listed = [entry for entry in index.entries if not entry.anchor_only]
            removed = {entry.file: entry for entry in (self._find(name, listed) for name in names)}
            left = _without(index, removed)
            self._write_index(left)
            self._sweep(left)
        return tuple(removed.values())

    # ---- reading -----------------------------------------------------------------------------

    def _read_index(self) -> Index:
        path = self.directory / INDEX
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return self._no_index()
        except OSError as error:
            raise _failed("read", path, error) from error
        try:
            index = _INDEX.read(raw)
            index.require_consistent()
        except ValueError as error:
            raise ReferencesError(
                f"the index of the references is damaged: {path}: {error}. Restore it from a "
                f"backup, or move {self.directory} away and teach again"
            ) from error
        if index.schema != INDEX_SCHEMA:
            raise ReferencesError(
                f"the index of the references has the schema {index.schema}, this version of "
                f"inspectd reads {INDEX_SCHEMA}: {path}. Use the version that wrote it, or move "
                f"{self.directory} away and teach again"
            )
        return index

    def _no_index(self) -> Index:
        """An empty index, unless the folder shows that there was one."""
        pictures = [name for name in self._names() if _OWN_NAME.fullmatch(name)]
        if pictures:
            raise ReferencesError(
                f"the index of the references is lost: {self.directory / INDEX} is not there, but "
                f"{len(pictures)} pictures are. Restore it from a backup, or move "
                f"{self.directory} away and teach again"
            )
        return Index()

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failed("read", self.directory, error) from error

    def _read(self, entry: Entry, keep: Callable[[Image], Kept]) -> Reference[Kept]:
        """Raises ReferencesError when the picture is not what the index says."""
        path = self.directory / entry.file
        advice = f"restore it, or take it out with {self._command} --remove {entry.file}"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise ReferencesError(
                f"{path} (from {entry.origin}) is in the index but not in the folder; {advice}"
            ) from None
        except OSError as error:
            raise ReferencesError(f"{path} cannot be read: {error.strerror}; {advice}") from error
        pixels = _decoded(raw)
        if pixels is None:
            raise ReferencesError(
                f"{path} (from {entry.origin}) is damaged: it is no picture any more; {advice}"
            )
        if pixel_checksum(pixels) != entry.sha256:
            raise ReferencesError(
                f"{path} (from {entry.origin}) is damaged: its pixels are not those that were "
                f"taught; {advice}"
            )
        return Reference(entry.file, entry.sha256, keep(pixels))

    def _unlisted(self, index: Index) -> Iterator[str]:
        listed = {entry.file for entry in index.entries}
        for name in self._names():
            path = self.directory / name
            if _OWN_NAME.fullmatch(name) and name not in listed:
                yield (
                    f"{path} is in the folder but not in the index, as after an interrupted teach; "
                    "it is not used, and the next teach deletes it"
                )
            elif path.suffix.lower() == ".png" and name not in listed:
                yield (
                    f"{path} is in the folder but not in the index; it is not used. Move it away, "
                    f"or teach it with {self._command} --from-folder"
                )

    # ---- writing -----------------------------------------------------------------------------

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed("make", self.directory, error) from error

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the folder's lock; the system gives it back if this process dies. A folder that is
        not there, or may only be read and was never written, needs none.
        """
        path = self.directory / LOCK
        try:
            descriptor = _open_lock(path, kind)
        except OSError as error:
            raise _failed("lock", path, error) from error
        if descriptor is None:
            yield
            return
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _find(self, name: str, entries: Sequence[Entry]) -> Entry:
        """The one reference with that file name, or whose file name begins so."""
        fitting = [entry for entry in entries if name and entry.file.startswith(name)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ReferencesError(
                f"more than one reference begins with {name!r}: {_listed(fitting)}; give more of it"
            )
        if not entries:
            raise ReferencesError(f"there is no reference {name!r}: there are none at all")
        known = {key: entry for entry in entries for key in (entry.file, entry.origin)}
        nearest = [known[key] for key in get_close_matches(name, known, n=3, cutoff=0.5)]
        advice = (
            f"nearest: {_listed(dict.fromkeys(nearest))}"
            if nearest
            else f"see {self._command} --list"
        )
        raise ReferencesError(f"there is no reference {name!r}; {advice}")

    def _write_index(self, index: Index) -> None:
        raw = msgspec.json.format(msgspec.json.encode(index), indent=2)
        self._write(INDEX, raw + b"\n")
        self._sync()

    def _write(self, name: str, content: bytes) -> None:
        """Put a whole file in place, or leave what was there."""
        path = self.directory / name
        try:
            replace_file(path, content)
        except OSError as error:
            raise _failed("write", path, error) from error

    def _sync(self) -> None:
        """Make the names in the folder as durable as the files."""
        try:
            sync_folder(self.directory)
        except OSError as error:
            raise _failed("write", self.directory, error) from error

    def _sweep(self, index: Index) -> None:
        """Delete this store's own files that the index does not name; never anyone else's."""
        listed = {entry.file for entry in index.entries}
        for name in self._names():
            leftover = _OWN_NAME.fullmatch(name) and name not in listed
            if leftover or name.startswith(TEMPORARY):
                try:
                    (self.directory / name).unlink(missing_ok=True)
                except OSError as error:
                    raise _failed("delete", self.directory / name, error) from error


def pixel_checksum(pixels: Image) -> str:
    """SHA-256 over shape and pixels, in hex: the same picture has the same one, whichever program
    or version wrote its file.
    """
    shape = "x".join(str(length) for length in pixels.shape)
    digest = sha256(f"{shape}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _open_lock(path: Path, kind: int) -> int | None:
    """A descriptor to lock; None where a reader finds no lock file and a writer no folder."""
    flags = os.O_RDONLY if kind == fcntl.LOCK_SH else os.O_RDWR | os.O_CREAT
    try:
        # Root opens it as well, in a folder of the service's user: no link, no pipe to wait at.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o664)
    except FileNotFoundError:
        return None


def _decoded(raw: bytes) -> Image | None:
    """The pixels as they were written, grey or in colour; None when there is no picture in it."""
    if not raw:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _png(new: NewReference) -> bytes:
    written, data = cv2.imencode(".png", new.pixels)
    if not written:
        raise ReferencesError(f"{new.origin} cannot be written as PNG")
    return data.tobytes()


def _entry(new: NewReference) -> Entry:
    checksum = pixel_checksum(new.pixels)
    return Entry(
        file=f"{checksum[:16]}.png",
        sha256=checksum,
        taken_at=new.taken_at.astimezone(UTC),
        origin=new.origin,
        settings_hash=new.settings_hash,
        width=new.pixels.shape[1],
        height=new.pixels.shape[0],
    )


def _require_fit(
    index: Index,
    pictures: Sequence[NewReference],
    roi: RegionOfInterest | None,
    directory: Path,
) -> None:
    """References of one program are cut alike. Raises ReferencesError naming what differs."""
    first = index.entries[0] if index.entries else _entry(pictures[0])
    if index.entries and index.roi != roi:
        raise ReferencesError(
            f"the references in {directory} were cut with the region of interest "
            f"{_in_words(index.roi)}, these with {_in_words(roi)}: restore it in the program file, "
            "or remove the old references and teach again"
        )
    for new in pictures:
        height, width = new.pixels.shape[:2]
        if (width, height) != (first.width, first.height):
            raise ReferencesError(
                f"{new.origin} has {width} x {height} pixels, the references have {first.width} x "
                f"{first.height} (as {first.origin}): take all with one camera mode, or remove the "
                "old references and teach again"
            )


def _in_words(roi: RegionOfInterest | None) -> str:
    return f"[{roi.x}, {roi.y}, {roi.width}, {roi.height}]" if roi else "none (the whole frame)"


def _listed(entries: Sequence[Entry] | dict[Entry, None]) -> str:
    return ", ".join(f"{entry.file} (from {entry.origin})" for entry in entries)


def _without(index: Index, removed: dict[str, Entry]) -> Index:
    """The index after a removal: the anchor stays as long as a reference does."""
    kept = []
    for entry in index.entries:
        if entry.file not in removed:
            kept.append(entry)
        elif entry.file == index.anchor:
            kept.append(msgspec.structs.replace(entry, anchor_only=True))
    if all(entry.anchor_only for entry in kept):
        return Index()
    return msgspec.structs.replace(index, entries=tuple(kept))


def _failed(action: str, path: Path, error: OSError) -> ReferencesError:
    return ReferencesError(f"cannot {action} {path}: {error.strerror or error}")
