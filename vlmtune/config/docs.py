"""Documents made from the schema: docs/config.md's table, the JSON schema for editors, configs/all-keys.yaml."""

import json

from vlmtune.config.keys import REQUIRED, Key, all_keys, section_docs
from vlmtune.config.schema import TrainingConfig

EXAMPLES = {"model.name": "Qwen/Qwen3-VL-2B-Instruct", "data.train_path": "../demo-data/train.jsonl"}
"""Values in configs/all-keys.yaml of the keys that have no default."""


def schema_json() -> str:
    """The JSON schema of configs: what `vlmtune validate --schema` prints and configs/schema.json holds."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **TrainingConfig.model_json_schema()}
    schema["title"] = "vlmtune config"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def config_table_markdown() -> str:
    """The table of all keys in docs/config.md."""
    rows = ["| Key | Allowed | Default | Meaning |", "|---|---|---|---|"]
    for key in all_keys():
        rows.append(f"| `{key.name}` | {key.allowed} | {_default(key)} | {key.meaning} |".replace("\n", " "))
    return "\n".join(rows) + "\n"


def all_keys_yaml() -> str:
    """configs/all-keys.yaml: every key at its default, with its meaning."""
    lines = [
        "# yaml-language-server: $schema=schema.json",
        "# Every key with its meaning, at its default. A key with no value is decided when the run is planned.",
        "# A config needs only the two keys marked required.",
    ]
    group: tuple[str, ...] = ()
    docs = section_docs()
    for key in all_keys():
        parents = key.path[:-1]
        for depth in range(len(parents)):
            if group[: depth + 1] != parents[: depth + 1]:
                indent = "  " * depth
                lines += ["", f"{indent}# {docs[parents[: depth + 1]]}", f"{indent}{parents[depth]}:"]
                group = parents[: depth + 1]
        group = parents
        lines += _key_lines(key)
    return "\n".join(lines) + "\n"


def _key_lines(key: Key) -> list[str]:
    indent = "  " * (len(key.path) - 1)
    required = "Required. " if key.default is REQUIRED else ""
    value = EXAMPLES[key.name] if key.default is REQUIRED else key.default
    written = "" if value is None else f" {_written(value)}"
    return [f"{indent}# {required}{key.meaning}", f"{indent}{key.path[-1]}:{written}  # {key.allowed}"]


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    return "" if key.default is None else f"`{_written(key.default)}`"


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
