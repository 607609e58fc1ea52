"""How every kernel is compiled: the one importer of numba.

Fast arithmetic here means contraction, reassociation and approximate reciprocals only: NaN and
infinity keep their meaning, and finiteness is still checked outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

FASTMATH = {"contract", "reassoc", "arcp", "nsz"}
Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile at the first call, once for all starts of the service."""
    compiled = njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(function)
    return cast("Function", compiled)


def inline(function: Function) -> Function:
    """Compile into the kernels that call it."""
    compiled = njit(inline="always", fastmath=FASTMATH, error_model="numpy")(function)
    return cast("Function", compiled)
