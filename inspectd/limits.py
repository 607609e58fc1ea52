"""Where good ends: the limit, from the scores that good parts get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inspectd.errors import ReferencesError

HEADROOM = 1.2
"""What the limit lies above the largest leave-one-out score: the next good part may be a little
worse than the worst of those taught."""


def limit_from_scores(leave_one_out: Sequence[float], threshold: float = 1.0) -> float:
    """The limit in raw units: the largest leave-one-out score, with headroom, times the threshold.

    Args:
        leave_one_out: raw score of each reference against all the others; two at least.
        threshold: the program's, in units of the learned limit.

    Raises:
        ReferencesError: fewer than two scores, or scores from which no limit follows.
    """
    if len(leave_one_out) < 2:
        raise ReferencesError(
            f"a limit needs at least two references, there are {len(leave_one_out)}; teach more "
            "good parts"
        )
    largest = float(np.max(leave_one_out))
    if not np.isfinite(largest) or largest <= 0:
        raise ReferencesError(
            f"no limit follows from the references: their largest distance from each other is "
            f"{largest:g}; they may all be the same picture. Teach different good parts"
        )
    return largest * HEADROOM * threshold
