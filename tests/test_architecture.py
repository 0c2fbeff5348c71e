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


def test_no_file_of_the_package_unpickles() -> None:
    offences = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Attribute | ast.Call) and _unpickles(node)
    ]
    assert offences == []


def _unpickles(node: ast.ImportFrom | ast.Attribute | ast.Call) -> bool:
    """Whether a name, an import or a call could run what a file says."""
    if isinstance(node, ast.ImportFrom):
        return node.module in UNPICKLERS
    if isinstance(node, ast.Attribute):
        # What torch.load(weights_only=True) raises when it refuses; nothing else of pickle.
        return ast.unparse(node.value) in UNPICKLERS and node.attr != "UnpicklingError"
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True"
