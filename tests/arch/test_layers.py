"""Imports go one way. A layer may import itself and what stands after it; anything else makes a cycle one day."""

import ast
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
    ("data",),
    ("models",),
    ("levers", "plan"),
    ("hub",),
    ("hardware", "catalog"),
    ("families", "runs", "config"),
    ("errors", "files", "units", "compat"),
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


def test_the_check_can_fail(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "def f():\n    from vlmtune.cli import main\n    from vlmtune import plan\n    import vlmtune.errors\n"
    )
    assert list(imported_modules(file)) == ["cli", "cli.main", "plan", "errors"]
    assert layer_of("cli") < layer_of("models.build") < layer_of("families.llava") < layer_of("errors")
