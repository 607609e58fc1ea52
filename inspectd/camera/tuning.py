"""What a Raspberry Pi's image pipeline adapts to the scene although the exposure is fixed.

Two of its algorithms look at each picture and change the next ones: contrast enhancement, and the
colour part of the lens shading. No control turns them off and no metadata tell of them; the tuning
does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

_FIXED: dict[str, dict[str, int]] = {
    "rpi.contrast": {"ce_enable": 0},
    "rpi.alsc": {"n_iter": 0},  # the calibrated table stays in force
}

Tuning = dict[str, Any]
"""A tuning file of libcamera's Raspberry Pi pipelines, version 1 or 2, as read from JSON."""


def without_adaptation(tuning: Tuning) -> Tuning:
    """A copy in which nothing depends on what earlier pictures showed."""
    fixed = copy.deepcopy(tuning)
    for algorithms in _algorithms(fixed):
        for name, values in _FIXED.items():
            if name in algorithms:
                algorithms[name].update(values)
    return fixed


def _algorithms(tuning: Tuning) -> Iterator[dict[str, Any]]:
    if tuning.get("version", 1) == 1:
        yield tuning
    else:
        yield from tuning.get("algorithms", [])
