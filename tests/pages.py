"""Pages as tests read them, and what they are filled with."""

import dataclasses
from html.parser import HTMLParser

from vlmtune.runs.records import Answered, EvaluatedRow, EvaluationRecord, Summary


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def with_all_texts(value, text):
    """A value of a report with every text in it replaced."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [with_all_texts(item, text) for item in value]
    if isinstance(value, dict):
        return {f"{text}{number}": with_all_texts(item, text) for number, item in enumerate(value.values())}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **with_all_texts_in_fields(value, text))
    return value


def with_all_texts_in_fields(value, text):
    return {field.name: with_all_texts(getattr(value, field.name), text) for field in dataclasses.fields(value)}


def an_evaluated_row(number=1, *, loss=0.5, exact=1.0, before=None, **changes) -> EvaluatedRow:
    """A row of an evaluation; `before` is the score of the base, None where it was not asked."""
    by_base = None if before is None else Answered(answer="a dog", loss=3.0, cut=True, scores={"exact": before})
    row = EvaluatedRow(
        where=f"held-out.jsonl:{number}", images=["../cat.png"], question="What is it?", expected=["a cat", "cat"],
        answer="cat", loss=loss, cut=False, scores={"exact": exact, "cer": 0.25},
        before=by_base,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def an_evaluation(rows, *, with_base=False, **changes) -> EvaluationRecord:
    """An evaluation of these rows."""
    base = Summary(asked="base", loss=3.0, metrics={"exact": 0.25, "cer": 0.9}, num_cut=1)
    record = EvaluationRecord(
        asked="adapter", loss=0.5, metrics={"exact": 0.75, "cer": 0.1}, num_cut=0, data="held-out.jsonl",
        max_new_tokens=8, before=base if with_base else None, rows=rows,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)
