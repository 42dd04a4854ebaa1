"""Changes of a config as values by dotted key, and as the `--set` words that stand for them."""

from typing import Any

from vlmtune.config.schema import TrainingConfig

Values = dict[str, Any]
"""Dotted key → value."""


def changed(config: TrainingConfig, values: Values) -> TrainingConfig:
    """Return the config with other values.

    Raises:
        pydantic.ValidationError: the values are not allowed, or cannot hold together.
    """
    tree = config.model_dump()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        group = tree
        for part in parents:
            group = group[part]
        group[leaf] = value
    return TrainingConfig.model_validate(tree)


def value_at(config: TrainingConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def not_yet(config: TrainingConfig, values: Values) -> Values:
    """Return the values that the config does not have already."""
    return {key: value for key, value in values.items() if value_at(config, key) != value}


def words_of(values: Values) -> tuple[str, ...]:
    """Return the `--set` words that stand for these values."""
    return tuple(f"{key}={as_yaml(value)}" for key, value in values.items())


def as_yaml(value: Any) -> str:
    """Return a plain value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
