"""Trains models that are larger than a small card on the GPU at hand, held to 7 GiB of it: `make gpu-small-card`.

The training process may not reserve more than that once the model is there, and another process holds the rest of the
card: random weights are made on the card, which takes more than loading them. Each model trains 20 steps so, with
levers that move weights into main memory; then without them, on the whole card. The losses must be the same.
A regular expression of names trains only those.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import SMALL_CARD, Case, without_memory_levers  # noqa: E402
from gpu.compare import CATALOGUE  # noqa: E402
from gpu.measure import in_its_own_process  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402
from vlmtune.units import GIB  # noqa: E402

LEFT_BYTES = 7 * GIB


def main(out: Path, names: str) -> None:
    """Write what each run took and learned to `out`."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL_CARD:
            for run, cap_bytes in ((case, LEFT_BYTES), (without_memory_levers(case), None)):
                if not re.search(names, run.name):
                    continue
                results.append(trained(run, cap_bytes, Path(folder)))
                text = json.dumps({"versions": library_versions(), "runs": results}, indent=1)
                out.write_text(text + "\n", encoding="utf-8")
                print(*(results[-1].get(key) for key in ("case", "reserved_bytes", "losses", "error")), flush=True)


def trained(case: Case, cap_bytes: int | None, folder: Path) -> dict:
    """Return what a run took and learned."""
    shown = folder / f"{case.name}.json"
    error = in_its_own_process(case, CATALOGUE, shown, [str(cap_bytes)] if cap_bytes else [])
    found = json.loads(shown.read_text()) if shown.exists() else {"case": case.name, "error": error}
    return {**found, "cap_bytes": cap_bytes}


if __name__ == "__main__":
    main(Path(sys.argv[1]), (*sys.argv[2:], "")[0])
