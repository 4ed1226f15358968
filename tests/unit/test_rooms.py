"""The rooms of the package: who may import whom, and that docs/architecture.md draws the tree that is on disk.

Imports inside of functions count as well: they are a way to start quickly, not a way around a wall.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top down. A room imports from the rows below its own; within a room anything but a circle. `config` is every room's config.py
# with the registries: the run's config is their list, readable without torch.
LEVELS = [
    "__main__ train_entry",
    "cli",
    "demo",
    "evaluate",
    "doctor",
    "regenerate",
    "serve",
    "export launch",
    "training",
    "decode",
    "importers",
    "methods",
    "data capture",
    "chat transfer",
    "records rows target",
    "config extras nn progress report signals",
    "files",
    "acceptance console errors hints section",
]


def imports() -> dict[str, set[str]]:
    """module -> modules of the package that it imports; both without the leading `torchspec.`"""
    package = ROOT / "torchspec"
    files = {".".join(file.relative_to(package).with_suffix("").parts): file for file in package.rglob("*.py") if file.stem != "__init__"}
    return {module: named(file.read_text()) & files.keys() for module, file in files.items()}


def named(code: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("torchspec.") for name in names if name.startswith("torchspec.")}


def room(module: str) -> str:
    first, *_, last = module.split(".") * 2
    return "config" if last in ("config", "registry") else first


def upward(graph: dict[str, set[str]]) -> list[str]:
    level = {name: number for number, names in enumerate(LEVELS) for name in names.split()}
    pairs = [(module, name) for module, names in graph.items() for name in names if room(module) != room(name)]
    return [f"{module} imports {name}" for module, name in pairs if level[room(module)] >= level[room(name)]]


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Takes away, again and again, what imports nothing that is left: what stays is part of a circle, or stands above one."""
    left = dict(graph)
    while done := [module for module, names in left.items() if not names & left.keys()]:
        for module in done:
            del left[module]
    return set(left)


def test_every_room_imports_only_from_below():
    assert upward(imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert in_circles(imports()) == set()


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("training.loop", "from torchspec.launch import ray", "training.loop imports launch.ray"),
        ("nn.send", "def f():\n    from torchspec.records import Batch", "nn.send imports records"),
        ("capture.config", "import torchspec.capture.hf", "capture.config imports capture.hf"),
    ],
)
def test_a_planted_import_from_above_is_found(module, line, problem):
    graph = imports()
    graph[module] |= named(line) & graph.keys()
    assert upward(graph) == [problem]


def test_a_planted_circle_is_found():
    graph = imports()
    graph["files.lock"] |= named("from torchspec.files.writing import writing") & graph.keys()
    assert {"files.lock", "files.writing"} <= in_circles(graph)


def test_the_documented_tree_is_the_one_on_disk():
    """A line per room, `name/  what it is`, then its modules; a note in parentheses may follow a name."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("```\ntorchspec/\n")[1].split("```")[0]
    drawn, folder = set(), ""
    for line in tree.splitlines():
        if entered := re.match(r" {2}(\S+)/ ", line):
            folder = entered[1].replace("/", ".") + "."
        elif alone := re.match(r" {2}(\w+)\.py ", line):
            drawn.add(alone[1])
        else:
            drawn |= {folder + name.strip() for name in re.sub(r"\([^)]*\)", "", line).split("·") if name.strip()}
    assert drawn == imports().keys() - {"__main__"}
