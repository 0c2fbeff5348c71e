"""The rooms stand on each other in one order: a room imports only from rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rdcache

PACKAGE = Path(rdcache.__file__).parent
ROOMS = [
    "store",
    "data",
    "models",
    "losses",
    "extraction",
    "transferability",
    "methods",
    "distillation",
    "adaptation",
    "report",
    "cli",
]


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file the import stands."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "rdcache" and len(part) > 1} & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below_it(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files, f"the room {room} is empty"
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for file in files:
        assert imported_rooms(file) <= allowed, file


UNPICKLERS = {"pickle", "dill", "joblib", "cloudpickle", "shelve"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_no_file_of_the_package_unpickles(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in UNPICKLERS
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLERS:
            # What torch.load(weights_only=True) raises when it refuses; nothing else of pickle.
            assert node.attr == "UnpicklingError"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True"
