"""How every kernel is compiled: the one importer of numba.

Fast arithmetic here means contraction, reassociation and approximate reciprocals only: NaN and
infinity keep their meaning, and finiteness is still checked outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core.event import Event, Listener, install_listener

from inspectd.errors import NotCompiled, PermanentError

FASTMATH = {"contract", "reassoc", "arcp", "nsz"}
Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile at the first call, once for all starts of the service.

    Raises:
        PermanentError: there is no folder to keep compiled kernels in.
    """
    try:
        compiled = njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(function)
    except RuntimeError as error:
        raise PermanentError(
            "no folder for the compiled kernels can be written by this user: set the environment "
            f"variable NUMBA_CACHE_DIR to one that can ({error})"
        ) from error
    return cast("Function", compiled)


def inline(function: Function) -> Function:
    """Compile into the kernels that call it."""
    compiled = njit(inline="always", fastmath=FASTMATH, error_model="numpy")(function)
    return cast("Function", compiled)


def cache_folder(compiled: Callable[..., Any]) -> Path | None:
    """Where a `kernel` is kept once it is compiled; None where numba is switched off."""
    stats = getattr(compiled, "stats", None)
    return None if stats is None else Path(stats.cache_path)


class _Refusal(Listener):
    def on_start(self, event: Event) -> None:
        name = event.data["dispatcher"].py_func.__qualname__
        raise NotCompiled(f"the kernel {name} is not compiled yet: run `inspectd warmup`")

    def on_end(self, event: Event) -> None:
        pass


@contextmanager
def compiling_refused() -> Iterator[None]:
    """Within it a kernel that is in the cache is loaded as ever, on any thread; to compile one,
    which takes seconds and cannot be interrupted, raises NotCompiled.
    """
    with install_listener("numba:compile", _Refusal()):
        yield
