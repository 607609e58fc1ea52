"""The labelled pictures that `inspectd evaluate` measures on, recognised by the layout of a folder.

- A labelled set: ``good/`` (references), ``test/good/``, ``test/KIND/`` (bad parts), and
  ``mask/KIND/`` where it is known which places are bad.
- Views without defects: ``VIEW-LIGHT_REPEAT``, flat; repeats 1 to 3 teach, the others are judged.
- Pairs with boxes: ``NAME_template``, ``NAME_test`` and ``NAME_boxes.txt``, flat.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inspectd.camera.files import find_images, read_image
from inspectd.errors import PermanentError, PictureUnreadable
from inspectd.imaging import preprocess
from inspectd.records import GreyImage, Image

TAUGHT_REPEATS = 3
_VIEW = re.compile(r"(?P<view>.+)-(?P<light>[^-_]+)_(?P<repeat>\d+)")
_TEMPLATE, _TEST, _BOXES = "_template", "_test", "_boxes.txt"

BoxPixels = tuple[int, int, int, int]
"""x1, y1, x2, y2."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One file, as it was taken."""

    path: Path
    pixels: Image

    def reduced(self, longest: int) -> GreyImage:
        """Grey, its longest side reduced to so many pixels."""
        return preprocess.reduce(preprocess.grey(self.pixels), longest)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """Good parts to teach, good and bad ones to judge.

    Attributes:
        masks: by the path of a bad picture, the file that is white where the part is bad.
    """

    name: str
    references: tuple[Picture, ...]
    good: tuple[Picture, ...]
    bad: tuple[Picture, ...]
    masks: dict[Path, Path]

    @property
    def judged(self) -> tuple[Picture, ...]:
        """All that is not taught."""
        return self.good + self.bad


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Repeated pictures of one part without defects."""

    name: str
    references: tuple[Picture, ...]
    judged: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A golden picture, a picture to judge, and boxes around what is bad in that one."""

    name: str
    template: Picture
    test: Picture
    boxes: tuple[BoxPixels, ...]


@dataclass(frozen=True, slots=True)
class Folders:
    """Where there is something to measure on.

    Attributes:
        sets: folders of labelled sets.
        views: folders of views without defects.
        pairs: folders of pairs with boxes.
    """

    sets: tuple[Path, ...]
    views: tuple[Path, ...]
    pairs: tuple[Path, ...]


def find_folders(data: Path) -> Folders:
    """What there is below a folder, each in the order of the names.

    Raises:
        PermanentError: nothing.
    """
    folders = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    sets = [path for path in folders if is_labelled_set(path)]
    flat = [path for path in folders if path not in sets]
    found = Folders(
        sets=tuple(sets),
        views=tuple(path for path in flat if view_files(path)),
        pairs=tuple(path for path in flat if pair_names(path)),
    )
    if not (found.sets or found.views or found.pairs):
        raise PermanentError(
            f"{data}: no labelled pictures there; wanted are folders NAME/good (references), "
            "NAME/test/good and NAME/test/KIND (bad parts)"
        )
    return found


# ---- labelled sets -----------------------------------------------------------------------------


def is_labelled_set(folder: Path) -> bool:
    """Whether a folder has the layout of one."""
    return (folder / "good").is_dir() and (folder / "test" / "good").is_dir()


def load_set(folder: Path, longest: int) -> LabelledSet:
    """Read every picture of a labelled set.

    Args:
        folder: of the set.
        longest: side to which the pictures will be reduced.

    Raises:
        PermanentError: there is nothing to teach or nothing to judge, a picture cannot be read, or
            is not of the others' shape.
    """
    test = folder / "test"
    kinds = sorted(kind for kind in test.iterdir() if kind.is_dir() and kind.name != "good")
    references = read_folders(folder / "good")
    good, bad = read_folders(test / "good"), read_folders(*kinds)
    if not (references and good and bad):
        raise PermanentError(
            f"{folder}: {len(references)} references, {len(good)} good and {len(bad)} bad "
            "pictures; wanted is 1 at least of each, in good/, test/good/ and test/KIND/"
        )
    require_one_shape([*references, *good, *bad], longest)
    return LabelledSet(folder.name, references, good, bad, dict(find_masks(folder, bad)))


