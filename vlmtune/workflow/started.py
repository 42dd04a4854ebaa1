"""The adapter that a run starts from, found and held against config and model before the model loads."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan


def with_adapter(loaded: "LoadedConfig", source: "ModelSource") -> "ModelSource":
    """Return the model with the adapter of model.adapter, where there is one.

    Raises:
        VlmtuneError: it cannot be started from, or the config wants another rank or alpha.
    """
    from vlmtune.hub.adapters import open_adapter
    from vlmtune.plan.started import refuse_other_adapter

    if loaded.config.model.adapter is None:
        return source
    source = replace(source, adapter=open_adapter(loaded.resolve_path(loaded.config.model.adapter)))
    refuse_other_adapter(loaded, source.facts(loaded.config.model.name))
    return source


def refuse_other_model(plan: "RunPlan") -> None:
    """Raise where the adapter that a run starts from is that of another model; builds the model without storage."""
    if not plan.adapter:
        return
    from vlmtune.models.build import weightless_base
    from vlmtune.models.lora.start import refuse_other

    refuse_other(weightless_base(plan), plan)
