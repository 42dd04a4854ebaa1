"""The README's generated parts are current."""

from pathlib import Path

import pytest

from vlmtune.config.docs import config_table_markdown

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- config table: start -->\n", "<!-- config table: end -->"


def test_the_readme_holds_the_config_table():
    if not README.exists():
        pytest.skip("there is no README yet")
    text = README.read_text(encoding="utf-8")
    assert START in text and END in text, f"README.md needs the lines {START.strip()} and {END}"
    held = text.partition(START)[2].partition(END)[0]
    assert held.strip() == config_table_markdown().strip(), (
        "renew it: python -c 'from vlmtune.config.docs import *; print(config_table_markdown())'"
    )
