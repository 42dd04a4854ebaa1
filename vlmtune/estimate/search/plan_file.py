"""A found config as YAML for people: what was decided for which card, and for every changed key what it was and why."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from vlmtune.config.load import NO_DATA, LoadedConfig
from vlmtune.config.reader import yaml_of
from vlmtune.config.text import run_name_of
from vlmtune.config.values import as_yaml
from vlmtune.estimate.search.fit import MARGIN, Fit
from vlmtune.files import relative_path
from vlmtune.units import GIB

COMMENT_WIDTH = 110
FILL_IN = "train.jsonl  # <-- your rows, relative to this file"


@dataclass(frozen=True)
class Line:
    """One changed key."""

    key: str
    value: str
    before: str
    """The value that it had, and where that came from: `512 in preset 8gb`."""
    reason: str
    """Empty for a key that changes together with the one before it."""

    @property
    def why(self) -> str:
        """What the key was, and the reason if it is the first of its change."""
        return f"{self.before}: {self.reason}" if self.reason else self.before


def changed_lines(fit: Fit, start: LoadedConfig) -> list[Line]:
    """Return every changed key with the value it had in the config that the search began with."""
    lines = []
    for change in fit.changes:
        for number, ((key, value), before) in enumerate(zip(change.values.items(), change.before, strict=True)):
            source = start.sources[key]
            from_where = "by default" if source == "default" else f"in {source}"
            was = "not set" if before == "null" else f"{before} {from_where}"
            lines.append(Line(key, as_yaml(value), was, change.reason if number == 0 else ""))
    return lines


def plan_yaml(fit: Fit, start: LoadedConfig, card: str, file: Path) -> str:
    """Return a complete config for a file; local paths become relative to it, and the run is named as it is."""
    config, tokens, report, folder = start.config, fit.report.tokens, fit.report, file.parent
    name = relative_path(Path(config.model.name), folder) if Path(config.model.name).is_dir() else config.model.name
    rows = f"train_path: {FILL_IN}"
    if config.data.train_path != NO_DATA:
        rows = yaml_of({"train_path": relative_path(Path(config.data.train_path), folder)})
    groups: dict[str, list[str]] = {"model": [f"  {yaml_of({'name': name})}"], "data": [f"  {rows}"]}
    if (num_gpus := config.hardware.num_gpus) is not None:
        _add(groups, Line("hardware.num_gpus", str(num_gpus), "as asked for", ""))
    for line in changed_lines(fit, start):
        _add(groups, line)
    peak, budget = report.peak_reserved_bytes / GIB, report.budget_bytes / GIB
    head = [
        f"# Made by vlmtune plan: {Path(config.model.name).name} on {card}.",
        f"# Estimated, not measured: a peak of {peak:.2f} of {budget:.2f} GiB; at least {MARGIN:.0%} stay free.",
        f"# Longest row: {tokens['text']} text + {tokens['image']} image = {tokens['total']} tokens"
        f" ({report.worst_row}).",
        f"# What is not here comes from the preset: vlmtune presets show {config.preset}",
        "",
        f"preset: {config.preset}",
        yaml_of({"experiment_name": run_name_of(file)}),
    ]
    body = [text for group, texts in groups.items() for text in ("", f"{group}:", *texts)]
    return "\n".join([*head, *body]) + "\n"


def _add(groups: dict[str, list[str]], line: Line) -> None:
    """Add a key with its comment to the lines of its section, under its group there."""
    section, *inner, leaf = line.key.split(".")
    texts = groups.setdefault(section, [])
    indent = "  " * (1 + len(inner))
    place = next((number for number, text in enumerate(texts) if text.endswith(":")), len(texts))
    if inner:
        group = f"  {inner[0]}:"
        if group not in texts:
            texts.append(group)
        place = texts.index(group) + 1
    comment = textwrap.wrap(line.why, COMMENT_WIDTH - len(indent))
    texts[place:place] = [*(f"{indent}# {part}" for part in comment), f"{indent}{leaf}: {line.value}"]
