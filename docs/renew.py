"""Renews what is generated (`make docs`): the tables in README and docs/, the schema, all-keys, the picture.

The picture of the live view is drawn from live-view.jsonl, the log of a real run; its caption in the README names it.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vlmtune import levers
from vlmtune.catalog import catalog
from vlmtune.catalog.stored import stored
from vlmtune.config.docs import all_keys_yaml, config_table_markdown, schema_json
from vlmtune.engine.panel import render
from vlmtune.metrics.table import METRICS
from vlmtune.runs.records import StepRecord
from vlmtune.units import GIB

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from gpu import tables  # noqa: E402
from gpu.groups import PAGES_3B, PAGES_BESIDE, PAGES_IN_PACKS, table_of  # noqa: E402
from gpu.parted import losses_table  # noqa: E402


def metrics_table() -> str:
    """Return every metric and what it is."""
    lines = ["| Metric | What it is | As defined by | Needs |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        lines.append(f"| `{name}` | {metric.says} | {metric.source} | {metric.package} |")
    return "\n".join(lines) + "\n"


def make_table() -> str:
    """Return the tasks of the Makefile with their words."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    tasks = re.findall(r"^([a-z-]+):.*?## (.*)$", text, re.MULTILINE)
    rows = [f"| `make {name}` | {what} |" for name, what in tasks]
    return "\n".join(["| Command | What it does |", "|---|---|", *rows]) + "\n"


LOADED_AT = ("8gb", "6gb")
"""Presets whose loading is shown: those of the smallest cards."""


def levers_table() -> str:
    """Return the levers in the order in which they are given up, those that save nothing by themselves last."""
    rows = [
        "| Lever | Keys | What it costs | Same result | A run may change it |",
        "|---|---|---|---|---|",
    ]
    saving = list(dict.fromkeys(lever.name for lever, _ in levers.savings()))
    for lever in sorted(levers.LEVERS, key=lambda one: saving.index(one.name) if one.name in saving else len(saving)):
        keys = ", ".join(f"`{key}`" for key in lever.keys)
        exact = "yes" if lever.exact else "no"
        rows.append(f"| {lever.name} | {keys} | {lever.costs} | {exact} | {lever.on_resume.value} |")
    return "\n".join(rows) + "\n"


def savings_table() -> str:
    """Return every saving in the order in which `vlmtune plan` gives it up."""
    rows = ["| | Saving | Lever |", "|--:|---|---|"]
    for number, (lever, saving) in enumerate(levers.savings(), 1):
        rows.append(f"| {number} | {saving.reason} | {lever.name} |")
    return "\n".join(rows) + "\n"


def loading_table() -> str:
    """Return what loading takes of the card beside training, for every model that can be tuned, and main memory."""
    rows = [
        f"| Model | {' | '.join(f'{name}: load | Train' for name in LOADED_AT)} | Main memory |",
        f"| --- |{' --: | --: |' * len(LOADED_AT)} --: |",
    ]
    for entry in catalog():
        if peaks := stored(entry.model_id).peaks:
            sizes = [size for name in LOADED_AT for size in (peaks[name].load_bytes, peaks[name].allocated_bytes)]
            main_memory = peaks[LOADED_AT[0]].main_memory_bytes
            cells = [f"{size / GIB:.2f}" for size in sizes] + [
                "-" if main_memory is None else f"{main_memory / GIB:.1f}"
            ]
            rows.append(f"| {entry.model_id} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


GENERATED: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"measured": tables.measured_table},
    "docs/config.md": {"config": config_table_markdown},
    "docs/estimate.md": {
        "errors": tables.errors_table,
        "cap": tables.cap_table,
        "train": tables.train_table,
        "time": tables.time_table,
        "brute": tables.brute_table,
    },
    "docs/loading.md": {"loading": loading_table},
    "docs/evaluation.md": {"metrics": metrics_table},
    "docs/speed.md": {
        "beside": tables.beside_table,
        "ratios": tables.ratios_table,
        "fast": tables.fast_table,
        "equal": lambda: losses_table("equal.json"),
        "demo": lambda: losses_table("demo-equal.json"),
    },
    "docs/profile.md": {
        "profile": lambda: table_of(PAGES_3B),
        "packs": lambda: table_of(PAGES_IN_PACKS),
        "peer": lambda: table_of(PAGES_BESIDE),
    },
    "docs/several-gpus.md": {
        "ranks": tables.ranks_table,
        "ranks memory": tables.ranks_memory_table,
        "peers": tables.peers_on_gpus_table,
    },
    "docs/levers.md": {
        "levers": levers_table,
        "savings": savings_table,
        "fused": tables.fused_table,
        "joined": lambda: tables.fused_table("joined-packs.json"),
        "epochs": tables.features_table,
    },
    "docs/contributing.md": {"make": make_table},
}
"""By page, the name in a table's marks and what makes it."""


def between(name: str) -> tuple[str, str]:
    """Return the marks around a generated table."""
    return f"<!-- {name} table: start -->\n", f"<!-- {name} table: end -->"


def renewed(page: str, text: str) -> str:
    """Return the text of a page with its tables as they are."""
    for name, table in GENERATED[page].items():
        start, end = between(name)
        before, _, rest = text.partition(start)
        text = before + start + table() + end + rest.partition(end)[2]
    return text


def draw_live_view() -> None:
    """Draw the live view as it stood at the last line of the log."""
    lines = (ROOT / "docs" / "live-view.jsonl").read_text(encoding="utf-8").splitlines()
    records = [StepRecord(**json.loads(line)) for line in lines]
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=84, file=nowhere, force_terminal=True)
        console.print(render(records, title="qwen3-vl-4b-8gb"))
    console.save_svg(str(ROOT / "docs" / "live-view.svg"), title="vlmtune train configs/8gb.yaml")


def main() -> None:
    """Renew everything."""
    for page in GENERATED:
        file = ROOT / page
        file.write_text(renewed(page, file.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "configs" / "schema.json").write_text(schema_json(), encoding="utf-8")
    (ROOT / "configs" / "all-keys.yaml").write_text(all_keys_yaml(), encoding="utf-8")
    draw_live_view()


if __name__ == "__main__":
    main()
