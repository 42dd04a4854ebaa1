"""The source archive has what the repository has: its tests pass where it is unpacked."""

import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALWAYS = ["/pyproject.toml", "/PKG-INFO"]
"""What a source archive has without being told."""


def at_the_top() -> set[str]:
    """Names of the repository's files and folders; without git, as in an archive, of all but what runs make."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    else:
        ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
        names = {entry.name for entry in ROOT.iterdir()} - {line.strip("/") for line in ignored}
    return {name for name in names if not name.startswith(".")}


def test_the_archive_leaves_nothing_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"] + ALWAYS
    names = at_the_top()
    assert {"vlmtune", "tests", "docs", "Makefile"} <= names
    assert {name for name in names if not any(fnmatch(f"/{name}", one) for one in included)} == set()
