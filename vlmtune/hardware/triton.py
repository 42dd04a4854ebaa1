"""Whether Triton can make kernels here: it comes with torch on Linux, and wants a C compiler and Python's headers."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("gcc", "clang")
"""Looked for in this order; the variable CC names another (triton/runtime/build.py)."""


def why_no_triton() -> str | None:
    """Return why it cannot; None where nothing speaks against it."""
    if find_spec("triton") is None:
        return "Triton is not installed, which torch brings with it on Linux"
    if not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)):
        return f"there is no C compiler for Triton, none of {' and '.join(COMPILERS)}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is missing, which Triton compiles with (the package python3-dev has it)"
    return None
