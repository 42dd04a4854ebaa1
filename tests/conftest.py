"""What every test stands on: no network, no colour, 80 columns, and the CLI as a function."""

import gc
import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from itertools import count

import pytest

gc.disable()  # until all is imported: libraries make a million objects, none of them garbage

# Set before any test module is imported: rich and transformers read these once.
os.environ.update(
    OMP_NUM_THREADS="1",  # tiny models: threads that wait for each other cost a hundred times more than they gain
    COLUMNS="80",
    NO_COLOR="1",
    TERM="dumb",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_VERBOSITY="error",
)
for name in ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)

# A shell's background jobs start with Ctrl-C ignored, and what `nohup` starts with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.fsync = lambda handle: None  # no test outlives a power cut; that it is asked for, and when, tests see all the same

REAL_CONNECT, REAL_CONNECT_EX = socket.socket.connect, socket.socket.connect_ex


def _refuse(real):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise PermissionError(f"tests do not use the network: {address!r}")
        return real(self, address)

    return connect


socket.socket.connect = _refuse(REAL_CONNECT)
socket.socket.connect_ex = _refuse(REAL_CONNECT_EX)


def pytest_collection_finish() -> None:
    """Let the collector look at what tests make, and never again at what their imports made."""
    from vlmtune.engine.runtime import freeze_libraries

    freeze_libraries()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep a module's tests in one worker, modules in their order: what they share is made once, the last are short."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def _new_folders(tmp_path_factory):
    """Folders that are not there yet. pytest's own numbering looks through all earlier ones for each test."""
    parent = tmp_path_factory.mktemp("caches")
    return (parent / str(number) for number in count())


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch, _new_folders):
    """Give each test a cache folder of its own: no test meets an estimate that another one made."""
    folder = next(_new_folders)
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A function that returns a tiny model by its name and the layers of its text model; each is made once.

    Tests must not change its files.
    """
    from tiny.rows import TinyModel

    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name, layers=2: TinyModel(name, folder, layers))


@dataclass(frozen=True)
class CliResult:
    """What a finished command left behind."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_cli(capsys):
    """A function that runs `vlmtune ARGS…` in this process and returns its `CliResult`; a bug raises through it."""

    def run(*args: object) -> CliResult:
        from vlmtune.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        output = capsys.readouterr()
        return CliResult(exit_info.value.code or 0, output.out, output.err)

    return run
