"""Stage 1: every patch of a picture described by its own convolution responses."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inspectd.errors import ImageError
from inspectd.records import PatchGrid
from inspectd.soartc import kernels

Pair = tuple[int, int]


def as_pair(value: int | Pair, name: str) -> Pair:
    """(rows, columns) from one number or two.

    Raises:
        ImageError: a number below 1.
    """
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or any(int(number) != number or number < 1 for number in pair):
        raise ImageError(f"{name} must be one or two whole numbers of at least 1, not {value}")
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """Where the patches of a picture lie (SPEC.md, "Windows and patches").

    A patch is 2 x 2 windows, ``stride`` pixels apart; patches are ``step`` pixels apart. All
    pairs are (rows, columns) in pixels.
    """

    height: int
    width: int
    size: int
    stride: Pair
    step: Pair

    def __post_init__(self) -> None:
        for name, length, extent in (
            ("height", self.height, self.extent[0]),
            ("width", self.width, self.extent[1]),
        ):
            if length < extent:
                raise ImageError(
                    f"the picture's {name} of {length} pixels is smaller than one patch, which "
                    f"needs {extent} (part {self.size} and stride {extent - self.size})"
                )

    @property
    def extent(self) -> Pair:
        """The pixels that one patch covers."""
        return self.size + self.stride[0], self.size + self.stride[1]

    @property
    def rows(self) -> int:
        return (self.height - self.extent[0]) // self.step[0] + 1

    @property
    def cols(self) -> int:
        return (self.width - self.extent[1]) // self.step[1] + 1

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.rows, self.cols, self.step, self.extent)


class PatchDescriber:
    """Stage 1 for pictures of one shape, without allocating per picture.

    Holds the work arrays, so one describer serves one thread.
    """

    def __init__(self, layout: PatchLayout, bank: NDArray[np.float32]) -> None:
        """Prepare for pictures of the layout's shape.

        Args:
            layout: the picture's shape and where its patches lie.
            bank: float32 (7, size, size), finite and not negative.

        Raises:
            ImageError: a bank of another shape, or with values it must not have.
        """
        if bank.shape != (7, layout.size, layout.size):
            raise ImageError(
                f"the part bank must have the shape (7, {layout.size}, {layout.size}), "
                f"not {bank.shape}"
            )
        if not (np.isfinite(bank).all() and (bank >= 0).all()):
            raise ImageError("the part bank holds values that are not finite or below 0")
        self.layout = layout
        # Patches share windows wherever step and stride do: each window is computed once.
        self._spacing = (
            gcd(layout.stride[0], layout.step[0]),
            gcd(layout.stride[1], layout.step[1]),
        )
        rows_apart, columns_apart = self._spacing
        part, row, column = np.nonzero(bank)
        self._cells = np.stack([part, row, column % columns_apart, column // columns_apart], axis=1)
        self._weights = bank[part, row, column]
        self._step = (layout.step[0] // rows_apart, layout.step[1] // columns_apart)
        self._reach = (layout.stride[0] // rows_apart, layout.stride[1] // columns_apart)
        window_rows = (layout.rows - 1) * self._step[0] + self._reach[0] + 1
        window_cols = (layout.cols - 1) * self._step[1] + self._reach[1] + 1
        self._phases = np.zeros(
            (layout.height, columns_apart, -(-layout.width // columns_apart)), np.float32
        )
        self._windows = np.empty((7, window_rows, window_cols), np.float32)
        self._work = np.empty((11, layout.cols), np.float32)

    def new_planes(self) -> NDArray[np.float32]:
        """An array for `describe` to write: float32 (6, 3, rows, cols)."""
        return np.empty((6, 3, self.layout.rows, self.layout.cols), np.float32)

    def describe(self, image: NDArray[np.float32], planes: NDArray[np.float32]) -> None:
        """Write the metrics of every patch.

        Args:
            image: float32 (height, width), C-contiguous, finite and not negative; see
                `checked_image`.
            planes: float32 (6, 3, rows, cols); written.
        """
        kernels.split_columns(image, self._phases)
        kernels.responses(self._phases, self._cells, self._weights, self._spacing[0], self._windows)
        kernels.patch_metrics(self._windows, self._step, self._reach, self._work, planes)

    def described(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The metrics of every patch in an array of their own, as `describe` writes them."""
        planes = self.new_planes()
        self.describe(image, planes)
        return planes


def checked_image(image: ArrayLike) -> NDArray[np.float32]:
    """The picture as the kernels want it.

    Args:
        image: two-dimensional, grey, values from 0; 1 is white (SPEC.md, "Image").

    Returns:
        float32 (height, width), C-contiguous.

    Raises:
        ImageError: not two-dimensional, or with values that are not finite or below 0.
    """
    array = np.asarray(image)
    if array.ndim != 2:
        raise ImageError(f"a grey picture has two dimensions, not {array.ndim}: {array.shape}")
    if array.size == 0:
        raise ImageError(f"the picture is empty: {array.shape}")
    checked = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(checked)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ImageError(
            f"{finite.size - int(finite.sum())} of {finite.size} pixels are not finite, the first "
            f"at row {row}, column {column}: {checked[row, column]}"
        )
    if (lowest := float(checked.min())) < 0:
        raise ImageError(f"the picture has values below 0, the lowest is {lowest:g}")
    return checked


def stage1(
    image: ArrayLike,
    bank: NDArray[np.float32],
    stride: int | Pair = (2, 2),
    step: int | Pair | None = None,
) -> NDArray[np.float32]:
    """Describe every patch of a picture (SPEC.md, "Stage 1").

    Args:
        image: (height, width) grey, finite, 0 black and 1 white.
        bank: float32 (7, n, n) from `part_bank`.
        stride: pixels between the windows of a patch, (rows, columns).
        step: pixels from one patch to the next, (rows, columns); None means 2 * stride, patches
            that share no window.

    Returns:
        float32 (rows, cols, 6, 3): the parts BEND1 to LINE2, of each ln beta, eta and gamma.
        Without unit.

    Raises:
        ImageError: a picture that is not finite, not grey or smaller than one patch; a bank of the
            wrong shape.
    """
    checked = checked_image(image)
    bank = np.ascontiguousarray(bank, dtype=np.float32)
    if bank.ndim != 3:
        raise ImageError(f"the part bank must have the shape (7, n, n), not {bank.shape}")
    strides = as_pair(stride, "stride")
    steps = (2 * strides[0], 2 * strides[1]) if step is None else as_pair(step, "step")
    layout = PatchLayout(checked.shape[0], checked.shape[1], bank.shape[1], strides, steps)
    describer = PatchDescriber(layout, bank)
    planes = describer.new_planes()
    describer.describe(checked, planes)
    return planes.transpose(2, 3, 0, 1)


def soart3(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """The three metrics of one vector against another: the formula that stage 1 applies.

    Args:
        x: the vector that is scaled (a part's responses, or a whole shape); any shape.
        y: the vector it is compared with (DATUM's responses, or the standard shape); as ``x``.

    Returns:
        float64 (3,): ln beta, eta, gamma (SPEC.md, "Stage 1").

    Raises:
        ImageError: shapes that differ.
    """
    first, second = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if first.shape != second.shape:
        raise ImageError(f"the two vectors differ in length: {first.size} and {second.size}")
    epsilon = float(kernels.EPSILON)
    beta = (first @ second + epsilon) / (first @ first + epsilon)
    distance = np.abs(second - beta * first)
    eta = np.log1p(distance.sum())
    return np.array([np.log(beta), eta, np.log1p(distance.max()) - eta])
