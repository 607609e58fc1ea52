"""The seven convolution parts (SPEC.md, "Convolution parts")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ImageError

PARTS = ("BEND1", "BEND2", "BEND3", "BEND4", "LINE1", "LINE2", "DATUM")
"""The order of the parts in a bank; the last is what the six others are compared with."""


def part_bank(size: int = 5, band: int = 1, centre_weight: float = 2) -> NDArray[np.float32]:
    """The seven parts of one size.

    Args:
        size: side of a part in pixels, n; odd, at least 3.
        band: width of the bands in pixels, w; odd, smaller than ``size``.
        centre_weight: weight of the middle of LINE1 and LINE2: of those of the band's cells that
            lie at least floor(n / 5) rows and floor((n + 1) / 4) columns from the edge. 1 leaves
            all ones.

    Returns:
        float32 (7, size, size), in the order of `PARTS`.

    Raises:
        ImageError: a size or band that no part has, or a weight that is not positive and finite.
    """
    if size < 3 or size % 2 == 0:
        raise ImageError(f"the size of the parts must be odd and at least 3, not {size}")
    if band < 1 or band % 2 == 0 or band >= size:
        raise ImageError(
            f"the band of the parts must be odd and smaller than their size {size}, not {band}"
        )
    if not (np.isfinite(centre_weight) and centre_weight > 0):
        raise ImageError(f"the centre weight must be positive and finite, not {centre_weight}")
    row, column = np.indices((size, size))
    far = size - band
    top, bottom, left, right = row < band, row >= far, column < band, column >= far
    reach = (band - 1) // 2
    middle = size // 2
    anti_diagonal = np.abs(row + column - (size - 1)) <= reach
    diagonal = np.abs(row - column) <= reach
    plus = (np.abs(row - middle) <= reach) | (np.abs(column - middle) <= reach)
    bank = np.stack(
        [top | right, bottom | right, bottom | left, top | left, anti_diagonal, diagonal, plus]
    ).astype(np.float32)
    rows_off, columns_off = size // 5, (size + 1) // 4
    inner = np.s_[rows_off : size - rows_off, columns_off : size - columns_off]
    for line in (4, 5):
        bank[line][inner] *= np.float32(centre_weight)
    return bank
