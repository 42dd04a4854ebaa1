"""What becomes of the processes that time runs, on the CPU."""

import os
import time

from gpu.timed import on_every_card

CHILD = "import os, pathlib, time; pathlib.Path('{folder}', str(os.getpid())).touch(); time.sleep(60)"
SCRIPT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "{child}"])
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_when_time_is_over_nothing_is_left_on_the_card(tmp_path, monkeypatch):
    """Not the runs either, which are processes of the one that is ended."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (pids := tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(child=CHILD.format(folder=pids)), encoding="utf-8")
    assert on_every_card(script, lambda cards: [["one"]] * cards, tmp_path / "out.json", within_s=2) == 0
    [child] = [int(path.name) for path in pids.iterdir()]
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)
