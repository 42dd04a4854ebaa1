"""What is written as YAML is read back as it was, by a reader that takes other words for numbers than PyYAML."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlmtune.config.dump import write_config
from vlmtune.config.load import load_config
from vlmtune.config.reader import read_text, yaml_of

NUMBERS = st.from_regex(r"[-+]?[0-9.]{1,4}([eE][-+]?[0-9]{1,3})?", fullmatch=True)
TEXTS = NUMBERS | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
VALUES = TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.sampled_from(["name", "seed", "rate"]), VALUES, min_size=1))
@example({"name": "1e5", "seed": "\x85"})
@example({"name": "yes", "seed": "0x10", "rate": 1e-5})
def test_values_come_back(values):
    document = read_text(yaml_of(values), "run.yaml")
    assert document.values == values and not document.problems


@pytest.mark.parametrize("name", ["1e5", "2024", "true"])
def test_a_run_with_a_name_like_a_number_has_a_config_that_loads(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        f'experiment_name: "{name}"\nmodel: {{name: org/model, revision: "12e4567"}}\ndata: {{train_path: a.jsonl}}\n'
    )
    Path("run.yaml").write_text(text)
    write_config(load_config(Path("run.yaml")), Path("config.yaml"))
    config = load_config(Path("config.yaml")).config
    assert (config.experiment_name, config.model.revision) == (name, "12e4567")
