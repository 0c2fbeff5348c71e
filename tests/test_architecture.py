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
    "methods",
    "distillation",
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


def test_no_file_of_the_package_can_unpickle() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {"pickle", "dill", "joblib", "cloudpickle"} & set(names), file
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "load"
                and ast.unparse(node.func) == "torch.load"
            ):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", file
