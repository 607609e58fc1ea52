"""Kernels that are in the cache are loaded without the compiler, and are what was compiled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def _run(cache: Path, code: str) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
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
        pytest.skip("numba is switched off: nothing is compiled")
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
    _, _, cache = runs
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
        "assert out.tolist() == [0, 2, 4], out\n"
    )
    _run(cache, code)


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
