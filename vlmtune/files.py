"""Where vlmtune keeps files, and how. Everything may import this."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return vlmtune's folder in the user's cache."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "vlmtune"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlmtune"
