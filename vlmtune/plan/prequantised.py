"""What the user wrote of bits against what the model's files have, where those are in 4 bits already. No torch here."""

from vlmtune.config.load import LoadedConfig
from vlmtune.config.values import as_yaml, value_at
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers import head, method, tower


def refuse_other_bits(loaded: LoadedConfig, model: ModelFacts) -> None:
    """Raise where the config or `--set` want other bits than the files have.

    A default or a preset is written for models in 16 bits: the plan takes what the files have, and says so.
    """
    files = model.prequantised
    if files is None:
        return
    there = {
        method.TYPE: files.quant_type,
        method.DOUBLE: files.double_quant,
        tower.KEY: files.packs(model.family.vision),
        head.KEY: files.packs(model.family.head),
    }
    if not there[head.KEY] and value_at(loaded.config, head.KEY) == head.IN_8_BITS:
        del there[head.KEY]  # what the files leave in 16 bits can be rounded
    wrong = [
        VlmtuneError(
            f"{key}: {as_yaml(wish)}, and the files of {model.name}, in 4 bits already, have {as_yaml(value)}"
            f"  ({loaded.sources[key]})",
            "leave it out: the files stay as they are",
        )
        for key, value in there.items()
        if (wish := value_at(loaded.config, key)) != value and not loaded.is_general(key)
    ]
    if wrong:
        raise VlmtuneError(wrong[0].message, wrong[0].hint, problems=tuple(wrong) if len(wrong) > 1 else ())
