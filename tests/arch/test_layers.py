"""Imports go one way. A layer may import itself and what stands after it; anything else makes a cycle one day."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "vlmtune"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("cli",),
    ("workflow",),
    ("guide", "contract"),
    ("estimate",),
    ("engine",),
    ("metrics",),
    ("data",),
    ("models",),
    ("levers", "plan"),
    ("hub",),
    ("hardware", "catalog"),
    ("families", "runs", "config"),
    ("errors", "files", "reading", "printing", "console", "environment", "units", "signals", "compat"),
)
"""From the outermost to the innermost; `demo` is made with the package and no part of it imports it."""


def layer_of(module: str) -> int | None:
    """The position of a dotted module name (without `vlmtune.`) in LAYERS; the longest name that fits wins."""
    fits = [
        (len(name), depth)
        for depth, layer in enumerate(LAYERS)
        for name in layer
        if module == name or module.startswith(f"{name}.")
    ]
    return max(fits)[1] if fits else None


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {module_name(file) for file in FILES}


def imported_modules(file: Path):
    """The vlmtune modules that a file imports, wherever in the file, except for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_checkers = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in for_checkers:
            assert node.level == 0, f"{file}:{node.lineno}: write the import in full"
            if node.module == "vlmtune":
                yield from (alias.name for alias in node.names if not alias.name.startswith("__"))
            elif (node.module or "").startswith("vlmtune."):
                yield node.module.removeprefix("vlmtune.")
                yield from (f"{node.module}.{alias.name}".removeprefix("vlmtune.") for alias in node.names)
        elif isinstance(node, ast.Import) and node not in for_checkers:
            names = (alias.name for alias in node.names)
            yield from (name.removeprefix("vlmtune.") for name in names if name.startswith("vlmtune."))


def test_every_module_has_a_layer():
    modules = [module_name(file) for file in FILES]
    assert len(modules) >= 20
    known = ("", "__main__")
    assert [m for m in modules if m not in known and m.split(".")[0] != "demo" and layer_of(m) is None] == []


@pytest.mark.parametrize("file", [file for file in FILES if layer_of(module_name(file)) is not None], ids=module_name)
def test_imports_go_inwards_only(file):
    module = module_name(file)
    own_layer = layer_of(module)
    for imported in imported_modules(file):
        assert not imported.startswith("demo"), f"{module} imports {imported}"
        assert layer_of(imported) is not None, f"{module} imports {imported}, which has no layer"
        assert own_layer <= layer_of(imported), f"{module} imports {imported}: that points outwards"


def test_no_room_and_no_module_is_imported_by_what_it_imports():
    by_module: dict[str, set[str]] = {}
    for file in FILES:
        name = module_name(file)
        known = (_known(imported) for imported in imported_modules(file))
        by_module[name] = {found for found in known if found and found != name}
    by_room: dict[str, set[str]] = {}
    for name, imported in by_module.items():
        room = name.split(".")[0]
        by_room.setdefault(room, set()).update({found.split(".")[0] for found in imported} - {room})
    assert len(by_module) > 150 and len(by_room) > 15
    assert circle_in(by_room) is None
    # A package's own __init__ gathers its modules; what these import of it is what stood before the gathering.
    without_gathering = {name: imported - {name.rpartition(".")[0]} for name, imported in by_module.items()}
    assert circle_in(without_gathering) is None


def _known(imported: str) -> str:
    """The module that an imported dotted name lies in."""
    while imported and imported not in NAMES:
        imported = imported.rpartition(".")[0]
    return imported


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """A way that comes back to where it began, or None."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


MOST_FILES, MOST_LINES = 14, 300


def test_no_room_is_crowded_and_no_module_long():
    crowded = {
        str(folder.relative_to(PACKAGE)): number
        for folder in {file.parent for file in FILES}
        if (number := len([file for file in folder.glob("*.py") if file.name != "__init__.py"])) > MOST_FILES
    }
    assert crowded == {}
    lines = {module_name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}


def test_the_check_can_fail(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "def f():\n    from vlmtune.cli import main\n    from vlmtune import plan\n    import vlmtune.errors\n"
    )
    assert list(imported_modules(file)) == ["cli", "cli.main", "plan", "errors"]
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert layer_of("cli") < layer_of("models.build") < layer_of("families.llava") < layer_of("errors")
