"""What waits for a process that holds a card does not wait for ever."""

import os
import sys

import pytest
from gpu import ballast
from gpu.ballast import READY, holding


def command(line: str) -> list[str]:
    return [
        sys.executable,
        "-S",
        "-c",
        f"import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); {line}",
    ]


def test_one_that_never_gets_ready_is_ended(monkeypatch, capfd):
    monkeypatch.setattr(ballast, "READY_WITHIN_S", 0.5)
    with pytest.raises(RuntimeError, match=r"GPU 1 was not ready within 0\.5 s"), holding(command("input()"), "1"):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int(capfd.readouterr().err), 0)


def test_one_that_fails_is_said_at_once():
    with pytest.raises(RuntimeError, match="GPU 0 has ended"), holding(command("sys.exit(1)")):
        pass


def test_it_sees_the_gpu_that_is_named_and_ends_with_the_block(capfd):
    line = f"assert os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-a'; print({READY!r}, end='', flush=True); input()"
    with holding(command(line), "GPU-a"):
        process = int(capfd.readouterr().err)
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
