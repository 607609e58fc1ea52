"""Kernels that are in the cache are loaded without the compiler, and are what was compiled."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from inspectd import jit

DESCRIBE = """
import json, sys
import numpy as np
from inspectd.eye import Eye
from inspectd.settings import Program
rng = np.random.default_rng(1)
part = rng.integers(0, 256, (48, 64), np.uint8)
pictures = [np.clip(part + rng.normal(0, 4, part.shape), 0, 255).astype(np.uint8) for _ in range(4)]
sight = Eye(Program(), pictures[:3]).look(pictures[3])
from numba.core import registry
lowerings = registry.cpu_target.target_context._defns
print(json.dumps({
    "map": np.asarray(sight.map, float).round(6).tolist(),
    "lowerings": len(lowerings),
}))
"""


def _run(cache: Path, code: str, before: Sequence[str] = ()) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    ran = subprocess.run(
        [*before, sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, Path]:
    """What a process that had to compile computed, and the next, with the cache of the first."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("NUMBA_DISABLE_JIT is set: numba compiles and keeps nothing")
    cache = tmp_path_factory.mktemp("kernels")
    return json.loads(_run(cache, DESCRIBE)), json.loads(_run(cache, DESCRIBE)), cache


def test_a_loaded_kernel_computes_what_the_compiled_one_did(runs):
    compiled, loaded, _ = runs
    assert loaded["map"] == compiled["map"]


def test_what_the_compiler_needs_is_not_loaded_with_the_kernels(runs):
    compiled, loaded, _ = runs
    assert compiled["lowerings"] > 100
    assert loaded["lowerings"] < compiled["lowerings"] / 10


def test_a_new_kernel_beside_loaded_ones_is_compiled(runs, tmp_path):
    _, loaded, cache = runs
    (tmp_path / "another.py").write_text(
        "from inspectd.jit import kernel\n"
        "@kernel\n"
        "def double(values, out):\n"
        "    for index in range(values.size):\n"
        "        out[index] = 2 * values[index]\n"
    )
    code = DESCRIBE + (
        f"\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from another import double\n"
        "out = np.empty(3, np.float32)\n"
        "double(np.arange(3, dtype=np.float32), out)\n"
        "print(json.dumps(out.tolist()))\n"
    )
    described, doubled = map(json.loads, _run(cache, code).splitlines())
    assert doubled == [0, 2, 4]
    assert described == loaded


REHEARSED = """
import numpy as np
from inspectd.commands.warmup import rehearse
from inspectd.eye import Eye
from inspectd.inspector import ReducedCrop
from inspectd.jit import compiling_refused
from inspectd.settings import Program
program = Program()
rehearse(program)
rng = np.random.default_rng(2)
part = rng.integers(20, 230, (300, 400, 3), np.uint8)
whole = [part + rng.integers(0, 9, part.shape, np.uint8) for _ in range(4)]
grey = [frame[:, :, 0] for frame in whole]
with compiling_refused():
    for frames in (whole, [frame[20:, 40:] for frame in grey]):
        pictures = [ReducedCrop.of(frame, program.resolution).picture for frame in frames]
        Eye(program, pictures[:3]).look(pictures[3])
"""


def test_what_was_rehearsed_leaves_no_frame_to_be_compiled_for(tmp_path):
    """In colour, and of a camera that gives grey ones, of which a region is looked at."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("NUMBA_DISABLE_JIT is set: numba compiles nothing")
    assert _run(tmp_path, REHEARSED) == ""


def test_from_a_cache_that_cannot_be_written_kernels_are_loaded_all_the_same(runs, tmp_path):
    _, loaded, cache = runs
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, str(cache)]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user cannot mount a folder read-only, which takes root")
    assert json.loads(_run(cache, DESCRIBE, before)) == loaded
    # What is not in it serves the process.
    empty = tmp_path / "kernels"
    shutil.copytree(cache, empty)
    for file in empty.rglob("*.nbc"):
        file.unlink()
    before[-1] = str(empty)
    compiled = json.loads(_run(empty, DESCRIBE, before))
    assert compiled["map"] == loaded["map"]
    assert compiled["lowerings"] > loaded["lowerings"]


def test_without_its_index_a_cache_is_compiled_anew(runs, tmp_path):
    compiled, _, cache = runs
    bare = tmp_path / "bare"
    shutil.copytree(cache, bare)
    indices = list(bare.rglob("*.nbi"))
    assert indices
    for file in indices:
        file.unlink()
    again = json.loads(_run(bare, DESCRIBE))
    assert again["map"] == compiled["map"]
    assert again["lowerings"] == compiled["lowerings"]


@pytest.mark.parametrize(
    ("prefix", "set_by_hand", "is_owner", "chosen"),
    [
        ("/opt/inspectd/releases/1.0-1", "", True, True),
        ("/opt/inspectd/current", "/elsewhere", True, False),
        ("/opt/inspectd/current", "", False, False),
        ("/home/pi/inspectd/.venv", "", True, False),
    ],
    ids=["installed", "NUMBA_CACHE_DIR", "another user", "not installed"],
)
def test_by_hand_an_installed_station_loads_the_kernels_of_its_service(
    monkeypatch, tmp_path, prefix, set_by_hand, is_owner, chosen
):
    monkeypatch.setattr(jit, "INSTALLED_KERNELS", tmp_path)
    monkeypatch.setattr(jit.config, "CACHE_DIR", set_by_hand)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner if is_owner else owner + 1)
    jit._choose_folder(Path(prefix))
    assert str(tmp_path if chosen else set_by_hand) == jit.config.CACHE_DIR


def test_where_no_kernels_were_compiled_yet_nothing_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "INSTALLED_KERNELS", tmp_path / "gone")
    monkeypatch.setattr(jit.config, "CACHE_DIR", "")
    jit._choose_folder(jit.INSTALLED / "current")
    assert jit.config.CACHE_DIR == ""
