"""Renews what is generated (`make docs`): the README's tables of keys and of errors, the schema, all-keys, the picture.

The picture of the live view is drawn from live-view.jsonl, the log of a real run; its caption in the README names it.
"""

import json
from pathlib import Path

from rich.console import Console

from vlmtune.config.docs import all_keys_yaml, config_table_markdown, schema_json
from vlmtune.engine.panel import render
from vlmtune.runs.folder import StepRecord

ROOT = Path(__file__).parents[1]


def between(name: str) -> tuple[str, str]:
    """Return the README's marks around a generated table."""
    return f"<!-- {name} table: start -->\n", f"<!-- {name} table: end -->"


def errors_table() -> str:
    """Return how far estimates are off, without the single runs: the first table that compare.py wrote."""
    lines = (ROOT / "tests/gpu/measured/errors.md").read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    last = lines.index("", first)
    return "\n".join(lines[first:last]) + "\n"


def renewed(readme: str) -> str:
    """Return the README with its tables as they are."""
    for name, table in (("config", config_table_markdown()), ("errors", errors_table())):
        start, end = between(name)
        before, _, rest = readme.partition(start)
        readme = before + start + table + end + rest.partition(end)[2]
    return readme


def draw_live_view() -> None:
    """Draw the live view as it stood at the last line of the log."""
    lines = (ROOT / "docs" / "live-view.jsonl").read_text(encoding="utf-8").splitlines()
    records = [StepRecord(**json.loads(line)) for line in lines]
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=84, file=nowhere, force_terminal=True)
        console.print(render(records, title="qwen3-vl-4b-8gb"))
    console.save_svg(str(ROOT / "docs" / "live-view.svg"), title="vlmtune train configs/8gb.yaml")


def main() -> None:
    """Renew everything."""
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "configs" / "schema.json").write_text(schema_json(), encoding="utf-8")
    (ROOT / "configs" / "all-keys.yaml").write_text(all_keys_yaml(), encoding="utf-8")
    draw_live_view()


if __name__ == "__main__":
    main()
