"""What a run may touch, as SECURITY.md says: its folder and the caches, the files that it is told of, no network."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/opt", sys.base_prefix, sys.prefix, ROOT)
CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1}
CHANGES |= {"os.rename": 2, "os.symlink": 2, "os.link": 2}
"""Events that change a file or folder, and how many paths they name."""


@pytest.fixture
def watch():
    """A function that runs another and returns what it touched: (path, for writing) of files, and addresses."""
    files: list[tuple[Path, bool]] = []
    addresses: list[str] = []
    listening: list[bool] = []

    def note(event: str, args: tuple) -> None:
        if not listening:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            files.append((Path(os.fsdecode(args[0])), bool(args[2] & FOR_WRITING)))
        elif event in CHANGES:
            names = args[: CHANGES[event]]
            files.extend((Path(os.fsdecode(name)), True) for name in names if isinstance(name, str | bytes | Path))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            addresses.append(str(args))

    def run(function, *args):
        listening.append(True)
        try:
            return function(*args)
        finally:
            listening.clear()

    sys.addaudithook(note)  # for the life of the process: it cannot be taken back
    return run, files, addresses


def test_a_run_touches_what_is_its_own_and_what_it_is_told_of(project, watch):
    run, files, addresses = watch
    assert run(project.train, "watched", "training.max_steps=2", "training.save_steps=1").code == 0
    own = (project.run("watched").path.parent, Path(os.environ["XDG_CACHE_HOME"]))
    files = [(path, writes) for path, writes in files if path != Path(os.devnull) and path.suffix != ".pyc"]
    written = {path for path, writes in files if writes}
    assert [path for path in written if not _is_in(path, own)] == []
    assert [path for path, _ in files if not _is_in(path, (*own, project.root, project.model, *SYSTEM))] == []
    assert len(written) > 10 and addresses == []


def _is_in(path: Path, folders: tuple) -> bool:
    path = Path(os.path.realpath(path))
    return any(path == folder or folder in path.parents for folder in (Path(os.path.realpath(one)) for one in folders))
