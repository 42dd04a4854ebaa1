"""What vlmtune must know of one model, once: read from its config.json, the library's defaults included.

Many files leave out what is their class's default, and only the library knows every class. Importing it takes two
seconds, so it is asked when a file is silent and the answer is needed, not before.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.errors import VlmtuneError
from vlmtune.families import find_family
from vlmtune.families.base import Family, ImageSettings, Json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
CONFIG_ERRORS += (TypeError, ValueError)
"""What a damaged config.json raises in the library: anything, wherever a value is used first."""
SMALLEST_IMAGE_PX = 224
"""The input of the smallest towers in use; below it small print is gone."""
CAPPED_BY_DEFAULT = {"gemma2": 50.0, "t5_gemma_module": 50.0, "vaultgemma": 50.0}
"""Text models that cap their attention scores unless their config.json says otherwise (transformers 5.17 to 5.23)."""

ATTENDING = ("full_attention", "sliding_attention")
"""Kinds of layers that carry nothing but what attention sees."""
PER_LAYER_BY_DEFAULT = ("gemma3n_text", "gemma4_text")
"""Text models that have a second table of embeddings unless their config.json says otherwise (5.17 to 5.23)."""


@dataclass(frozen=True)
class Prequantised:
    """What the files of a model say that bitsandbytes has packed into 4 bits already."""

    quant_type: str
    """`nf4` or `fp4`."""
    double_quant: bool
    packed: tuple[str, ...]
    """The linear layers in 4 bits, by their names in the files: older files have other names than memory."""

    def packs(self, module_path: str) -> bool:
        """Whether a layer of this part of the model, or the layer itself, is in 4 bits."""
        leaf = module_path.rpartition(".")[2]
        return any(leaf in name.split(".") for name in self.packed)


@dataclass(frozen=True)
class Adapter:
    """An adapter that a run starts from, as its files describe it."""

    folder: Path
    sha256: str
    """Of its weights."""
    rank: int
    alpha: int
    modules: tuple[str, ...]
    """Full paths of the layers that it is on."""
    base: str
    """What its config calls its model, in words."""


class ModelFacts:
    """The facts of one model; each is looked up when it is first asked for."""

    def __init__(
        self,
        config: Json,
        preprocessor: Json,
        name: str,
        prequantised: Prequantised | None = None,
        has_own_head: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        """`config` is its config.json, `preprocessor` its image processor's, `name` what errors call it.

        `has_own_head` says that the files hold a head besides the embedding, where config.json is silent. `adapter` is
        what the run starts from.
        """
        self.config = config
        self.preprocessor = preprocessor
        self.name = name
        self.prequantised = prequantised
        self.has_own_head = has_own_head
        self.adapter = adapter

    @cached_property
    def family(self) -> Family:
        """The family that tunes it.

        Raises:
            VlmtuneError: transformers does not know the type, or the model keeps other conventions.
        """
        return find_family(self.config, self.name)

    @cached_property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return self._text("num_hidden_layers")

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the output head."""
        return self._text("vocab_size")

    @cached_property
    def hidden_size(self) -> int:
        """Width of the language model, and so of an image's features."""
        return self._text("hidden_size")

    @cached_property
    def feature_outputs(self) -> int:
        """What the language model is given of an image: its features, and those for its first layers (deepstack)."""
        return 1 + len((self.config.get("vision_config") or {}).get("deepstack_visual_indexes") or ())

    @cached_property
    def shares_embedding(self) -> bool:
        """Whether the output head is the embedding, which is looked up by row and cannot be quantised."""
        said, text = self.config.get("tie_word_embeddings"), self.config.get("text_config") or {}
        if said is not None and text.get("tie_word_embeddings", said) == said:
            return said
        if self.has_own_head:  # the library shares by default, and loads both where they differ
            return False
        # Where they differ, some classes go by the one, some by the other.
        return bool(getattr(self._library, "tie_word_embeddings", False))

    @cached_property
    def per_layer_embeddings(self) -> bool:
        """Whether each layer has rows of its own for a token, in a second table that no head shares."""
        text = self.config.get("text_config") or {}
        by_default = text.get("model_type") in PER_LAYER_BY_DEFAULT
        return bool(text.get("hidden_size_per_layer_input", by_default))

    @cached_property
    def caps_attention(self) -> bool:
        """Whether attention scores are capped, which sdpa cannot do."""
        text = self.config.get("text_config") or {}
        return bool(text.get("attn_logit_softcapping", CAPPED_BY_DEFAULT.get(text.get("model_type"))))

    @property
    def layers_with_state(self) -> tuple[str, ...]:
        """Kinds of its layers that are no attention: what they carry goes on from row to row of a pack."""
        kinds = (self.config.get("text_config") or {}).get("layer_types")
        if kinds is None and self._library is not None:
            kinds = getattr(self._library.get_text_config(), "layer_types", None)
        return tuple(sorted({kind for kind in kinds or () if kind not in ATTENDING}))

    @cached_property
    def fixed_images(self) -> bool:
        """Whether `data.image_size` has no effect."""
        return not self.image_settings(SMALLEST_IMAGE_PX).overrides

    def image_settings(self, image_size: int | None) -> ImageSettings:
        """How its image processor is set for a `data.image_size`."""
        return self.family.image_settings(self.config, self.preprocessor, image_size)

    def _text(self, key: str) -> int:
        """The value of a key of the language model: what the file says, else the default of its class."""
        sections = (self.config.get("text_config") or {}, self.config)
        value = next((section[key] for section in sections if section.get(key) is not None), None)
        if value is None:
            value = getattr(self._library and self._library.get_text_config(), key, None)
        if type(value) is not int or value < 1:
            raise self._damaged(f"{key} is {value!r}, no whole number above 0")
        return value

    @cached_property
    def _library(self) -> "PretrainedConfig | None":
        """The config as the library reads it; None for a type that it does not know."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, AutoConfig

        if self.config["model_type"] not in CONFIG_MAPPING:
            return None
        try:
            return AutoConfig.for_model(**deepcopy(dict(self.config)))  # the classes fill in what they are given
        except (*CONFIG_ERRORS, StrictDataclassError) as error:
            raise self._damaged(f"{type(error).__name__}: {last_line(error)}") from None

    def _damaged(self, what: str) -> VlmtuneError:
        return VlmtuneError(f"the config.json of {self.name} describes no model: {what}", "download the file again")


def last_line(error: Exception) -> str:
    """Return the last line of what an error says that is not empty."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
