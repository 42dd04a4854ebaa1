"""Renews what is generated from the code (`make docs`): the README's config table, the schema, all-keys, the picture.

The picture of the live view is drawn from live-view.jsonl, the log of a real run; its caption in the README names it.
"""

import json
from pathlib import Path

from rich.console import Console

from vlmtune.config.docs import all_keys_yaml, config_table_markdown, schema_json
from vlmtune.engine.monitor import render
from vlmtune.report import StepRecord

ROOT = Path(__file__).parents[1]
START, END = "<!-- config table: start -->\n", "<!-- config table: end -->"


def renew_readme() -> None:
    """Put the current config table between the README's markers."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    readme.write_text(before + START + config_table_markdown() + END + rest.partition(END)[2], encoding="utf-8")


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
    renew_readme()
    (ROOT / "configs" / "schema.json").write_text(schema_json(), encoding="utf-8")
    (ROOT / "configs" / "all-keys.yaml").write_text(all_keys_yaml(), encoding="utf-8")
    draw_live_view()


if __name__ == "__main__":
    main()
