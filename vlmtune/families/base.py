"""What vlmtune needs to know of an architecture: data and two small functions. No torch: planning stays light.

A model that needs more than this is a reason to extend `Family` in review, not to subclass it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmtune.errors import VlmtuneError
from vlmtune.families.boxes import THOUSANDTHS, BoxConvention

Json = Mapping[str, Any]
THOUGHT_ENDS = ("</think>", "[/THINK]")
"""How thoughts end, in the templates of models that think before they answer."""
PIXEL_LIMITS = ("min_pixels", "max_pixels")
"""Older names of `size` in files of image processors: where a file has both, the library goes by these."""


class RefusedImage(VlmtuneError):
    """A model's processor takes no image of some size."""


@dataclass(frozen=True)
class ImageSettings:
    """How a family's image processor is set for a `data.image_size`."""

    overrides: dict[str, Any]
    """Attributes to set on the image processor; saved with the adapter, so that inference sees the same pixels."""
    note: str | None = None
    """What the user must be told, such as "image_size has no effect"."""


def _no_settings(config: Json) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One architecture. Every prefix is a full module path inside the `ForConditionalGeneration` model.

    Its functions have names in their modules: processes that read images may be sent it.
    """

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json."""
    text: str
    """The language model without its head."""
    vision: str
    """The vision tower."""
    projector: tuple[str, ...]
    """The modules between tower and language model; may lie inside `vision`."""
    text_linears: tuple[str, ...]
    """Leaf names of the language model's linear layers."""
    vision_linears: tuple[str, ...]
    """Leaf names of the vision tower's linear layers."""
    image_tokens: Callable[[Json, Json, int, int], int]
    """(config, preprocessor config, width_px, height_px) -> tokens that one image takes, its markers included.

    Raises `RefusedImage` where the processor would refuse that size.
    """
    image_settings: Callable[[Json, Json, int | None], ImageSettings]
    """(config, preprocessor config, data.image_size) -> how to set the image processor."""
    head: str = "lm_head"
    chat_template: str | None = None
    """Used when the checkpoint has no template, or one that never ends the assistant's turn."""
    prefix_lm: bool = False
    """Prompt seen with full attention, answer with causal attention: one question and one answer a row, no roles."""
    sees_both_ways: bool = False
    """Tokens of an image or a prompt see those behind them, so that the language model has a mask of token pairs."""
    needs_image: bool = False
    """A row without an image cannot be processed."""
    part_types: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Section of config.json -> its `model_type`s that belong to the family, where not all do; None: it says none."""
    qformer: bool = False
    """A Q-Former reads the question beside the image: one image, one question and one answer a row, no roles."""
    processor_class: str | None = None
    """The transformers class of its processor, where published files name another."""
    processor_settings: Callable[[Json], dict[str, Any]] = _no_settings
    """config -> attributes that the processor must have; old files lack them. A dot leads to a part of it."""
    unpacked: tuple[str, ...] = ()
    """Ends of the names of linear layers that are never 4-bit and get no adapter."""
    eager: tuple[str, ...] = ()
    """The parts for which the installed transformers has no SDPA: only they attend eagerly."""
    other: tuple[str, ...] = ()
    """Modules that neither see images nor write text, such as an audio tower; never trained."""

    not_cacheable: str = ""
    """Why its images cannot be encoded before training; empty where they can."""

    tower_loops: bool = False
    """The tower calls attention once for each window or image unless its attention is told where they begin."""

    not_packable: str = ""
    """Why its rows cannot stand behind each other in packs; empty where they can."""

    answers_alone: str = ""
    """Why rows are answered one by one; empty where several can be at once."""

    most_pack_tokens: int | None = None
    """Tokens of the longest pack in which its rows count on from nothing but their own start; None: of any."""

    casts_features: bool = True
    """Its code converts what the projector returns to the embeddings' dtype in every version of transformers."""

    projector_embeds: bool = False
    """The projector is also asked for embeddings of tokens, so the language model needs it beside it."""

    boxes: Mapping[str, BoxConvention] = field(default_factory=dict)
    """`model_type` -> how the model writes boxes; others write thousandths."""

    @property
    def one_answer(self) -> bool:
        """Whether a row is one question and one answer, without a chat template."""
        return self.prefix_lm or self.qformer

    def takes(self, config: Json) -> bool:
        """Whether a model with this config.json is of this family."""
        return config.get("model_type") in self.model_types and all(
            (config.get(part) or {}).get("model_type") in types for part, types in self.part_types.items()
        )

    def writes_boxes(self, config: Json) -> BoxConvention:
        """How a model with this config.json writes boxes."""
        return self.boxes.get(config.get("model_type", ""), THOUSANDTHS)

    def box_convention(self, name: str) -> BoxConvention:
        """The convention of this name, as a plan holds it."""
        return next((one for one in self.boxes.values() if one.name == name), THOUSANDTHS)

    def part_of(self, module_path: str) -> str:
        """The part a module or parameter belongs to: `projector`, `vision`, `head`, `other` or `text`.

        Raises:
            ValueError: the path lies outside the declared parts, so the declaration is wrong.
        """
        for part, prefixes in (
            ("projector", self.projector),
            ("vision", (self.vision,)),
            ("head", (self.head,)),
            ("other", self.other),
            ("text", (self.text,)),
        ):
            if any(module_path == prefix or module_path.startswith(prefix + ".") for prefix in prefixes):
                return part
        raise ValueError(f"{self.name}: {module_path} belongs to none of the declared parts")


LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CLIP_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def fixed_input(side_px: int, image_size: int | None) -> ImageSettings:
    """Settings of a family whose every image becomes `side_px` × `side_px`."""
    if image_size is None or image_size == side_px:
        return ImageSettings({})
    return ImageSettings({}, f"has no effect: every image becomes {side_px}×{side_px} px")
