"""How the process ends; in one of its own."""

import subprocess
import sys

IN_CPLUSPLUS = """
import threading, cv2, numpy as np
started = threading.Event()
def work():
    pixels = np.zeros((3000, 3000, 3), np.uint8)
    while True:
        started.set()
        cv2.GaussianBlur(pixels, (31, 31), 0)
threading.Thread(target=work, daemon=True).start()
assert started.wait(30)
"""


def _leave(before: str, status: int) -> "subprocess.CompletedProcess[str]":
    code = f"{before}\nfrom inspectd.__main__ import leave\nprint('said')\nleave({status})"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_thread_left_behind_in_a_library_does_not_abort_the_process():
    left = _leave(IN_CPLUSPLUS, 3)
    assert (left.returncode, left.stdout, left.stderr) == (3, "said\n", "")


def test_a_thread_that_is_no_daemon_is_waited_for():
    late = "import threading\nthreading.Timer(0.2, lambda: print('late')).start()"
    left = _leave(late + IN_CPLUSPLUS, 0)
    assert (left.returncode, left.stdout) == (0, "said\nlate\n")


def test_without_threads_what_is_registered_for_the_end_is_done():
    left = _leave("import atexit\natexit.register(print, 'at the end')", 1)
    assert (left.returncode, left.stdout) == (1, "said\nat the end\n")
