"""What becomes of the processes that time runs, on the CPU."""

import fcntl
import time

from gpu.timed import on_every_card

SCRIPT = """
import fcntl, subprocess, sys, time
if sys.argv[1] == "--these":
    subprocess.run([sys.executable, __file__, "run"])
with open({held!r}, "w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    held.write("on the card")
    held.flush()
    time.sleep(60)
"""


def test_when_time_is_over_nothing_is_left_on_the_card(tmp_path, monkeypatch):
    """Not the runs either, which are processes of the one that is ended."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    script, held = tmp_path / "script.py", tmp_path / "held"
    script.write_text(SCRIPT.format(held=str(held)), encoding="utf-8")
    assert on_every_card(script, lambda cards: [["one"]] * cards, tmp_path / "out.json", within_s=3) == 0
    assert held.read_text(encoding="utf-8") == "on the card"
    until = time.monotonic() + 10
    with held.open() as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < until, "it goes on"
                time.sleep(0.05)
