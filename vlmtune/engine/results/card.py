"""README.md beside a result: what it is, of which model, how it was made and how to load it, as the hub shows it.

No path of the machine is in it, and nothing of the rows but their number.
"""

import json
import re
from pathlib import Path
from typing import Any

from vlmtune import __version__
from vlmtune.files import write_atomically
from vlmtune.hub.download import checkpoint_folder
from vlmtune.plan.types import RunPlan
from vlmtune.printing import printable
from vlmtune.reading import YAML_BYTES, read_regular

CARD = "README.md"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENSE = re.compile(r"^license: *[\"']?([\w.-]{1,60})[\"']?\s*$", re.MULTILINE)
LIBRARIES = ("torch", "transformers", "peft")


def write_card(folder: Path, plan: RunPlan, report: dict[str, Any], *, whole: bool) -> None:
    """Write the card of an adapter, or of a `whole` model; `report` is what report.json holds.

    It is no part of the manifest: people edit it.
    """
    write_atomically(folder / CARD, card_of(plan, report, whole=whole))


def card_of(plan: RunPlan, report: dict[str, Any], *, whole: bool) -> str:
    """Return the text of a card."""
    base = _base_name(plan)
    kind = "A model tuned" if whole else f"A LoRA adapter (rank {plan.lora_rank}, alpha {plan.lora_alpha})"
    parts = [
        _front_matter(plan, whole),
        f"# {plan.experiment_name}",
        f"{kind} on {base} with vlmtune {__version__}.",
        "## How it was trained",
        _table(_settings(plan, report)),
        *(["## Results", _table(results)] if (results := _results(report)) else []),
        "## How to load it",
        _code(plan, base, whole),
    ]
    return printable("\n\n".join(parts) + "\n")


def _base_name(plan: RunPlan) -> str:
    """Return how the base is called: a hub id, or the last name of a folder."""
    return plan.model_name if _is_hub_id(plan) else Path(plan.model_name).name


def _is_hub_id(plan: RunPlan) -> bool:
    return bool(HUB_ID.fullmatch(plan.model_name)) and plan.revision is not None


def _front_matter(plan: RunPlan, whole: bool) -> str:
    license_id = _license(plan)
    values = {
        **({"base_model": plan.model_name} if _is_hub_id(plan) else {}),
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "image-text-to-text",
        **({"license": license_id} if license_id else {}),
        "tags": ["vlmtune", plan.method] if plan.method == "full" else ["vlmtune", "lora", plan.method],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _license(plan: RunPlan) -> str | None:
    """Return the licence that the base's own card names, where it lies beside its files."""
    try:
        card = read_regular(checkpoint_folder(plan.model, plan.revision, weights=False) / CARD, YAML_BYTES)
    except FileNotFoundError:
        return None
    head = card.decode("utf-8", "replace").split("\n---", 1)[0]
    found = LICENSE.search(head) if head.startswith("---") else None
    return found and found[1]


def _settings(plan: RunPlan, report: dict[str, Any]) -> dict[str, Any]:
    versions = report.get("versions") or {}
    adapters = {} if plan.method == "full" else {"adapters on": plan.lora_targets, "dropout": plan.lora_dropout}
    return {
        "method": plan.method,
        **adapters,
        "started from": "another adapter" if plan.adapter else None,
        "rows": report.get("num_rows"),
        "steps": report.get("steps"),
        "rows per step": plan.rows_per_step,
        "learning rate": f"{plan.learning_rate:g}, {plan.lr_scheduler_type}",
        "optimizer": plan.optimizer,
        "seed": plan.seed,
        "longest image side": f"{plan.image_size} pixels" if plan.image_size else None,
        "number format": report.get("precision"),
        "versions": ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions) or None,
    }


def _results(report: dict[str, Any]) -> dict[str, Any]:
    best = report.get("best") or {}
    values = {
        "training loss, first step": report.get("train_loss_first"),
        "training loss, last step": report.get("train_loss_last"),
        "evaluation loss": report.get("eval_loss"),
    }
    found = {name: f"{value:.4f}" for name, value in values.items() if isinstance(value, float)}
    return {**found, "best step": f"{best['step']}, by {best['name']}"} if best else found


def _table(values: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return f"`{text}`".replace("|", "\\|") if "|" in text or "*" in text else text


def _code(plan: RunPlan, base: str, whole: bool) -> str:
    lines = ["import vlmtune.models.qwen_vl  # transformers knows the model from then on"]
    lines = lines if plan.family == "qwen_vl" else []
    lines += [] if whole else ["from peft import PeftModel"]
    lines += ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    here = '"THIS-REPOSITORY-OR-FOLDER"'
    source = here if whole else f'"{base}"'
    lines += [f'model = AutoModelForImageTextToText.from_pretrained({source}, dtype="auto", device_map="auto")']
    lines += [] if whole else [f"model = PeftModel.from_pretrained(model, {here})"]
    lines += [f"processor = AutoProcessor.from_pretrained({here})"]
    return "\n".join(["```python", *lines, "```"])
