"""A disk that is full at every place of a run: `make full-disk` (after every 4 KB; PAGES=10: after every 40).

The run folder lies on a small file system in memory, filled so that the run finds room for a little more each time.
Each time the run says so in one error, what was good is still there, and it goes on, with room, to the weights and the
log of a run that nobody disturbed. The file system belongs to this process alone (user namespaces, Linux).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ordeals import Run, make_project
from rich.console import Console

DISK_BYTES = 64 * 2**20
PAGE_BYTES = 4096
KIND = "evaluation"
INSIDE = "--inside"


def free_pages(folder: Path) -> int:
    """Return how many pages may still be written."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // PAGE_BYTES


def leave(folder: Path, pages: int) -> None:
    """Fill the disk but for so many pages; all of it is free again when `ballast` is gone."""
    with (folder / "ballast").open("wb") as file:
        file.write(bytes((free_pages(folder) - pages) * PAGE_BYTES))


def tried(run: Run, pages: int, expected: tuple) -> tuple[str, str, bool]:
    """Run with so much room, then go on with all of it; return what it said, what is wrong, and whether it had room."""
    leave(run.root / "runs", pages)
    full = run.finish()
    (run.root / "runs" / "ballast").unlink()
    said = full.output.partition("error: ")[2].partition("\n")[0]
    problems = []
    if full.has_traceback or full.code not in (0, 1) or (full.code == 1 and "the disk is full" not in said):
        problems.append(f"exit code {full.code}\n{full.output}")
    kept = {folder.name for folder in run.folder.glob("checkpoints/checkpoint-*") if (folder / "COMPLETE").is_file()}
    ended = run.finish()
    if ended.code or ended.has_traceback or run.result() != expected:
        problems.append(f"it does not go on as if nothing had been\n{ended.output}")
    if kept and "continuing from checkpoint" not in ended.output and "is finished" not in ended.output:
        problems.append(f"{sorted(kept)} were not used\n{ended.output}")
    run.remove()
    return said, "; ".join(problems), full.code == 0


def main(step: int) -> int:
    """Print what was said at how many places; return 1 where something was lost."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_project(root)
        (root / "runs").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", root / "runs"], check=True)
        straight = Run(root, "straight", KIND)
        assert straight.finish().code == 0
        expected = straight.result()
        straight.remove()
        said, wrong, pages, had_room = [], [], 0, False
        while not had_room:
            words, problem, had_room = tried(Run(root, "full", KIND), pages, expected)
            said.append(words)
            wrong += [f"with {pages * PAGE_BYTES:,} bytes: {problem}"] if problem else []
            pages += step
        subprocess.run(["umount", root / "runs"], check=True)
    console = Console(width=120, highlight=False)
    for words in dict.fromkeys(said):
        console.print(f"{said.count(words)} × {words or 'room for all of it'}", markup=False)
    console.print(f"{len(said)} runs, a full disk after every {step * PAGE_BYTES:,} bytes: {len(wrong)} lost")
    for one in wrong:
        console.print(one, markup=False)
    return int(bool(wrong))


if __name__ == "__main__":
    words = sys.argv[1:]
    if INSIDE not in words:
        sys.exit(subprocess.run(["unshare", "-rm", sys.executable, __file__, *words, INSIDE]).returncode)
    sys.exit(main(int(words[0])))
