"""What the service does to take little memory and time, each in a process of its own."""

import os
import subprocess
import sys


def _run(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from inspectd.footprint import exempt_what_is_loaded, share_one_heap\n" + code,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_all_threads_share_one_heap():
    """malloc_info lists the heaps; without the setting there is one for each thread."""
    heaps = _run(
        "share_one_heap()\n"
        "import ctypes, tempfile, threading\n"
        "barrier = threading.Barrier(5)\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.malloc.argtypes = [ctypes.c_size_t]\n"
        "libc.fopen.restype = ctypes.c_void_p\n"
        "libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]\n"
        "libc.fclose.argtypes = [ctypes.c_void_p]\n"
        "def allocate():\n"
        "    assert libc.malloc(4096)\n"
        "    barrier.wait()\n"
        "    barrier.wait()\n"
        "threads = [threading.Thread(target=allocate) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "barrier.wait()\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    stream = libc.fopen(file.name.encode(), b'w')\n"
        "    libc.malloc_info(0, stream)\n"
        "    libc.fclose(stream)\n"
        "    print(file.read().count(b'<heap nr='))\n"
        "barrier.wait()\n"
    )
    assert int(heaps) == 1


def test_what_is_loaded_is_no_longer_looked_at():
    """The collector would stop every thread for it, while a part passes."""
    before, after, later = _run(
        "import gc, inspectd.service\n"
        "before = len(gc.get_objects())\n"
        "exempt_what_is_loaded()\n"
        "after = len(gc.get_objects())\n"
        "loop = []\n"
        "loop.append(loop)\n"
        "del loop\n"
        "print(before, after, gc.collect())\n"
    ).split()
    assert int(before) > 10_000
    assert int(after) < 100
    assert int(later) == 1, "garbage made later is found"
