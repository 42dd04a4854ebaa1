"""Runs plans on a GPU whose memory is held to a little more and a little less than their estimate: `make gpu-cap`.

A plan estimated at 92 to 98 % of the memory must run. One that needs 105 % must not; one estimated at 105 % may, since
PyTorch, short of memory, gives back what it holds unused and tries again, so that it needs less than it would reserve.
Expandable segments; random weights made on the card, as in measure.py, which takes more than loading them: the cap
holds from then on.
"""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import CASES, Case  # noqa: E402
from gpu.compare import CATALOGUE, prepared, replay_of  # noqa: E402
from gpu.measure import AT_A_TIME, in_its_own_process  # noqa: E402

from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK, AllocatorSettings, CachingAllocator  # noqa: E402
from vlmtune.estimate.simulate.record import Log  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

NAMES = ("qwen3-2b", "qwen3-4b-long", "qwen25-3b", "llava-7b", "smol-2b", "gemma-4b", "pali-3b", "internvl3-2b")
ESTIMATE, NEED = "estimate", "need"
SHARES = ((92, ESTIMATE), (98, ESTIMATE), (105, ESTIMATE), (105, NEED))
"""Percent of what the process may reserve: of the estimate, or of the least that the plan runs with."""
STEP_BYTES = 2**21


def would_run(log: Log, cap_bytes: int) -> bool:
    """Return whether the allocator's model finds memory for everything, the cap holding after loading."""
    allocator, blocks = CachingAllocator(AllocatorSettings(expandable_segments=True)), {}
    for handle, num_bytes in log.events:
        if handle < 0:
            allocator.free(blocks.pop(-handle))
        elif (handle, num_bytes) == EMPTY_CACHE:
            allocator.empty_cache()
        elif (handle, num_bytes) == RESET_PEAK:
            allocator.allowed_bytes = cap_bytes
        else:
            blocks[handle] = allocator.allocate(num_bytes)
            if blocks[handle] is None:
                return False
    return True


def least_bytes(log: Log, reserved_bytes: int) -> int:
    """Return the smallest cap under which the allocator's model finds memory for everything, to 2 MiB."""
    runs, fails = reserved_bytes // STEP_BYTES, reserved_bytes // (2 * STEP_BYTES)
    while runs - fails > 1:
        middle = (runs + fails) // 2
        runs, fails = (middle, fails) if would_run(log, middle * STEP_BYTES) else (runs, middle)
    return runs * STEP_BYTES


def capped_run(case: Case, log: Log, percent: int, of: str, folder: Path) -> dict:
    """Train the case under a cap; return what happened."""
    estimated_bytes = replay_of(case, log).peak_reserved_bytes
    taken_bytes = least_bytes(log, estimated_bytes) if of == NEED else estimated_bytes
    cap_bytes, out = taken_bytes * 100 // percent, folder / f"{case.name}-{percent}-{of}.json"
    error = in_its_own_process(case, CATALOGUE, out, [str(cap_bytes)])
    shown = json.loads(out.read_text()) if out.exists() else {"error": error}
    return {
        "case": case.name,
        "percent": percent,
        "of": of,
        "estimated_bytes": estimated_bytes,
        "taken_bytes": taken_bytes,
        "cap_bytes": cap_bytes,
        "predicted": would_run(log, cap_bytes),
        "ran": "reserved_bytes" in shown,
        "reserved_bytes": shown.get("reserved_bytes"),
        **({"error": shown["error"]} if "error" in shown else {}),
    }


def main(out: Path) -> None:
    """Write every run's outcome to `out`."""
    runs, results = [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_A_TIME) as pool:
        for case in (case for case in CASES if case.name in NAMES):
            log = prepared(case, Path(folder) / case.name).log()
            runs += [pool.submit(capped_run, case, log, *share, Path(folder)) for share in SHARES]
        for run in runs:
            results.append(run.result())
            text = json.dumps({"versions": library_versions(), "runs": results}, indent=1)
            out.write_text(text + "\n", encoding="utf-8")
            outcome = "ran" if results[-1]["ran"] else "did not run"
            print(results[-1]["case"], results[-1]["percent"], results[-1]["of"], outcome, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
