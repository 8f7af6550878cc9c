"""The rooms of the package: what imports what, drawn from the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import modeling_svitt_ego

PACKAGE = Path(modeling_svitt_ego.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imported_rooms(file: Path) -> set[str]:
    """The other rooms that a file imports from, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        if node.level:
            parent = file.parents[node.level - 1].relative_to(PACKAGE.parent)
            module = ".".join([*parent.parts, *filter(None, [module])])
        names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        found |= {name.split(".")[1] for name in names if name.startswith("modeling_svitt_ego.")}
    return found & set(ROOMS)


def room_graph() -> dict[str, set[str]]:
    graph = {}
    for room in ROOMS:
        graph[room] = set().union(*(imported_rooms(file) for file in (PACKAGE / room).rglob("*.py"))) - {room}
    return graph


def test_rooms_import_one_another_in_one_direction():
    """Catches a cycle between rooms: two rooms that import each other are one room in disguise."""
    order = list(TopologicalSorter(room_graph()).static_order())  # CycleError names the rooms
    assert sorted(order) == ROOMS and order[-1] == "commands"


def test_what_ships_to_the_hub_imports_no_other_room():
    """Catches an import in model/ that a user of the Hub model could not follow."""
    assert room_graph()["model"] == set()


def test_every_package_file_is_in_a_room():
    """Catches files that gather in the root again."""
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "cli.py", "registration.py"]
