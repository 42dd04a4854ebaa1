"""What the user wrote of adapters against the adapter that the run starts from. No torch here."""

from vlmtune.config.load import LoadedConfig
from vlmtune.config.values import value_at
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.lora.rank import ALPHA, RANK


def refuse_other_adapter(loaded: LoadedConfig, model: ModelFacts) -> None:
    """Raise where the config or `--set` want another rank or alpha than the adapter has; others' values give way."""
    adapter = model.adapter
    if adapter is None:
        return
    wrong = [
        f"{key}: {wish}, and the adapter that the run starts from has {value}  ({loaded.sources[key]})"
        for key, value in ((RANK, adapter.rank), (ALPHA, adapter.alpha))
        if (wish := value_at(loaded.config, key)) != value and not loaded.is_general(key)
    ]
    if wrong:
        raise VlmtuneError("; ".join(wrong), "leave it out: both are taken from model.adapter")
