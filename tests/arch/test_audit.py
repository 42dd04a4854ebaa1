"""`make audit` fails with one message where nobody tells it of weaknesses, and shows them where somebody does."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_ADVISORIES = (
    "make audit: no advisories: PyPI's own service was not reached, so nothing is known of what is installed"
)
NOT_REACHED = "Traceback (most recent call last):\nrequests.exceptions.ConnectionError: no route\n"
NOT_KNOWN = "ERROR:pip_audit._cli:peft: Dependency not found on PyPI and could not be audited: peft (0.21.2)\n"
WEAK = "Found 1 known vulnerability in 1 package\n"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [(NOT_REACHED, 1, NO_ADVISORIES), (NOT_KNOWN, 1, NO_ADVISORIES), (WEAK, 1, WEAK.strip()), ("", 0, "")],
    ids=["nothing is reached", "a version is not known", "a weakness", "none"],
)
def test_what_the_audit_says(tmp_path, said, code, shown):
    (tmp_path / "said").write_text(said)
    for name in (".venv/bin/python", ".venv-audit/bin/python"):
        program(tmp_path / name, "exit 0")
    program(tmp_path / ".venv-audit" / "bin" / "pip-audit", f"cat '{tmp_path}/said' >&2; exit {code}")
    words = ["make", "--silent", "--old-file=install", "audit", "PYTHON=true", f"VENV={tmp_path}/.venv"]
    # Within `make test` a make would count itself as that one's child, say so in its errors and take its options.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=outside)
    assert bool(done.returncode) == bool(code)
    assert [line for line in done.stderr.splitlines() if not line.startswith("make: ***")] == shown.splitlines()
