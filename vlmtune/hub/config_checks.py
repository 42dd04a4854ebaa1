"""What cannot be a model's config.json, found before anything is built from it. No torch here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmtune.errors import VlmtuneError

LIMITS = (
    (re.compile(r"(^|_)(layers?|depths?|blocks)$|^num_(local_|routed_)?experts$"), 1_000),
    (re.compile(r"(_size|_dim|_heads|_channels|_tokens|_positions?|_embeddings|_rank|_factor)$"), 2**24),
)
"""Keys and the largest value that any model comes near: builders loop over the first kind."""
OTHER_PLACES = ("hf-hub:", "hf_hub:", "local-dir:")
"""How names of timm's models begin that it looks for on the hub, or in a folder."""
NEVER_TEXT = ("layers", "_size", "_dim", "_heads")
EXAMPLES_OF_IMAGES = ("vision", "visual", "image", "img", "mm_", "multimodal")


def refuse_absurd(config: dict[str, Any], path: Path) -> None:
    """Raise when `config` is of a model without images, or has values that no model has."""
    _refuse_text_only(config, path)
    for key, value in _leaves(config):
        if _names_code(key.rpartition(".")[2], value):
            raise VlmtuneError(
                f"{path}: {key} asks for code from elsewhere, {value!r}: vlmtune runs none that a model names",
                "if you trust the rest of the model, remove that key from a copy of it",
            )
        if _is_absurd(key.rpartition(".")[2], value):
            raise VlmtuneError(f"{path}: {key} is {value!r}: no model has that", "download the file again")
    for key, part in [("", config), *config.items()]:
        kind = part.get("model_type", "") if isinstance(part, dict) else ""
        if not isinstance(kind, str) or (key.endswith("_config") and not isinstance(part, dict | None)):
            raise VlmtuneError(f"{path}: {key or 'model_type'} is damaged", "download the file again")


def _is_absurd(name: str, value: str | int | float | None) -> bool:
    limit = next((limit for pattern, limit in LIMITS if pattern.search(name)), None)
    if limit is None or value is None:
        return False
    if isinstance(value, str):
        return name.endswith(NEVER_TEXT)
    return not -limit <= value <= limit  # true for nan


def _names_code(name: str, value: str | int | float | None) -> bool:
    """Return whether a library would fetch a program, or other files than the model's, for this value."""
    if not isinstance(value, str):
        return False
    return (name.endswith("_implementation") and "/" in value) or value.startswith(OTHER_PLACES)


def _refuse_text_only(config: dict[str, Any], path: Path) -> None:
    """Raise for language models: they name a class for causal language models, and nothing about images."""
    classes = config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    sees = any(word in key.lower() for key in config for word in EXAMPLES_OF_IMAGES)
    if named and named[0].endswith("ForCausalLM") and not sees:
        raise VlmtuneError(
            f"{path} is of a text-only model: {named[0]}", "vlmtune tunes models that see images: vlmtune models list"
        )


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, str | int | float | None]]:
    """Yield every value with its path, such as text_config.hidden_size."""
    if not isinstance(values, dict | list):
        yield prefix, values
        return
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield from _leaves(value, prefix if isinstance(values, list) else f"{prefix}.{key}".lstrip("."))
