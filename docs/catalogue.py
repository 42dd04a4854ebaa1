"""Estimates every model of the catalogue at every preset (`make catalogue`): vlmtune/catalog/estimates.jsonl.

Takes half an hour. A line is replaced when its model is done, and estimates that are made are kept in the user's cache
as long as the code is the same, so it can be stopped and started. Names of models as arguments make only those.
"""

import datetime
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from vlmtune.catalog import Entry, catalog
from vlmtune.catalog.stored import FILE, IMAGE_SIZES_PX, Measured, Peak, Stored, read_lines
from vlmtune.config.load import preset_config
from vlmtune.config.presets import names
from vlmtune.engine.runtime import prepare_environment, quiet_libraries
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.scenario import Scenario
from vlmtune.families import find_family
from vlmtune.files import write_atomically
from vlmtune.hardware.cards import Target, budget_bytes, find_card
from vlmtune.hub.source import ModelSource, open_model
from vlmtune.runs.versions import library_versions

TESTS = Path(__file__).parents[1] / "tests"
MEASURED = TESTS / "gpu" / "measured" / "peaks.json"


def main() -> None:
    """Make every line, or those of the models named."""
    prepare_environment()
    quiet_libraries()
    failed = False
    for entry in catalog():
        if sys.argv[1:] and entry.model_id not in sys.argv[1:]:
            continue
        started = time.perf_counter()
        try:
            write_line(entry.model_id, stored_of(entry))
            print(f"{entry.model_id} ({time.perf_counter() - started:.0f} s)", flush=True)
        except VlmtuneError as error:
            failed = True
            print(f"{entry.model_id}: {error}", file=sys.stderr, flush=True)
    sys.exit(failed)


def stored_of(entry: Entry) -> Stored:
    """Return what the code at hand says of a model."""
    source = open_model(entry.model_id, None, FILE.parent, offline_catalog=True)
    today = datetime.date.today().isoformat()
    if entry.family is None:
        return Stored({}, {}, (), problem_of(source, entry), library_versions(), today)
    tokens = {side_px: image_tokens(source, entry, side_px) for side_px in IMAGE_SIZES_PX}
    peaks = {preset: peak_of(entry.model_id, preset, source) for preset in names()}
    return Stored(tokens, peaks, measured_of(entry), None, library_versions(), today)


def problem_of(source: ModelSource, entry: Entry) -> str:
    """Return why a model without a family cannot be tuned."""
    try:
        find_family(source.config, entry.model_id)
    except VlmtuneError as error:
        return error.message.removeprefix(f"{entry.model_id}: ")
    raise VlmtuneError(f"{entry.model_id} has a family", "say so in index.yaml")


def image_tokens(source: ModelSource, entry: Entry, side_px: int) -> int:
    """Return the tokens of a square picture where `data.image_size` is its side."""
    family = find_family(source.config, entry.model_id)
    overrides = family.image_settings(source.config, source.preprocessor, side_px).overrides
    return family.image_tokens(source.config, {**source.preprocessor, **overrides}, side_px, side_px)


def peak_of(model_id: str, preset: str, source: ModelSource) -> Peak:
    """Return what a preset takes on a card of its size."""
    card = find_card(preset)
    target = Target(card, budget_bytes(card, "linux"), expandable_segments=True)
    loaded = preset_config(model_id, preset)
    report = Scenario(loaded, source, target).estimate(fast=True)
    load = next(phase for phase in report.phases if phase.name == "load")
    return Peak(
        method=loaded.config.training.method,
        reserved_bytes=report.peak_reserved_bytes,
        allocated_bytes=report.peak_allocated_bytes,
        load_bytes=load.peak_allocated_bytes,
        text_tokens=report.tokens["text"],
        image_tokens=report.tokens["image"],
        main_memory_bytes=report.main_memory.peak_bytes,
        rows_per_s=round(report.time.rows_per_s, 3),
    )


def measured_of(entry: Entry) -> tuple[Measured, ...]:
    """Return the model's first measured run, which is the plainest; none where it was not measured."""
    sys.path.insert(0, str(TESTS))
    from gpu.cases import CASES, config_of

    record = json.loads(MEASURED.read_text(encoding="utf-8"))
    runs = {run["case"]: run for run in record["runs"]}
    for case in CASES:
        if case.model == entry.folder.name and (run := runs.get(case.name)):
            training = config_of(case, TESTS).training
            sizes = (run["longest_row_tokens"], run["reserved_bytes"], run["allocated_bytes"])
            return (Measured(run["gpu"], training.method, training.lora.rank, *sizes, record["versions"]),)
    return ()


def write_line(model_id: str, made: Stored) -> None:
    """Put a model's line into the file, in the order of the catalogue; models that left the catalogue go."""
    lines = read_lines() | {model_id: asdict(made)}
    rows = [{"model": entry.model_id, **lines[entry.model_id]} for entry in catalog() if entry.model_id in lines]
    write_atomically(FILE, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
