"""The README's generated parts are current."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def renew():
    """The module that makes them."""
    spec = importlib.util.spec_from_file_location("renew", ROOT / "docs" / "renew.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_tables_of_keys_and_of_errors():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("config", "errors"):
        assert all(mark.strip() in text for mark in renew().between(name)), f"README.md needs the marks of {name}"
    assert text == renew().renewed(text), "renew it: make docs"


def test_a_changed_table_would_be_seen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert renew().renewed(text.replace("| all | ", "| none | ")) == renew().renewed(text)
    assert text.replace("| all | ", "| none | ") != renew().renewed(text)


def test_the_map_names_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("## Map of the code")[2].partition("| I want")[0]
    package = ROOT / "vlmtune"
    named_by_folder = {package / "cli", package / "config", package / "data", package / "demo"}
    named_by_folder |= {
        package / "cli" / "models",
        package / "cli" / "show",
        package / "data" / "table",
        package / "families",
        package / "models" / "qwen_vl",
        package / "catalog",
    }
    missing = [
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if not file.name.startswith("__") and file.parent not in named_by_folder and file.name not in tree
    ]
    assert missing == []
