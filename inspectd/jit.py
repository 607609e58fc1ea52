"""How every kernel is compiled, and loaded when it is already: the one importer of numba.

A kernel that was compiled before is loaded without the compiler. Numba would first import all that
it can compile, and compile its own runtime anew: 41 MiB of the service (230 to 189 on x86-64), and
half a second of each start.

Fast arithmetic here means contraction, reassociation and approximate reciprocals only: NaN and
infinity keep their meaning, and finiteness is still checked outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import config, njit
from numba.core.caching import (
    Cache,
    CacheImpl,
    CompileResultCacheImpl,
    UserProvidedCacheLocator,
    make_library_cache,
)
from numba.core.event import Event, Listener, install_listener
from numba.core.runtime import nrtdynmod, rtsys

from inspectd.errors import NotCompiled, PermanentError

_logger = logging.getLogger(__name__)

FASTMATH = {"contract", "reassoc", "arcp", "nsz"}
INSTALLED = Path("/opt/inspectd")
INSTALLED_KERNELS = Path("/var/cache/inspectd/kernels")
"""Where the units of an installed station keep what is compiled."""
Function = TypeVar("Function", bound=Callable[..., Any])


class _FilledFolder(UserProvidedCacheLocator):  # type: ignore[misc]  # numba has no types
    """The folder of NUMBA_CACHE_DIR, also where it cannot be written any more: a root that was made
    read-only has the kernels of before. Numba would pass over it, and compile all of them anew.
    """

    def ensure_cache_path(self) -> None:
        try:
            super().ensure_cache_path()
        except OSError:
            if not any(Path(self.get_cache_path()).glob("*.nbi")):
                raise


class _LoadedAlone(Cache):  # type: ignore[misc]  # likewise
    """A cache that needs nothing of the compiler but what links what it finds.

    Where it finds nothing, the compiler makes itself ready before it compiles. What cannot be kept
    then, on a disk that is full or read-only, serves this process all the same.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _logger.warning(
                "a compiled kernel cannot be kept, so each start compiles it anew: %s", error
            )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


class _KernelFiles(CompileResultCacheImpl):  # type: ignore[misc]  # likewise
    def rebuild(self, target_context: Any, payload: Any) -> Any:
        rtsys.initialize(target_context)  # which every kernel is linked with
        return super().rebuild(target_context, payload)


class _KernelCache(_LoadedAlone):
    _impl_class = _KernelFiles


class _RuntimeCache(_LoadedAlone, make_library_cache("runtime")):  # type: ignore[misc]  # likewise
    """Numba's runtime: how it counts references to arrays."""


def _runtime(target_context: Any) -> Any:
    """In place of numba's own `compile_nrt_functions`: the same, compiled only once."""
    cache = _RuntimeCache(_runtime)
    library = cache.load_overload("runtime", target_context)
    if library is None:
        module, library = nrtdynmod.create_nrt_module(target_context)
        library.enable_object_caching()
        library.add_ir_module(module)
        library.finalize()
        cache.save_overload("runtime", library)
    return library


def _choose_folder(prefix: Path) -> None:
    """A command of an installed station that is run by hand loads the service's kernels, too.

    Only as the service's own user: what is loaded can be any code, and whoever writes it would act
    as whoever loads it; and what another one compiled there, the service could not replace.
    """
    if config.CACHE_DIR or not prefix.is_relative_to(INSTALLED):
        return
    with contextlib.suppress(OSError):  # there is none, or it is not for this user
        if INSTALLED_KERNELS.stat().st_uid == os.geteuid():
            config.CACHE_DIR = str(INSTALLED_KERNELS)


nrtdynmod.compile_nrt_functions = _runtime
_choose_folder(Path(sys.prefix))
CacheImpl._locator_classes = [_FilledFolder, *CacheImpl._locator_classes]


def kernel(function: Function) -> Function:
    """Compile at the first call, once for all starts of the service.

    Raises:
        PermanentError: there is no folder to keep compiled kernels in.
    """
    try:
        compiled = njit(nogil=True, fastmath=FASTMATH, error_model="numpy")(function)
        if compiled is not function:  # else numba is switched off
            compiled._cache = _KernelCache(function)  # as `enable_caching` does, with its own
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


class _Refusal(Listener):  # type: ignore[misc]  # likewise
    def on_start(self, event: Event) -> None:
        name = event.data["dispatcher"].py_func.__qualname__
        raise NotCompiled(f"the kernel {name} is not compiled yet: run `inspectd warmup`")

    def on_end(self, event: Event) -> None:
        pass


class _Telling(Listener):  # type: ignore[misc]  # likewise
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def on_start(self, event: Event) -> None:
        self._tell(event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event: Event) -> None:
        pass


@contextmanager
def compiling_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Within it the name of each kernel that is compiled, on any thread, since it is not in the
    cache, is given to a function, which must not wait.
    """
    with install_listener("numba:compile", _Telling(tell)):
        yield


@contextmanager
def compiling_refused() -> Iterator[None]:
    """Within it a kernel that is in the cache is loaded as ever, on any thread; to compile one,
    which takes seconds and cannot be interrupted, raises NotCompiled.
    """
    with install_listener("numba:compile", _Refusal()):
        yield
