"""A whole model made of a run: what other programs do not need of it, kept beside their files."""

from dataclasses import dataclass
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.files import parse_json, write_json
from vlmtune.reading import JSON_BYTES, read_regular

NAME = "vlmtune.json"


@dataclass(frozen=True)
class _Kept:
    image_size: int | None
    """Longest image side in pixels that the model was trained with."""


def write_image_size(folder: Path, image_size: int | None) -> None:
    """Keep to which size images were shrunk before the processor got them."""
    write_json(folder / NAME, {"image_size": image_size})


def read_image_size(folder: Path) -> int | None:
    """Return what `write_image_size` kept; None for any other model."""
    try:
        return parse_json(_Kept, read_regular(folder / NAME, JSON_BYTES)).image_size
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise VlmtuneError(f"{folder / NAME} is damaged", "delete that file: images keep their size then") from error
