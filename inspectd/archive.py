"""The pictures of chosen verdicts on disk, for whoever asks later what was wrong with a part.

Each picture is kept with its map and its verdict, as three files of one name; beyond the quota the
oldest go. A picture is no verdict: all is done on a thread of its own, and whatever fails there
costs pictures and nothing else. For the same reason nothing is forced to the disk, which spares an
SD card: files appear whole, and a power cut may cost the last of them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from inspectd.errors import TransientError
from inspectd.payload import VerdictPayload, encode
from inspectd.records import FloatMap, Frame, Image, Inspection, Verdict
from inspectd.settings import ArchiveSettings

_logger = logging.getLogger(__name__)

MAP_LIMIT = 10_000
"""What a map has at the limit: exact enough to compute with, bright enough to be looked at."""
JPEG_QUALITY = 90
WAITING_BYTES = 16 << 20
"""Pictures that wait may have so many bytes together; beyond, the oldest are left out."""
RESERVED_BYTES = 64 << 20
"""Pictures leave so much of the disk free, whatever their quota: the journal must never be the
first to find it full."""
RETRY_S = 30.0
"""When pictures cannot be kept, it is tried again after so long, also without a new one."""

_BATCH = 0.02
"""Share of the quota that is cleared at once when it is reached."""
_BLOCK = 4096
_PART_LENGTH = 64
_TEMPORARY = ".writing-"
_SUFFIXES = ("png", "jpg", "map.png", "json")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_OWN_NAME = re.compile(
    rf"(\d{{6}}-\d{{9,}}-(?:{'|'.join(Verdict)})(?:-[A-Za-z0-9_-]{{1,{_PART_LENGTH}}})?)"
    rf"\.(?:{'|'.join(map(re.escape, _SUFFIXES))})"
)


class PictureNotKept(TransientError):
    """A picture could not be kept (disk full, folder not writable, larger than the quota)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A picture to be kept; of a frame with two, only the one that is."""

    verdict: VerdictPayload
    picture: Image
    map: FloatMap | None


class Archive:
    """Keeps the pictures that the settings ask for; safe to call from several threads."""

    def __init__(
        self,
        directory: Path,
        settings: ArchiveSettings,
        tell: Callable[[str], None],
    ) -> None:
        """Args:
        directory: of the pictures, made when it is needed; only one process may write there.
        settings: which pictures are kept, and how.
        tell: called from the archive's thread with each change of `trouble`.
        """
        self._folder = _Folder(directory)
        self._settings = settings
        self._tell = tell
        self._orders: deque[_Order] = deque()
        self._waiting_bytes = 0
        self._overrun = 0
        self._picture_bytes = 0
        self._trouble = ""
        self._dropped = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    @property
    def dropped(self) -> int:
        """How many pictures were to be kept and were not, since the start."""
        with self._changed:
            return self._dropped

    @property
    def trouble(self) -> str:
        """Why pictures are not kept at present and what to do, for a person; else empty."""
        return self._trouble

    @property
    def wants_whole(self) -> bool:
        """Whether any verdict's picture may be kept, so that whole pictures are worth taking."""
        settings = self._settings
        return settings.max_mb > 0 and (bool(settings.keep) or settings.margin > 0)

    def wanted(self, verdict: VerdictPayload) -> bool:
        """Whether this verdict's picture is to be kept."""
        settings = self._settings
        if settings.max_mb <= 0:
            return False
        close = (
            verdict.verdict == Verdict.PASS
            and verdict.margin is not None
            and verdict.margin < settings.margin
        )
        return close or verdict.verdict in settings.keep

    def start(self) -> None:
        """Begin to keep pictures; the folder is looked through meanwhile."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Keep those that wait, for so long at most; later ones are not taken."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._changed:
            left = len(self._orders)
            self._orders.clear()
            self._dropped += left
        if left:
            _logger.warning("%d pictures were not kept: the service stops", left)

    def adopt(self, settings: ArchiveSettings) -> None:
        """Follow other settings from now on; a lower quota holds from the next picture on."""
        self._settings = settings

    def offer(self, verdict: VerdictPayload, frame: Frame | None, inspection: Inspection) -> None:
        """Keep the picture of a committed verdict if it is wanted. Never waits, never fails.

        Args:
            verdict: with its ``seq``.
            frame: its picture, the whole one where there is one; without a frame nothing is kept.
            inspection: its map.
        """
        if frame is None or not self.wanted(verdict):
            return
        picture = frame.pixels if frame.whole is None else frame.whole
        with self._changed:
            if self._stopping:
                self._dropped += 1
                return
            self._orders.append(_Order(verdict, picture, inspection.map))
            self._waiting_bytes += picture.nbytes
            overrun_before = self._overrun
            while self._waiting_bytes > WAITING_BYTES and len(self._orders) > 1:
                self._take_order()
                self._overrun += 1
                self._dropped += 1
            overrun_begins = self._overrun and not overrun_before
            self._changed.notify()
        if overrun_begins:
            _logger.warning(
                "pictures come faster than they can be written: the oldest that wait are left out"
            )

    def free_room(self, wanted_bytes: int) -> int:
        """Delete the oldest pictures at once, because something else needs the disk.

        Returns:
            The bytes that became free: fewer when there were no more, or they cannot be deleted.
        """
        freed = self._folder.free(wanted_bytes)
        if freed:
            _logger.warning(
                "the oldest pictures were deleted, %.1f MB: the disk of %s is full",
                freed / 1e6,
                self._folder.directory,
            )
        return freed

    # ---- the archive's own thread --------------------------------------------------------------

    def _run(self) -> None:
        self._attempt(None)
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._orders or self._stopping, RETRY_S if self._trouble else None
                )
                if self._stopping and not self._orders:
                    return
                order = self._take_order() if self._orders else None
                overrun = 0 if self._orders else self._overrun
                self._overrun -= overrun
            if overrun:
                _logger.warning("%d pictures were left out; all are written again", overrun)
            self._attempt(order)

    def _take_order(self) -> _Order:
        """The oldest; the condition's lock is held."""
        order = self._orders.popleft()
        self._waiting_bytes -= order.picture.nbytes
        return order

    def _attempt(self, order: _Order | None) -> None:
        """Keep a picture, or without one see whether it could be done."""
        try:
            self._report(self._trouble_with(order))
        except Exception:
            # No picture is worth the service; its verdict is in the journal.
            _logger.exception("unexpected error in the picture archive")

    def _trouble_with(self, order: _Order | None) -> str:
        try:
            self._keep_or_try(order)
        except Exception as error:
            with self._changed:
                self._dropped += order is not None
            if not isinstance(error, PictureNotKept):
                raise
            return f"pictures are not kept: {error}"
        return ""

    def _keep_or_try(self, order: _Order | None) -> None:
        settings = self._settings
        self._folder.survey()
        if order is not None:
            self._keep(order, settings)
        elif self.wants_whole:
            self._folder.try_out(self._picture_bytes, _quota(settings))

    def _keep(self, order: _Order, settings: ArchiveSettings) -> None:
        files = {}
        if order.map is not None:
            files["map.png"] = _encoded(".png", _map_steps(order.map))
        if settings.format == "jpeg":
            quality = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
            files["jpg"] = _encoded(".jpg", order.picture, quality)
        else:
            files["png"] = _encoded(".png", order.picture)
        # Last, so that whoever sees it finds the others.
        files["json"] = msgspec.json.format(encode(order.verdict), indent=2) + b"\n"
        self._picture_bytes = _size(files)
        self._folder.put(*_name(order.verdict), files, _quota(settings))

    def _report(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            _logger.error("%s", trouble)
        else:
            _logger.info("pictures are kept again; %d were not, since the start", self.dropped)
        self._tell(trouble)


class _Folder:
    """The files and their quota; safe to call from several threads.

    Of the files only the sizes of whole days are remembered, and the names of the oldest day.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._days: dict[str, int] = {}
        self._listed_day = ""
        self._listed: deque[tuple[str, int]] = deque()
        self._surveyed = False
        self._cannot_delete = False
        self._lock = threading.Lock()

    def survey(self) -> None:
        """Once: find what is there, and delete what a crash has left half written.

        Raises:
            PictureNotKept: the folder cannot be read.
        """
        if self._surveyed:
            return
        with _as_not_kept(self.directory):
            for day in self._sweep():
                with self._lock:
                    self._days[day] = sum(self._groups(day).values())
            self._surveyed = True

    def put(self, day: str, stem: str, files: Mapping[str, bytes], quota: int) -> None:
        """Write the files of one picture, all or none, in the order given.

        Args:
            day: the folder within the directory.
            stem: of the files' names.
            files: content by suffix.
            quota: bytes, for all pictures.

        Raises:
            PictureNotKept: none was written.
        """
        size = _size(files)
        with _as_not_kept(self.directory):
            self._make_room(size, quota)
            targets = {
                self.directory / f"{_TEMPORARY}{suffix}": self.directory / day / f"{stem}.{suffix}"
                for suffix in files
            }
            try:
                for temporary, content in zip(targets, files.values(), strict=True):
                    temporary.write_bytes(content)
                with self._lock:
                    self._in_place(day, targets, size)
            except OSError:
                for path in (*targets, *targets.values()):
                    with suppress(OSError):  # the first failure is the one to tell of
                        path.unlink()
                raise

    def _in_place(self, day: str, targets: Mapping[Path, Path], size: int) -> None:
        """Under the lock: nobody may delete the day's folder, or half of the picture, meanwhile."""
        (self.directory / day).mkdir(exist_ok=True)
        for temporary, target in targets.items():
            temporary.replace(target)
        self._days[day] = self._days.get(day, 0) + size

    def try_out(self, size: int, quota: int) -> None:
        """Prove that a picture of so many bytes could be kept now.

        Raises:
            PictureNotKept: it could not.
        """
        trial = self.directory / f"{_TEMPORARY}trial"
        with _as_not_kept(self.directory):
            self._make_room(size, quota)
            try:
                trial.write_bytes(bytes(max(size, _BLOCK)))
            finally:
                with suppress(OSError):  # the first failure is the one to tell of
                    trial.unlink()

    def free(self, wanted: int) -> int:
        """Delete the oldest pictures until so many bytes are free; how many that were."""
        freed = 0
        try:
            with self._lock:
                for size in self._delete(wanted):
                    freed += size
        except OSError as error:
            if not self._cannot_delete:
                _logger.error("pictures cannot be deleted: %s", error)
            self._cannot_delete = True
        else:
            self._cannot_delete = False
        return freed

    def _make_room(self, size: int, quota: int) -> None:
        """Raises PictureNotKept or OSError when there is none for so many bytes."""
        if size > quota:
            raise PictureNotKept(
                f"one takes {size / 1e6:.1f} MB, archive.max_mb is {quota / 1e6:g}; raise it"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            over = sum(self._days.values()) + size - quota
            if over > 0:
                over = max(over, round(quota * _BATCH))
            # Asked once: some file systems count what was deleted as free only later.
            short = RESERVED_BYTES + size - _free_bytes(self.directory)
            freed = sum(self._delete(max(over, short)))
        if freed < short:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _delete(self, wanted: int) -> Iterator[int]:
        """Delete the oldest pictures, whole ones, until so many bytes are free or none is left.

        Yields:
            The bytes of each.
        """
        while wanted > 0 and self._days:
            day = min(self._days)
            if day != self._listed_day or not self._listed:
                self._list(day)
            if not self._listed:
                del self._days[day]
                with suppress(OSError):  # what a person has put there stays, and so its folder
                    (self.directory / day).rmdir()
                continue
            stem, size = self._listed[0]
            for suffix in _SUFFIXES:
                (self.directory / day / f"{stem}.{suffix}").unlink(missing_ok=True)
            self._listed.popleft()
            self._days[day] -= size
            wanted -= size
            yield size

    def _list(self, day: str) -> None:
        """Remember the names of a day, and its size as it is now: people delete pictures too."""
        groups = self._groups(day)
        self._listed_day = day
        self._listed = deque(sorted(groups.items()))
        self._days[day] = sum(groups.values())

    def _groups(self, day: str) -> dict[str, int]:
        """The pictures of a day: bytes by stem. Only this archive's own names."""
        groups: dict[str, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.directory / day) as files:
            for file in files:
                own = _OWN_NAME.fullmatch(file.name)
                if own and file.is_file(follow_symlinks=False):
                    size = _on_disk(file.stat(follow_symlinks=False).st_size)
                    groups[own[1]] = groups.get(own[1], 0) + size
        return groups

    def _sweep(self) -> list[str]:
        """Delete what was half written; the days that there are, the oldest first."""
        days = []
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    days += [entry.name] if _DAY.fullmatch(entry.name) else []
                elif entry.name.startswith(_TEMPORARY):
                    Path(entry.path).unlink()
        return sorted(days)


@contextmanager
def _as_not_kept(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = (
            "make room on that disk"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}
            else "the folder must be writable for the user the service runs as"
        )
        raise PictureNotKept(f"{error.strerror or error}: {directory}; {advice}") from error


def _name(verdict: VerdictPayload) -> tuple[str, str]:
    """Folder and stem of the files: they sort by time, and tell what they are.

    A part's id comes from anyone, so only harmless characters of it are left, and not too many.
    """
    instant = verdict.triggered_at.astimezone(UTC)
    stem = f"{instant:%H%M%S}-{verdict.seq:09d}-{verdict.verdict}"
    if verdict.part_id:
        stem += "-" + re.sub(r"[^A-Za-z0-9_-]+", "_", verdict.part_id)[:_PART_LENGTH]
    return f"{instant:%Y-%m-%d}", stem


def _map_steps(values: FloatMap) -> NDArray[np.uint16]:
    """The map in steps of the limit / `MAP_LIMIT`; what is no number must not look harmless."""
    top = np.iinfo(np.uint16).max
    steps = np.nan_to_num(values, nan=top, posinf=top).astype(np.float64) * MAP_LIMIT
    return np.clip(np.round(steps), 0, top).astype(np.uint16)


def _encoded(
    extension: str, pixels: Image | NDArray[np.uint16], options: tuple[int, ...] = ()
) -> bytes:
    written, data = cv2.imencode(extension, pixels, options)
    assert written, "every picture that was judged can be written"
    return data.tobytes()


def _quota(settings: ArchiveSettings) -> int:
    return round(settings.max_mb * 1e6)


def _size(files: Mapping[str, bytes]) -> int:
    return sum(_on_disk(len(content)) for content in files.values())


def _on_disk(size: int) -> int:
    """What a file of so many bytes takes of a disk, as most file systems have it."""
    return -(-size // _BLOCK) * _BLOCK


def _free_bytes(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
