"""The part that the simulated camera looks at: a terminal block of 27 pins, drawn from above.

Lengths are in units of a hundredth of the view's width, which makes a unit about one pixel of the
picture that is inspected; x runs to the right, y downwards, from the centre of the view. The light
comes from the upper left. Pins stand up from the block, so that the camera, a little askew, sees
their sides. Everything that does not change from part to part is drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.records import Defect, GreyImage

VIEW = (100.0, 75.0)
"""Width and height of what is drawn, in units."""
COLUMNS, ROWS = 9, 3
PINS = COLUMNS * ROWS
NEST = 15
"""The grey value of the dark nest that holds the block, which goes on beyond the view."""

_BODY = np.array([93.0, 69.0])
_PITCH = np.array([9.7, 16.9])
_FIRST_PIN = np.array([-4 * 9.7, -23.2])
_PIN = np.array([5.6, 10.2])
_PIN_HEIGHT = 6.0
_CAMERA_HEIGHT = 200.0
_CAMERA_FOOT = np.array([12.0, 16.0])  # the point of the block right below the camera
_BEVEL = 0.55
_SHADOW = np.array([0.9, 1.2])  # where the shadow of a pin's top falls
_LABEL_TOP = 20.9
_SUPERSAMPLING = 2

_HOUSING, _FLOOR, _SOCKET = 60, 36, 9

_FACE_STEPS = 16
_SIDE_STEPS = 12
_VISIBLE = 8  # grey levels

Point = NDArray[np.float64]
"""float64 (2,), units."""
Points = NDArray[np.float64]
"""float64 (n, 2), units."""

_UPRIGHT = np.zeros(2)


class Bounds(NamedTuple):
    """A rectangle in units."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A grey picture to draw on, in units.

    Attributes:
        grey: uint8 (height, width).
        scale: pixels a unit.
        grid: how many times smaller `reduced` makes it.
        origin: its upper left corner.
    """

    grey: GreyImage
    scale: float
    grid: int = 1
    origin: tuple[float, float] = (-VIEW[0] / 2, -VIEW[1] / 2)

    def polygon(self, points: Points, grey: float) -> None:
        """Fills a convex polygon, anti-aliased."""
        cv2.fillConvexPoly(self.grey, self._fixed(points), round(grey), cv2.LINE_AA, shift=4)

    def line(self, points: Points, width: float, grey: float) -> None:
        """Draws a curve through the points, anti-aliased."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(
            self.grey, [self._fixed(points)], False, round(grey), thickness, cv2.LINE_AA, shift=4
        )

    def shade(self, mask: Sheet, depth: float, softness: float) -> None:
        """Darkens by the share ``depth`` where the mask is white, with soft edges."""
        soft = cv2.GaussianBlur(mask.grey, (0, 0), softness * self.scale).astype(np.float32)
        self.grey[:] = np.rint(self.grey * (1 - soft * (depth / 255)))

    def blank(self) -> Sheet:
        """A black sheet of the same place."""
        return replace(self, grey=np.zeros_like(self.grey))

    def window(self, bounds: Bounds) -> Sheet:
        """The part that covers the bounds; shares memory.

        It begins and ends at whole pixels of the reduced sheet, so that reducing the window or
        cutting it out of the reduced sheet is the same.
        """
        grid = self.grid
        edges = (np.reshape(bounds, (2, 2)) - self.origin) * (self.scale / grid)
        edges[1] += 1
        # A window of a window must end where a window of the whole does, whatever was rounded.
        edges += 1e-6
        (left, top), (right, bottom) = np.maximum(edges, 0).astype(int) * grid
        x, y = np.array([left, top]) / self.scale + self.origin
        return Sheet(self.grey[top:bottom, left:right], self.scale, grid, (float(x), float(y)))

    def copy(self) -> Sheet:
        return replace(self, grey=self.grey.copy())

    def reduced(self) -> Sheet:
        """The sheet at its ``grid`` pixels to one, by area averaging."""
        height, width = self.grey.shape
        size = (width // self.grid, height // self.grid)
        grey = cv2.resize(self.grey, size, interpolation=cv2.INTER_AREA)
        return Sheet(np.asarray(grey, np.uint8), self.scale / self.grid, 1, self.origin)

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        """Pixels in OpenCV's fixed point, 16 steps each, where 0 is the centre of the first."""
        return np.rint(((points - self.origin) * self.scale - 0.5) * 16).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Damage:
    """A defect as drawn.

    Attributes:
        defect: its kind.
        window: where the patch belongs.
        patch: what the canvas shows within ``window`` instead of the good block.
        changed: the part of it that is visibly different.
        pin: the number of the pin that is not in its place; None when all are.
    """

    defect: Defect
    window: Bounds
    patch: GreyImage
    changed: Bounds
    pin: int | None


class TerminalBlock:
    """The layers of a good block, patches of damaged ones, and the nest without any."""

    def __init__(self, scale: float) -> None:
        """Draws the layers.

        Args:
            scale: pixels of the canvas a unit, about.
        """
        columns, rows = (round(length * scale) * _SUPERSAMPLING for length in VIEW)
        nest = np.full((rows, columns), NEST, np.uint8)
        self._empty = Sheet(nest, columns / VIEW[0], _SUPERSAMPLING)
        bare = self._empty.copy()
        _draw_recess(bare)
        self._nest = bare.reduced()
        _draw_housing(self._empty)
        self._good = self._empty.copy()
        bright, dull = self._empty.blank(), self._empty.blank()
        for pin in range(PINS):
            _draw_shadow(self._good.window(_cell(pin, 2.0)), _centre(pin))
            _draw_pin(self._good, _centre(pin))
            _draw_pin(bright, _centre(pin))
            _draw_pin(dull, _centre(pin), glint=0.0)
        self._canvas = self._good.reduced()
        self._metal = bright.reduced()
        self._glint = replace(
            bright, grey=bright.grey - np.minimum(bright.grey, dull.grey)
        ).reduced()

    @property
    def to_units(self) -> NDArray[np.float64]:
        """float64 (3, 3): pixel indices of the canvas to units."""
        pixel = 1 / self._canvas.scale
        left, top = self._canvas.origin
        return np.array([[pixel, 0, left + pixel / 2], [0, pixel, top + pixel / 2], [0, 0, 1]])

    @property
    def nest(self) -> GreyImage:
        """The nest without a block, uint8, the size of a `canvas`."""
        return self._nest.grey

    def canvas(
        self, metal: NDArray[np.float32], glint: NDArray[np.float32], damage: Damage | None
    ) -> Sheet:
        """One part.

        Args:
            metal: float32 (27,), how much brighter each pin is than usual, as a share.
            glint: float32 (27,), the same for its highlight.
            damage: what is wrong with the part.
        """
        canvas = self._canvas.copy()
        if damage is not None:
            canvas.window(damage.window).grey[:] = damage.patch
        for pin in range(PINS):
            if damage is not None and damage.pin == pin:
                continue
            target = canvas.window(_cell(pin)).grey
            for layer, share in ((self._metal, metal[pin]), (self._glint, glint[pin])):
                part = layer.window(_cell(pin)).grey
                cv2.addWeighted(target, 1.0, part, float(share), 0.0, dst=target)
        return canvas

    def damage(self, defect: Defect, rng: np.random.Generator) -> Damage:
        """Draws a defect at a place and of a form that ``rng`` chooses."""
        if defect is Defect.FOREIGN_OBJECT:
            return self._foreign_object(rng)
        pin = int(rng.integers(PINS))
        if defect is Defect.MISSING_PIN:
            return self._damage(defect, _cell(pin), self._empty.window(_cell(pin)), pin)
        window = _cell(pin, 4.0)
        sheet = self._good.window(window).copy()
        sheet.window(_cell(pin)).grey[:] = self._empty.window(_cell(pin)).grey
        turn, lean = _bend(rng)
        _draw_shadow(sheet, _centre(pin), turn, lean)
        _draw_pin(sheet, _centre(pin), turn, lean)
        return self._damage(defect, window, sheet, pin)

    def _foreign_object(self, rng: np.random.Generator) -> Damage:
        x, y = rng.uniform((-40.0, -28.0), (40.0, 17.0))
        window = Bounds(x - 14, y - 14, x + 14, y + 14)
        sheet = self._good.window(window).copy()
        draw = (_draw_chip, _draw_crumb, _draw_fibre)[int(rng.integers(3))]
        draw(sheet, np.array([x, y]), rng)
        return self._damage(Defect.FOREIGN_OBJECT, window, sheet, None)

    def _damage(self, defect: Defect, window: Bounds, sheet: Sheet, pin: int | None) -> Damage:
        patch = sheet.reduced()
        before = self._canvas.window(window).grey
        visible = (cv2.absdiff(patch.grey, before) > _VISIBLE).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(visible)
        corner = np.array(patch.origin) + np.array([left, top]) / patch.scale
        right, bottom = corner + np.array([width, height]) / patch.scale
        changed = Bounds(float(corner[0]), float(corner[1]), float(right), float(bottom))
        return Damage(defect, window, patch.grey, changed, pin)


def _bend(rng: np.random.Generator) -> tuple[float, Point]:
    """Degrees by which the pin is twisted, and how far its top leans, in units."""
    side = rng.choice((-1.0, 1.0))
    if rng.random() < 0.5:
        return float(side * rng.uniform(20, 35)), np.array([side * 0.6, 0.0])
    return float(rng.uniform(-4, 4)), np.array([side * rng.uniform(0.3, 0.4) * _PIN[0], 0.3])


def _centre(pin: int) -> Point:
    row, column = divmod(pin, COLUMNS)
    return _FIRST_PIN + _PITCH * (column, row)


def _cell(pin: int, beyond: float = 0.0) -> Bounds:
    """The compartment of a pin, and so much beyond it on each side."""
    left, top = _centre(pin) - _PITCH / 2 - beyond
    right, bottom = _centre(pin) + _PITCH / 2 + beyond
    return Bounds(float(left), float(top), float(right), float(bottom))


def _box(centre: Point, size: Point, turn: float = 0.0) -> Points:
    """The corners of a rectangle, clockwise from the upper left, turned by degrees."""
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size
    angle = np.deg2rad(turn)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(corners @ np.array([[cosine, sine], [-sine, cosine]]) + centre)


def _frame(sheet: Sheet, outer: Points, inner: Points, greys: Sequence[float]) -> None:
    """The four faces between two rectangles: upper, right, lower, left."""
    for side, grey in enumerate(greys):
        after = (side + 1) % 4
        sheet.polygon(np.array([outer[side], outer[after], inner[after], inner[side]]), grey)


def _draw_recess(sheet: Sheet) -> None:
    """What the block covers of its nest: a recess, two pins that locate the block, an ejector."""
    outer, floor = _box(np.zeros(2), _BODY - 0.4), _box(np.zeros(2), _BODY - 2.4)
    _frame(sheet, outer, floor, (8, 27, 32, 10))
    sheet.polygon(floor, 18)
    for place in (np.array([-36.0, 24.0]), np.array([36.0, -24.0])):
        sheet.polygon(_disc(place + _SHADOW, 2.5), 8)
        sheet.polygon(_disc(place, 2.5), 120)
        sheet.polygon(_disc(place, 1.9), 96)
    sheet.polygon(_disc(np.zeros(2), 6.0), 6)


def _disc(centre: Point, radius: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _draw_housing(sheet: Sheet) -> None:
    """The plastic: a bevelled body, a compartment and a socket for each pin, a printed label."""
    outer, inner = _box(np.zeros(2), _BODY), _box(np.zeros(2), _BODY - 1.4)
    _frame(sheet, outer, inner, (92, 44, 34, 80))
    sheet.polygon(inner, _HOUSING)
    for pin in range(PINS):
        centre = _centre(pin)
        rim, floor = _box(centre, _PITCH - 1.2), _box(centre + 0.3, _PITCH - 2.4)
        _frame(sheet, rim, floor, (20, 62, 78, 24))
        sheet.polygon(floor, _FLOOR)
        socket = _box(centre, _PIN + 0.9)
        hole = _box(centre + 0.15, _PIN - 0.3)
        _frame(sheet, socket, hole, (24, 46, 52, 26))
        sheet.polygon(hole, _SOCKET)
    _draw_label(sheet)
    noise = np.random.default_rng(27).standard_normal(sheet.grey.shape, np.float32)
    grain = cv2.GaussianBlur(noise * 3.0, (0, 0), 1.2)
    sheet.grey[:] = np.clip(np.rint(sheet.grey + grain), 0, 255)


def _draw_label(sheet: Sheet) -> None:
    """A lighter plate with a square code and bars, as a laser marks plastic."""
    middle = np.array([0.0, _LABEL_TOP + 5.6])
    sheet.polygon(_box(middle, np.array([86.0, 10.2])), 72)
    modules = np.random.default_rng(9).random((12, 12)) < 0.5
    modules[:, 0] = modules[-1] = True
    for row, column in np.argwhere(modules):
        place = np.array([-39.0 + column * 0.6, _LABEL_TOP + 2.2 + row * 0.6])
        sheet.polygon(_box(place, np.array([0.62, 0.62])), 150)
    x = -26.0
    for width, gap in np.random.default_rng(5).uniform((0.3, 0.4), (1.1, 1.2), (26, 2)):
        sheet.polygon(_box(np.array([x, middle[1]]), np.array([width, 5.4])), 138)
        x += width + gap
    for row in range(3):
        place = np.array([30.0 - row * 2, _LABEL_TOP + 3.2 + row * 2.4])
        sheet.polygon(_box(place, np.array([18.0 - row * 4, 0.9])), 132)


def _rise(centre: Point) -> Point:
    """Where the camera sees the top of a pin, seen from its foot: outwards."""
    return np.asarray((centre - _CAMERA_FOOT) * (_PIN_HEIGHT / _CAMERA_HEIGHT))


def _draw_shadow(sheet: Sheet, centre: Point, turn: float = 0.0, lean: Point = _UPRIGHT) -> None:
    mask = sheet.blank()
    for share in np.linspace(0, 1, _SIDE_STEPS):
        mask.polygon(_box(centre + share * (lean + _SHADOW), _PIN, share * turn), 255)
    sheet.shade(mask, depth=0.6, softness=0.3)


def _draw_pin(
    sheet: Sheet,
    centre: Point,
    turn: float = 0.0,
    lean: Point = _UPRIGHT,
    glint: float = 1.0,
) -> None:
    """A rectangular pin from its foot to its bevelled top.

    Args:
        sheet: where to draw it.
        centre: of its foot.
        turn: degrees by which it is twisted.
        lean: how far its top is from above its foot, in units.
        glint: strength of the highlight, 1 as usual.
    """
    rise = _rise(centre) + lean
    for share in np.linspace(0, 1, _SIDE_STEPS):
        sheet.polygon(_box(centre + share * rise, _PIN, share * turn), 48 + 52 * share)
    top = centre + rise
    outer, face = _box(top, _PIN, turn), _box(top, _PIN - 2 * _BEVEL, turn)
    _frame(sheet, outer, face, (226, 128, 98, 196))
    upper, lower = face[:2], face[[3, 2]]
    for place in np.linspace(0, 1, _FACE_STEPS, endpoint=False):
        highlight = 72 * glint * np.exp(-(((place - 0.3) / 0.13) ** 2))
        edge = upper + place * (lower - upper)
        sheet.polygon(np.vstack([edge, lower[::-1]]), 168 - 34 * place + highlight)


def _draw_chip(sheet: Sheet, centre: Point, rng: np.random.Generator) -> None:
    """A metal chip: a bent flake with a bright and a dull half."""
    length, width = rng.uniform((6.0, 3.0), (10.0, 4.6))
    turn = rng.uniform(0, 180)
    outline = _box(centre, np.array([length, width]), turn) + rng.uniform(-0.7, 0.7, (4, 2))
    fold = (outline[[0, 3]] + outline[[1, 2]]) / 2 + rng.uniform(-0.5, 0.5, (2, 2))
    mask = sheet.blank()
    mask.polygon(outline + _SHADOW, 255)
    sheet.shade(mask, depth=0.65, softness=0.3)
    sheet.polygon(outline[[0, 1, 2, 3]], 112)
    sheet.polygon(np.vstack([outline[0], fold[0], fold[1], outline[3]]), 222)


def _draw_crumb(sheet: Sheet, centre: Point, rng: np.random.Generator) -> None:
    """A rounded crumb of plastic or solder."""
    size, flat = rng.uniform(2.8, 4.4), rng.uniform(0.65, 0.95)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    turn = rng.uniform(0, np.pi)
    wobble = 1 + 0.1 * np.sin(2 * angles + rng.uniform(0, 6))
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    circle = np.stack([np.cos(angles), flat * np.sin(angles)], axis=1) * wobble[:, None] @ spin
    mask = sheet.blank()
    mask.polygon(centre + circle * size + _SHADOW, 255)
    sheet.shade(mask, depth=0.6, softness=0.4)
    light = -0.3 * size * np.array([0.6, 0.8])
    for share in np.linspace(1, 0, 16, endpoint=False):
        grey = 84 + 92 * (1 - share) ** 1.5
        sheet.polygon(centre + circle * (size * share) + light * (1 - share), grey)


def _draw_fibre(sheet: Sheet, centre: Point, rng: np.random.Generator) -> None:
    """A thin bright fibre or wire, curved."""
    along = np.linspace(-0.5, 0.5, 40)
    length, bow, wave = rng.uniform((16, 2, 0.5), (24, 6, 1.5))
    course = np.stack(
        [along * length, bow * (1 - 4 * along**2) + wave * np.sin(9 * along + rng.uniform(0, 6))],
        axis=1,
    )
    turn = rng.uniform(0, np.pi)
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    curve = centre + (course - (0, bow / 2)) @ spin
    mask = sheet.blank()
    mask.line(curve + 0.7 * _SHADOW, 0.55, 255)
    sheet.shade(mask, depth=0.5, softness=0.3)
    sheet.line(curve, 0.55, 170)
    sheet.line(curve - 0.1, 0.25, 228)
