"""Plans the smallest presets for every model of the catalogue that has a family (`make plans`): plans.jsonl, plans.md.

Takes an hour; what stands in plans.jsonl is not planned again, so it can be stopped and started. To begin anew, delete
that file. Names of presets or models as arguments plan only those.
"""

import json
import sys
import time
from pathlib import Path

from vlmtune.catalog import Entry, catalog
from vlmtune.config.load import preset_config
from vlmtune.engine.runtime import prepare_environment, quiet_libraries
from vlmtune.units import GIB

FOLDER = Path(__file__).parent
PLANS, TABLE = FOLDER / "plans.jsonl", FOLDER / "plans.md"
PRESETS = ("6gb", "8gb")
"""Of the sizes at which it is a question what fits."""
SAID_BY_ANOTHER = ("training.gradient_accumulation_steps", "training.lora.alpha", "data.truncation")


def main() -> None:
    """Plan what is missing, and write the table after each."""
    prepare_environment()
    quiet_libraries()
    done = {(row["preset"], row["model"]) for row in read_plans()}
    for entry in tunable():
        for preset in PRESETS:
            wanted = not sys.argv[1:] or preset in sys.argv[1:] or entry.model_id in sys.argv[1:]
            if wanted and (preset, entry.model_id) not in done:
                row = plan_one(entry, preset)
                with PLANS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                TABLE.write_text(table(read_plans()), encoding="utf-8")
                print(f"{preset} {entry.model_id}: {_changes(row)} ({row['seconds']:.0f} s)", flush=True)


def tunable() -> list[Entry]:
    """Return the models that vlmtune can tune, the smallest first."""
    return sorted((entry for entry in catalog() if entry.family), key=lambda entry: entry.num_parameters)


def read_plans() -> list[dict]:
    """Return what has been planned."""
    return [json.loads(line) for line in PLANS.read_text(encoding="utf-8").splitlines()] if PLANS.exists() else []


def plan_one(entry: Entry, preset: str) -> dict:
    """Return the plan of a model on a card of the preset's size, beside a Linux desktop where one is usual."""
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.estimate.search.fit import fit_card
    from vlmtune.hardware.cards import Target, budget_bytes, find_card
    from vlmtune.hub.source import open_model

    started, card = time.perf_counter(), find_card(preset)
    source = open_model(entry.model_id, None, FOLDER, offline_catalog=True)
    target = Target(card, budget_bytes(card, "linux"), expandable_segments=True)
    fit = fit_card(Scenario(preset_config(entry.model_id, preset), source, target))
    return {
        "preset": preset,
        "model": entry.model_id,
        "fits": fit.fits,
        "words": fit.words,
        "unchanged_bytes": fit.unchanged.peak_reserved_bytes,
        "peak_reserved_bytes": fit.report.peak_reserved_bytes,
        "budget_bytes": target.budget_bytes,
        "tokens": fit.report.tokens,
        "tried": fit.tried,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": fit.report.versions,
    }


def table(rows: list[dict]) -> str:
    """Return the plans as markdown."""
    entries = tunable()
    order = {(preset, entry.model_id): place for place, (entry, preset) in enumerate(_pairs(entries))}
    rows = sorted((row for row in rows if (row["preset"], row["model"]) in order), key=lambda row: order[_pair(row)])
    lines = [
        "# What the presets for 6 and 8 GB become",
        "",
        f"{len(rows)} of {len(order)} pairs of preset and model, each on a card of the preset's size beside a Linux "
        "desktop. Made by `make plans`",
        "with what `vlmtune plan --model MODEL --gpu PRESET` decides; GiB reserved, as the preset is and as planned.",
        "They take an hour and are not made anew with each change of the levers or the search: "
        "what the command says counts.",
    ]
    for preset in PRESETS:
        lines += ["", f"## {preset}", "", "| Model | Preset | Planned | Of | What changes |", "|---|---|---|---|---|"]
        for row in rows:
            if row["preset"] == preset:
                sizes = (row[key] / GIB for key in ("unchanged_bytes", "peak_reserved_bytes", "budget_bytes"))
                lines.append(f"| {row['model']} | {' | '.join(f'{size:.2f}' for size in sizes)} | {_changes(row)} |")
    return "\n".join(lines) + "\n"


def _pairs(entries: list[Entry]) -> list[tuple[Entry, str]]:
    return [(entry, preset) for preset in PRESETS for entry in entries]


def _pair(row: dict) -> tuple[str, str]:
    return row["preset"], row["model"]


def _changes(row: dict) -> str:
    if not row["fits"]:
        return "**does not fit**"
    words = [word.split("=") for word in row["words"]]
    said = [f"{key.rpartition('.')[2]} {value}" for key, value in words if key not in SAID_BY_ANOTHER]
    return ", ".join(said) or "nothing"


if __name__ == "__main__":
    main()
