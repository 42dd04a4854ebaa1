"""What rows give to chat templates besides texts and images: tools, their calls and answers, reasoning.

A template that does not know them leaves them out without a word. So it is asked with and without: where both are the
same, the row is refused by the name of what would be left out.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlmtune.data.types import Sample, Turn
from vlmtune.errors import VlmtuneError

NAMES = ("name", "tool_call_id")
"""Keys that templates may leave out: they say who is meant."""
Rendered = Callable[[Sample], str]


def left_out(sample: Sample, rendered: Rendered, template: str) -> VlmtuneError | None:
    """Return why a template cannot be given what the row holds besides texts and images; None where it writes it all.

    `rendered` gives the text of a sample by the template.
    """
    whole = rendered(sample)
    if sample.tools and rendered(replace(sample, tools="")) == whole:
        return _unknown(sample, "tools")
    if any(turn.role == "tool" for turn in sample.turns) and "tool" not in template:
        return _unknown(sample, "turns of the role tool")
    for key in dict.fromkeys(key for turn in sample.turns for key in _more(turn) if key not in NAMES):
        if rendered(replace(sample, turns=tuple(_without(turn, key) for turn in sample.turns))) == whole:
            return _unknown(sample, key)
    return None


def _more(turn: Turn) -> dict[str, Any]:
    return json.loads(turn.more) if turn.more else {}


def _without(turn: Turn, key: str) -> Turn:
    kept = {name: value for name, value in _more(turn).items() if name != key}
    return replace(turn, more=json.dumps(kept) if kept else "")


def _unknown(sample: Sample, what: str) -> VlmtuneError:
    return VlmtuneError(
        f"{sample.where}: the chat template of this model does not know {what}",
        f"remove {what}, write them into the texts, or train a model whose template knows them",
    )
