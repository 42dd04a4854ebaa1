"""What the plan must know of a language model, as the library reads config.json: its defaults included."""

from copy import deepcopy
from dataclasses import dataclass

from vlmtune.families.base import Json


@dataclass(frozen=True)
class TextModel:
    """The language model of an architecture."""

    num_layers: int
    shares_embedding: bool
    """Whether the output head is the embedding."""


def text_model(config: Json) -> TextModel:
    """Return the facts of a model's config.json.

    Many files leave out what is their class's default, and only the library knows every class. Importing it takes two
    seconds: ask only where the answer matters.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if config["model_type"] not in CONFIG_MAPPING:
        text = config.get("text_config") or config
        return TextModel(text["num_hidden_layers"], bool(config.get("tie_word_embeddings", False)))
    whole = AutoConfig.for_model(**deepcopy(dict(config)))  # the classes fill in what they are given
    return TextModel(whole.get_text_config().num_hidden_layers, bool(getattr(whole, "tie_word_embeddings", False)))
