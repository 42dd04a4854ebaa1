"""How a result is given to other people."""

import shlex
from pathlib import Path


def upload_line(name: str, folder: Path) -> str:
    """Return the command that puts a folder on the hub."""
    return f"hf upload YOUR-NAME/{name} {shlex.quote(str(folder))}"