def find_masks(folder: Path, bad: tuple[Picture, ...]) -> Iterator[tuple[Path, Path]]:
    """The path of each bad picture that has a mask, with that of the mask."""
    masks = folder / "mask"
    if masks.is_dir():
        by_name = {path.with_suffix(""): masks / path for path in find_images(masks)}
        for picture in bad:
            name = picture.path.relative_to(folder / "test").with_suffix("")
            if name in by_name:
                yield picture.path, by_name[name]


# ---- views and pairs ---------------------------------------------------------------------------


def view_files(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """By view, the repeat and path of each picture; only views that can be taught and judged."""
    views = defaultdict(list)
    for path in find_images(folder):
        if match := _VIEW.fullmatch(path.stem):
            views[match["view"]].append((int(match["repeat"]), folder / path))
    return {
        view: files
        for view, files in sorted(views.items())
        if {repeat <= TAUGHT_REPEATS for repeat, _ in files} == {True, False}
    }


def load_views(folder: Path, longest: int) -> Iterator[View]:
    """Read the pictures, one view at a time.

    Raises:
        PermanentError: as for `load_set`.
    """
    for name, files in view_files(folder).items():
        pictures = [(repeat, read_picture(path)) for repeat, path in files]
        require_one_shape([picture for _, picture in pictures], longest)
        yield View(
            name=name,
            references=tuple(one for repeat, one in pictures if repeat <= TAUGHT_REPEATS),
            judged=tuple(one for repeat, one in pictures if repeat > TAUGHT_REPEATS),
        )


def pair_names(folder: Path) -> list[str]:
    """The names of the pairs, by their files with boxes."""
    boxes = (path.name.removesuffix(_BOXES) for path in folder.glob(f"*{_BOXES}"))
    return sorted(boxes)


def load_pairs(folder: Path, longest: int) -> Iterator[Pair]:
    """Read the pictures and boxes, one pair at a time.

    Raises:
        PermanentError: as for `load_set`, or a file is missing or is not as it should be.
    """
    files = {path.stem: folder / path for path in find_images(folder)}
    for name in pair_names(folder):
        for kind in (_TEMPLATE, _TEST):
            if name + kind not in files:
                raise PermanentError(f"{folder / name}{_BOXES}: there is no picture {name}{kind}")
        template, test = (read_picture(files[name + kind]) for kind in (_TEMPLATE, _TEST))
        require_one_shape([template, test], longest)
        yield Pair(name, template, test, read_boxes(folder / f"{name}{_BOXES}"))


def read_boxes(path: Path) -> tuple[BoxPixels, ...]:
    """The boxes of a file with lines ``x1 y1 x2 y2 TYPE``.

    Raises:
        PermanentError: a line is not of that form.
    """
    boxes = []
    for number, line in enumerate(path.read_text().rstrip().splitlines(), start=1):
        try:
            x1, y1, x2, y2, _ = (int(word) for word in line.split())
        except ValueError as error:
            raise PermanentError(
                f"{path}, line {number}: wanted are five whole numbers, x1 y1 x2 y2 TYPE"
            ) from error
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)


# ---- files -------------------------------------------------------------------------------------


def read_folders(*folders: Path) -> tuple[Picture, ...]:
    """Every picture of some folders; raises PermanentError on one that is unreadable."""
    paths = (folder / file for folder in folders for file in find_images(folder))
    return tuple(read_picture(path) for path in paths)


def read_picture(path: Path) -> Picture:
    """A picture of a file; raises PermanentError where it is unreadable."""
    try:
        return Picture(path, read_image(path))
    except PictureUnreadable as error:
        raise PermanentError(f"{path} {error}") from error


def require_one_shape(pictures: list[Picture], longest: int) -> None:
    """Raises PermanentError unless all pictures are of one size when they are reduced."""

    def size(picture: Picture) -> tuple[int, int]:
        height, width = picture.pixels.shape[:2]
        return preprocess.reduced_size(width, height, longest)

    usual = pictures[0]
    for picture in pictures:
        if size(picture) != size(usual):
            odd, first = picture.pixels.shape, usual.pixels.shape
            raise PermanentError(
                f"{picture.path} has {odd[1]} x {odd[0]} pixels, {usual.path} has "
                f"{first[1]} x {first[0]}: all pictures of a set must be of one size"
            )
