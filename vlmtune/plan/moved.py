"""A run whose base model is no longer where it was: the run folder or the model was moved. No torch here."""

import dataclasses
from pathlib import Path

from vlmtune.errors import VlmtuneError, given_as
from vlmtune.hub.source import open_model
from vlmtune.plan.types import RunPlan

BASE_FIELDS = frozenset({"model", "model_name", "model_revision", "revision"})
"""Fields of a plan that say where its base model is."""


def refuse_moved(plan: RunPlan, folder: Path) -> None:
    """Raise when the base model of the run in `folder` is a folder that is not there, with the likeliest cause."""
    is_folder = Path(plan.model).is_absolute() or plan.model.startswith(".")
    place = (folder / plan.model).resolve()
    if not is_folder or place.is_dir():
        return
    near = plan.model_name if Path(plan.model_name).is_dir() else "DIR"
    raise VlmtuneError(
        f"the base model of {folder} is not there: {place}",
        f"the run folder or the model was moved: say where the model is now, --model {near}",
    )


def with_base(plan: RunPlan, name: str) -> RunPlan:
    """Return a run's plan with its base model where it is now, a folder or a hub id.

    Raises:
        VlmtuneError: there is no model, or one of another kind.
    """
    with given_as("model.name", "--model"):
        source = open_model(name, None, Path.cwd())
    facts = source.facts(name)
    found, wanted = (facts.family.name, bool(facts.prequantised)), (plan.family, plan.prequantised)
    if found != wanted:
        kinds = [f"{family}{' in 4 bits' if packed else ''}" for family, packed in (found, wanted)]
        raise VlmtuneError(
            f"--model {name} is not the base of this run: it is {kinds[0]}, and the run was trained on {kinds[1]}",
            f"it was trained on {plan.model_name}",
        )
    return dataclasses.replace(plan, model=source.location, revision=source.revision)
