"""Class numbers of Parquet files carry the names that the file's features give them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmtune.data.reading.class_labels import named_columns
from vlmtune.data.samples import read_samples
from vlmtune.data.types import Rows

ANIMALS = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def read(folder, rows: list[dict], features: object) -> Rows:
    path = folder / "rows.parquet"
    table = pa.Table.from_pylist(rows)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return read_samples(path)


def test_an_answer_is_the_name_of_its_class(tmp_path):
    rows = [{"question": "q", "label": 1}, {"question": "q", "label": 0}]
    read_rows = read(tmp_path, rows, {"question": {"_type": "Value"}, "label": ANIMALS})
    assert [sample.answer for sample in read_rows.samples] == ["dog", "cat"]


def test_the_same_rows_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    read_rows = read(tmp_path, [{"question": "q", "label": 1}], {"label": ANIMALS})
    assert [sample.answer for sample in read_rows.samples] == ["dog"]


@pytest.mark.parametrize(("number", "problem"), [(2, "label is 2, and the file names 2 classes"), (-1, None)])
def test_a_number_without_a_name(tmp_path, number, problem):
    [bad] = read(tmp_path, [{"question": "q", "label": number}], {"label": ANIMALS}).bad_rows
    assert bad.where == "rows.parquet row 1"
    assert bad.problem == (problem or "question has no answer beside it")


@pytest.mark.parametrize(
    ("feature", "value", "named"),
    [
        (ANIMALS, 1, "dog"),
        (ANIMALS, None, None),
        ([ANIMALS], [0, 1], ["cat", "dog"]),
        ({"feature": ANIMALS, "_type": "Sequence"}, [1], ["dog"]),
        ({"feature": ANIMALS, "length": -1, "_type": "List"}, [1, None], ["dog", None]),
        ({"feature": {"kind": ANIMALS, "bbox": {"_type": "Value"}}, "_type": "Sequence"},
         {"kind": [0, 1], "bbox": [1, 2]}, {"kind": ["cat", "dog"], "bbox": [1, 2]}),
        ([{"kind": ANIMALS}], [{"kind": 1}], [{"kind": "dog"}]),
        ({"inner": {"kind": ANIMALS}}, {"inner": {"kind": 0}}, {"inner": {"kind": "cat"}}),
    ],
)  # fmt: skip
def test_names_wherever_a_feature_has_classes(feature, value, named):
    metadata = {b"huggingface": json.dumps({"info": {"features": {"column": feature}}}).encode()}
    assert named_columns(metadata)["column"](value) == named


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {b"huggingface": b"not JSON"},
        {b"huggingface": b"[]"},
        {b"huggingface": b'{"info": {"features": []}}'},
        {b"huggingface": b'{"info": {"features": {"a": {"_type": "ClassLabel"}, "b": {"_type": "Value"}, "c": 3}}}'},
    ],
)
def test_other_metadata_names_nothing(metadata):
    assert named_columns(metadata) == {}
