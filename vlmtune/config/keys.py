"""The schema as a flat list of keys: error messages, docs/config.md and configs/all-keys.yaml are made from it."""

from dataclasses import dataclass
from functools import cache

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.sections import HUB_ID, NOT_BLANK, SPLIT_NAME, Section
from vlmtune.config.text import RUN_NAME

PATTERNS = {
    RUN_NAME: "letters, digits, '.', '_', '-'",
    HUB_ID: "the form org/data",
    SPLIT_NAME: "letters, digits, '_', '.'",
    NOT_BLANK: "more than blanks",
}
"""What a pattern allows, in words."""
REQUIRED = object()
"""Default of a key that has none."""


@dataclass(frozen=True, eq=False)
class Key:
    """One key of the config."""

    path: tuple[str, ...]
    allowed: str
    """What may be written, in words: `a whole number, 1 or more`."""
    default: object
    meaning: str
    json_type: str
    choices: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    """What a list may hold, where that is a list."""
    nullable: bool = False

    @property
    def name(self) -> str:
        """The key as users write it: `training.lora.rank`."""
        return ".".join(self.path)


def section_at(path: tuple[str, ...]) -> type[Section] | None:
    """The model of the group at `path`, or None when there is no such group."""
    model: type[Section] = TrainingConfig
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return None
        model = annotation
    return model


@cache
def all_keys() -> tuple[Key, ...]:
    """Every key, in the order of the schema."""
    return keys_of(TrainingConfig)


@cache
def keys_of(section: type[Section]) -> tuple[Key, ...]:
    """Every key of a section, and of those inside it."""
    schema = section.model_json_schema()
    return tuple(_walk(schema, schema.get("$defs", {}), ()))


@cache
def section_docs() -> dict[tuple[str, ...], str]:
    """Every group of keys and what it is about."""
    found: dict[tuple[str, ...], str] = {}

    def visit(model: type[Section], path: tuple[str, ...]) -> None:
        for name in model.model_fields:
            if inner := section_at((*path, name)):
                found[(*path, name)] = (inner.__doc__ or "").strip()
                visit(inner, (*path, name))

    visit(TrainingConfig, ())
    return found


def key_at(path: tuple[str, ...]) -> Key | None:
    """The key at `path` or around it (`training.report_to.0` is in `training.report_to`)."""
    return next((key for key in all_keys() if path[: len(key.path)] == key.path), None)


def _walk(schema: dict, definitions: dict, path: tuple[str, ...]):
    for name, prop in schema["properties"].items():
        reference = prop.get("$ref")
        if reference:
            yield from _walk(definitions[reference.rsplit("/", 1)[-1]], definitions, (*path, name))
        else:
            yield _key((*path, name), prop)


def _key(path: tuple[str, ...], prop: dict) -> Key:
    options = prop.get("anyOf", [prop])
    kinds = [option for option in options if option.get("type") != "null"]
    kind = kinds[0]
    return Key(
        path=path,
        allowed=", or ".join(map(_in_words, kinds)),
        default=prop["default"] if "default" in prop else REQUIRED,
        meaning=prop.get("description", ""),
        json_type=kind.get("type", "any"),
        choices=_choices(kind),
        items=_choices(kind.get("items", {})),
        nullable=len(options) > len(kinds),
    )


def _choices(kind: dict) -> tuple[str, ...]:
    """What may be written, where that is a list; of one choice a JSON schema makes a constant."""
    return tuple(map(_as_written, kind.get("enum", [kind["const"]] if "const" in kind else ())))


def _as_written(choice: str | bool) -> str:
    return choice if isinstance(choice, str) else str(choice).lower()


def _in_words(kind: dict) -> str:
    """A JSON-schema type as a person would say it."""
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if "$ref" in kind:
        return "a source"
    name = kind["type"]
    if name == "object":
        return "pairs of names"
    if name == "array" and "enum" not in kind["items"]:
        return "a list of both"
    if name == "array":
        return f"a list with any of {', '.join(kind['items']['enum'])}"
    if name in ("integer", "number"):
        return f"{'a whole number' if name == 'integer' else 'a number'}{_range_in_words(kind)}"
    if name == "boolean":
        return "true or false"
    return f"text of {PATTERNS[kind['pattern']]}" if "pattern" in kind else "text"


def _range_in_words(kind: dict) -> str:
    """The bounds of a number, with the word before them: ` from 1 to 1024`, `, 1 or more`."""
    low, above, high, below = (
        _number(kind.get(bound)) for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    )
    end = f"to {high}" if high else f"to below {below}" if below else None
    if above:
        return f" above {above}" + (f", up {end}" if end else "")
    if low:
        return f" from {low} {end}" if end else f", {low} or more"
    return ""


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return str(int(value)) if value == int(value) else str(value)
