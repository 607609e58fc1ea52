"""The gate: lint, types, the direction of imports, and the list of packages."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "inspectd"

LAYERS = {
    0: {"records", "settings", "config", "errors", "jit", "durable", "typed_json", "__init__"},
    1: {"soartc", "imaging", "limits", "payload", "masking"},
    2: {"eye", "inspector"},
    3: {
        "camera",
        "trigger",
        "journal",
        "mqtt",
        "references",
        "clock",
        "gpio",
        "machine",
        "archive",
        "footprint",
        "systemd",
        "tarball",
    },
    4: {
        "service",
        "control",
        "judging",
        "camera_keeper",
        "painter",
        "teaching",
        "looking",
        "state",
        "health",
        "statistics",
        "tally",
        "requests",
        "reload",
        "recording",
        "programs",
        "chosen",
        "broker",
        "periodic",
        "station_copy",
        "supervision",
    },
    5: {"cli", "__main__", "commands"},
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
ONLY_IMPORTERS = {
    "paho": {"mqtt/connection.py", "commands/subscriber.py"},  # the latter is a foreign consumer
    "sqlite3": {
        "journal/__init__.py",
        "journal/damage.py",
        "journal/database.py",
        "journal/outside.py",
    },
    "cryptography": {"mqtt/probe.py"},  # 11 MiB that the service does without
    "picamera2": {"camera/picamera.py"},
    "gpiozero": {"gpio.py"},
    "lgpio": {"gpio.py"},
    "numba": {"jit.py"},
    "google": {"mqtt/sparkplug_b_pb2.py", "mqtt/sparkplug_payload.py"},  # protobuf
    "watchfiles": {"reload.py"},
    "yaml": {"config/nodes.py"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path):
    """Dotted names that a module imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(path):
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def inner(name):
    """The same for a dotted name; None for what is not ours."""
    parts = name.split(".")
    if parts[0] != "inspectd" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in LAYER else "__init__"


def test_every_module_has_a_layer():
    assert {place(path) for path in modules()} <= LAYER.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    own = place(path)
    wrong = [
        name
        for name in imports_of(path)
        if (other := inner(name)) is not None
        and other not in {own, "__init__"}
        and not (LAYER[other] < LAYER[own] or LAYER[own] == LAYER[other] in {0, 2, 4, 5})
    ]
    assert not wrong, f"{path.name} is of layer {LAYER[own]} and imports {wrong}"


def test_imports_have_no_cycles():
    graph = {}
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set(imports_of(path))
    known = set(graph)

    def edges(name):
        for target in graph[name]:
            module = target if target in known else target.rpartition(".")[0]
            if module in known and module != name and not name.startswith(f"{module}."):
                yield module

    done, active = set(), []

    def visit(name):
        assert name not in active, " imports ".join([*active[active.index(name) :], name])
        if name in done:
            return
        active.append(name)
        for target in edges(name):
            visit(target)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_each_library_is_imported_in_one_place(library):
    importers = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert importers <= ONLY_IMPORTERS[library]


def used(tree, name):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.expr) and ast.unparse(node) == name
    ]


def within_functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


def places(path, nodes):
    return [f"{path.relative_to(ROOT)}:{node.lineno}" for node in nodes]


def test_json_is_read_in_one_place():
    reading = ("msgspec.json.decode", "msgspec.json.Decoder")
    assert used(ast.parse("msgspec.json.decode(raw, type=Index)"), reading[0])
    found = [
        place
        for path in modules()
        if path.name != "typed_json.py"
        for name in reading
        for place in places(path, used(ast.parse(path.read_text()), name))
    ]
    assert found == []


def test_json_readers_are_made_while_modules_are_loaded():
    """By one thread. msgspec 0.22 looks at a type when it first decodes one, and where two threads
    do so at once, the process ends by a segmentation fault.
    """
    late = ast.parse("def f():\n return JsonReader[int](int)")
    assert [used(node, "JsonReader") for node in within_functions(late)] != [[]]
    found = [
        place
        for path in modules()
        for function in within_functions(ast.parse(path.read_text()))
        for place in places(path, used(function, "JsonReader"))
    ]
    assert found == []


def test_the_list_of_packages_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    found = [".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")]
    assert sorted(listed) == sorted(found)


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
    ],
    ids=["lint", "format", "types"],
)
def test_the_linters_are_content(arguments):
    result = run_tool(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
