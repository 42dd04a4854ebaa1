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
    kept = _kept_in()
    if not os.access(next(folder for folder in (kept, *kept.parents) if folder.exists()), os.W_OK):
        return f"{kept} cannot be written, where Triton keeps its kernels (TRITON_CACHE_DIR names another folder)"
    return None


def _kept_in() -> Path:
    """As triton/knobs.py has it."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
