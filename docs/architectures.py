"""Tries the contract on every architecture that transformers loads for images and text (`make architectures`).

Each one runs in a process of its own with a time limit. Results are kept in architectures.json, so the command can be
stopped and started; `--again` tries all of them anew, names as arguments only those. architectures.md is its table.
"""

import json
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmtune.contract import COUNTED, check
from vlmtune.families import FAMILIES
from vlmtune.hub.source import ModelSource

FOLDER = Path(__file__).parent
RESULTS, TABLE = FOLDER / "architectures.json", FOLDER / "architectures.md"
LIMIT_S = 300
SETUP = ("tiny model", "family and processor", "rows")
SHOWN_POINTS = (*COUNTED, "rows in one batch")
LONGEST_REASON = 160


def tried(kind: str) -> list[dict]:
    """Return the points of the contract for one model type, found out in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with TemporaryDirectory() as folder:
            findings = check(ModelSource(kind, {"model_type": kind}, {}), Path(folder))
        os.write(writer, json.dumps([vars(finding) for finding in findings]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if said:
        return json.loads(said)
    reason = f"no answer in {LIMIT_S} s" if os.WIFSIGNALED(status) else "the process ended with an error"
    return [{"name": "tiny model", "holds": False, "reason": reason}]


def table(results: dict) -> str:
    """Return the results in Markdown."""
    holding = [kind for kind, points in results["types"].items() if holds(points)]
    lines = [
        "# Architectures tried",
        "",
        f"Made by `make architectures` with transformers {results['transformers']}: a tiny random model of each "
        "architecture's default config, its own processor with a stand-in tokenizer, QLoRA on the CPU.",
        "",
        f"{len(holding)} of {len(results['types'])} hold all of: {', '.join(COUNTED)}. "
        "'Rows in one batch' is needed for batch_size above 1 only.",
        "",
        "| model_type | family | " + " | ".join(SHOWN_POINTS) + " | what fails |",
        "|" + "---|" * (len(SHOWN_POINTS) + 3),
    ]
    declared = {kind: family.name for family in FAMILIES for kind in family.model_types}
    for kind, points in sorted(results["types"].items()):
        by_name = {point["name"]: point for point in points}
        cells = [{True: "yes", False: "no", None: "-"}[by_name.get(name, {}).get("holds")] for name in SHOWN_POINTS]
        failed = next((point for point in points if not point["holds"]), None)
        reason = f"{failed['name']}: {failed['reason']}"[:LONGEST_REASON].replace("|", "/") if failed else ""
        lines.append(f"| {kind} | {declared.get(kind, 'generic')} | {' | '.join(cells)} | {reason} |")
    return "\n".join(lines) + "\n"


def holds(points: list[dict]) -> bool:
    """Return whether every counted point was tried and holds."""
    good = {point["name"] for point in points if point["holds"]}
    return {*SETUP, *COUNTED} <= good


def main(words: list[str]) -> None:
    """Try what has no result yet, and write both files."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"types": {}}
    if "--again" in words or results.get("transformers") != transformers.__version__:
        results = {"transformers": transformers.__version__, "types": {}}
    transformers.logging.set_verbosity_error()
    named = [word for word in words if not word.startswith("--")]
    for kind in named or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        if kind in results["types"] and not named:
            continue
        results["types"][kind] = points = tried(kind)
        sys.stdout.write(f"{kind}: {'holds' if holds(points) else 'does not hold'}\n")
        sys.stdout.flush()
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        TABLE.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
