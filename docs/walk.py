"""Runs every command in the README, in order, as written: `make readme`, or this script with `--all`.

It works in a copy of the tracked files, beside the installation that `make` has made. Two things are not as a reader
has them, and are said when it is done: a folder with the demo's model lies where the commands name a large one, which
would be 8.9 GB of download and 8 GB of GPU memory; and what a command leaves open (CONFIG) is filled in.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
VLMTUNE = ".venv/bin/vlmtune"
INSTALLED_BY = ("pyproject.toml", "constraints.txt")
FILLED_IN = {"CONFIG": "configs/smoke.yaml"}
SLOW = {
    "make test": "every test: ten minutes and more",
    "make bench": "three minutes",
    "make gpu-errors": "installs the oldest libraries beside, then forty minutes",
    "make gpu-time-errors": "installs the oldest libraries beside",
}
"""Commands that `--all` runs too."""
GPU, WITHOUT = "make gpu", ("make gpu-errors", "make gpu-time-errors")
MENTIONED = ("vlmtune train", "vlmtune guide")
"""Names of commands in a sentence, not the commands."""
ITSELF = "make readme"


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a page in their order, once each: lines of blocks, and what stands in a sentence."""
    seen = set()
    for block, inline in re.findall(r"^```$\n(.*?)^```$|`((?:vlmtune|make) [^`\n]+)`", text, re.MULTILINE | re.DOTALL):
        for line in [inline] if inline else block.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
            if command and command not in seen:
                seen.add(command)
                yield command


def as_run(command: str) -> str:
    """Return a command of the page as a shell gets it."""
    for name, value in FILLED_IN.items():
        command = re.sub(rf"\b{name}\b", value, command)
    return re.sub(r"^vlmtune\b", VLMTUNE, command)


def why_not(command: str, *, slow: bool) -> str | None:
    """Return why a command is not run; None where it is."""
    if command == ITSELF:
        return "this walk"
    if command in MENTIONED:
        return "its name in a sentence"
    if command.startswith(GPU) and command not in WITHOUT:
        return "needs a GPU"
    return None if slow else SLOW.get(command)


def copy_of_the_project(folder: Path) -> None:
    """Copy the tracked files, with the installation beside them and the demo's model where a large one is named."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in INSTALLED_BY:
        os.utime(folder / name, (0, 0))  # `make` would install the copy
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(folder / "vlmtune" / "demo" / "model", folder / large_model())


def large_model() -> str:
    """Return the model that the page's commands name."""
    (name,) = {found for command in commands(readme()) for found in re.findall(r"--model (\S+)", command)}
    return name


def readme() -> str:
    """Return the page."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def walk(*, slow: bool) -> int:
    """Run the commands and return how many have failed; the first failure ends the walk."""
    left_out = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_project(folder)
        for command in commands(readme()):
            if reason := why_not(command, slow=slow):
                left_out.append(f"{command} ({reason})")
                continue
            print(f"$ {command}", flush=True)
            started = time.perf_counter()
            environment = os.environ | {"PYTHONPATH": name}  # what is installed is the original
            done = subprocess.run(as_run(command), shell=True, cwd=folder, env=environment, check=False)
            print(f"[exit {done.returncode}, {time.perf_counter() - started:.0f} s]\n", flush=True)
            if done.returncode:
                return 1
    print(f"replaced: {large_model()} by the demo's model; {', '.join(f'{k} by {v}' for k, v in FILLED_IN.items())}")
    print(f"not run: {'; '.join(left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(walk(slow="--all" in sys.argv[1:]))
