"""What the service does to take little memory, each in a process of its own."""

import os
import subprocess
import sys


def _run(code: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    ran = subprocess.run(
        [sys.executable, "-c", "from inspectd.footprint import share_one_heap\n" + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_all_threads_share_one_heap():
    """malloc_info lists the heaps; without the setting there is one for each thread."""
    _run(
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
        "    heaps = file.read().count(b'<heap nr=')\n"
        "barrier.wait()\n"
        "assert heaps == 1, heaps\n"
    )
