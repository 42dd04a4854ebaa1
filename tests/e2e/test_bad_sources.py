"""What is wrong with a source is one error before the model loads; a run goes on with the rows that it began with."""

import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vlmtune.data.sources import library
from vlmtune.plan.file import load_plan


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def written(project):
    """A function that writes what `data` of the config holds."""

    def write(**data) -> None:
        config = yaml.safe_load(project.config.read_text())
        project.write_config(config | {"data": {"train_path": "rows.jsonl", **data}})

    return write


def error_of(result) -> str:
    assert result.code == 1 and "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def two_tables(root: Path, first: dict, second: dict) -> None:
    (root / "shards").mkdir()
    for name, row in (("a", first), ("b", second)):
        pq.write_table(pa.Table.from_pylist([row]), root / f"shards/{name}.parquet")


ROW = {"question": "q", "answer": "a"}


def empty(root: Path) -> tuple[dict, str]:
    (root / "none.json").write_text("[]")
    return {"train_path": ["rows.jsonl", "none.json"]}, "none.json holds no rows"


def no_match(root: Path) -> tuple[dict, str]:
    return {"train_path": "shards/*.parquet"}, "no data file matches"


def no_rows(root: Path) -> tuple[dict, str]:
    (root / "shards").mkdir()
    return {"train_path": "shards"}, "holds no rows: no .jsonl, .json, .parquet, .csv, .tsv, .tar"


def only_pictures(root: Path) -> tuple[dict, str]:
    (root / "photos").mkdir()
    shutil.copy(root / "red0.png", root / "photos")
    return {"train_path": "photos"}, "neither metadata nor one folder for each thing to learn hint: write metadata"


def labels_alone(root: Path) -> tuple[dict, str]:
    for name in ("red", "blue"):
        (root / "photos" / name).mkdir(parents=True)
        shutil.copy(root / "red0.png", root / "photos" / name)
    return {"train_path": "photos"}, "label has no question beside it"


def mixed_columns(root: Path) -> tuple[dict, str]:
    two_tables(root, ROW | {"image": "red0.png"}, ROW)
    return {"train_path": "shards"}, 'mixed columns: a.parquet has "image", and b.parquet has not'


def mixed_kinds(root: Path) -> tuple[dict, str]:
    two_tables(root, ROW, ROW)
    (root / "shards/c.jsonl").write_text(json.dumps(ROW))
    return {"train_path": "shards"}, "holds rows of several kinds: a.parquet (.parquet) and c.jsonl (.json)"


def uneven_table(root: Path) -> tuple[dict, str]:
    (root / "rows.csv").write_text("question,answer\na,b\na,b,c,d\n")
    said = (
        "rows.csv cannot be read: Error tokenizing data. C error: Expected 2 fields in line 3, saw 4 hint: write a cell"
    )
    return {"train_path": "rows.csv"}, said


def unquoted_cells(root: Path) -> tuple[dict, str]:
    (root / "rows.csv").write_text("question,answer\nWhat?,a cat, black\nWhat?,a dog, brown\n")
    return {"train_path": "rows.csv"}, "rows.csv row 1 has 3 cells, and the header 2 hint: write a cell"


def header_alone(root: Path) -> tuple[dict, str]:
    (root / "rows.tsv").write_text("question\tanswer\n")
    return {"train_path": "rows.tsv"}, "rows.tsv holds no rows"


def damaged_pack(root: Path) -> tuple[dict, str]:
    (root / "bad.jsonl.gz").write_bytes(b"no gzip")
    return {"train_path": "bad.jsonl.gz"}, "bad.jsonl.gz: cannot be unpacked: Not a gzipped file"


def unknown_name(root: Path) -> tuple[dict, str]:
    return {"columns": {"caption": "anser"}}, 'caption is to be called "anser", which means nothing here'


def absent_column(root: Path) -> tuple[dict, str]:
    return {"columns": {"caption_en": "answer"}}, 'data.columns: no row has a column "caption_en"'


def taken_name(root: Path) -> tuple[dict, str]:
    return {"columns": {"question": "answer"}}, "'question' becomes answer (data.columns), and the row has"


def one_image(root: Path) -> tuple[dict, str]:
    rows = [ROW | {"image": "red0.png", "question": question} for question in "abc"]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"val_fraction": 0.5}, "data.val_fraction: 0.5 leaves no row to train on or none to hold out: all 3 share"


def split_of_a_file(root: Path) -> tuple[dict, str]:
    return {"train_path": {"path": "rows.jsonl", "split": "train"}}, "is no folder, and has no split train"


def other_split(root: Path) -> tuple[dict, str]:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}).save_to_disk(root / "saved")
    return {"train_path": {"path": "saved", "split": "test"}}, "has no split test hint: it has train: say which"


def negative_weight(root: Path) -> tuple[dict, str]:
    return {"train_path": [{"path": "rows.jsonl", "weight": -1}]}, "weight must be a number above 0, up to 1000, not -1"


BAD = [
    empty, no_match, no_rows, only_pictures, labels_alone, mixed_columns, mixed_kinds, uneven_table, unquoted_cells,
    header_alone, damaged_pack, unknown_name, absent_column, taken_name, one_image, split_of_a_file,
    other_split, negative_weight,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_one_error_before_the_model_loads(bad, project, written, monkeypatch):
    data, words = bad(project.root)
    written(**data)
    monkeypatch.setattr("vlmtune.models.build.build_model", None)
    assert words in error_of(project.train("run"))
    assert not project.run("run").path.exists()


def test_without_the_library_the_error_says_what_to_install(project, written, monkeypatch):
    (project.root / "rows.csv").write_text("question,answer\na,b\n")
    written(train_path="rows.csv")
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    assert "not installed hint: pip install 'vlmtune[datasets]'" in error_of(project.train("run"))


def test_a_source_that_has_changed_is_named_on_resume(project, written):
    (project.root / "more.jsonl").write_text((project.root / "rows.jsonl").read_text())
    written(train_path=["rows.jsonl", "more.jsonl"])
    project.train_killed("run")
    (project.root / "more.jsonl").write_text(json.dumps(ROW))
    refused = error_of(project.train("run", resume=True))
    assert "cannot be continued" in refused and "more.jsonl does not hold the rows that the run began with" in refused
    assert "rows.jsonl does not" not in refused


@pytest.fixture
def online_data(online, project, monkeypatch):
    """A function that pushes rows as the data set org/colours, which `datasets` gets from the loopback hub."""
    for name, value in (("HF_ENDPOINT", online.address), ("HF_HUB_OFFLINE", False), ("HF_DATASETS_OFFLINE", False)):
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)

    def push(rows: list[dict], name: str = "one") -> str:
        folder = project.root / "published" / name
        folder.mkdir(parents=True)
        pictures = [(project.root / row["image"]).read_bytes() for row in rows]
        told = [row | {"image": {"bytes": picture, "path": None}} for row, picture in zip(rows, pictures, strict=True)]
        pq.write_table(pa.Table.from_pylist(told), folder / "train-00000-of-00001.parquet")
        return online.push("datasets/org/colours", folder)

    push.hub = online
    return push


HUB = {"name": "org/colours"}


def test_a_hub_data_set_stays_the_commit_that_the_run_began_with(
    online_data, project, written, assert_same_weights, monkeypatch
):
    commit = online_data(project.rows)
    written(train_path=[HUB])
    whole = project.train("whole")
    assert whole.code == 0, whole.stderr
    project.train_killed("killed")
    online_data(project.rows[:3], "two")
    resumed = project.train("killed", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("whole"), project.run("killed"))
    plan = load_plan(project.run("killed").plan)
    assert plan.data_commits == {"org/colours@main": commit}
    (kept,) = yaml.safe_load(project.run("killed").config.read_text())["data"]["train_path"]
    assert kept == {"name": "org/colours", "revision": commit}
    anew = project.run_cli("validate", project.config, "--json")
    assert json.loads(anew.stdout)["data"]["train_path"]["rows"] == 3, "a new run takes the new commit"


def test_without_a_connection_the_rows_are_those_of_the_cache(online_data, project, written):
    online_data(project.rows)
    written(train_path=HUB)
    assert project.run_cli("validate", project.config).code == 0
    online_data.hub.status = 500
    offline = project.run_cli("validate", project.config, "--json")
    assert json.loads(offline.stdout)["data"]["train_path"]["rows"] == 7


def test_the_hub_is_not_asked_again_for_a_commit(online_data, project, written):
    first, second = online_data(project.rows), online_data(project.rows[:3], "two")

    def rows_of(commit: str) -> int:
        written(train_path=[HUB | {"revision": commit}])
        checked = project.run_cli("validate", project.config, "--json")
        return json.loads(checked.stdout)["data"]["train_path"]["rows"]

    assert (rows_of(first), rows_of(second)) == (7, 3)
    online_data.hub.forget()
    online_data.hub.status = 500
    assert (rows_of(first), rows_of(second)) == (7, 3), "the one kept last does not take the other's place"
    assert project.train("run", "training.max_steps=2").code == 0
    assert project.train("run", "training.max_steps=3", resume=True).code == 0
    assert online_data.hub.requests == []


def test_rows_of_a_commit_that_are_gone_are_fetched_again(online_data, project, written):
    written(train_path=HUB | {"revision": online_data(project.rows)})
    assert project.run_cli("validate", project.config).code == 0
    (kept,) = Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")
    shutil.rmtree(kept.parent)
    online_data.hub.forget()
    assert project.run_cli("validate", project.config).code == 0
    assert online_data.hub.requests


def test_without_a_connection_no_other_commit_takes_its_place(online_data, project, written):
    """`datasets` takes the rows that it has kept last, whatever commit they are of."""
    first = online_data(project.rows)
    online_data(project.rows[:3], "two")
    written(train_path=HUB)
    assert project.run_cli("validate", project.config).code == 0
    online_data.hub.status = 500
    written(train_path=HUB | {"revision": first})
    refused = project.run_cli("validate", project.config)
    assert f"org/colours: commit {first} is not in the local cache" in error_of(refused)


def test_a_row_of_a_hub_data_set_is_named(online_data, project, written):
    online_data([*project.rows[:2], project.rows[2] | {"answer": ""}])
    written(train_path=HUB)
    assert "org/colours[train] row 3: " in error_of(project.train("run"))


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ({"name": "org/other"}, 200, "data.train_path: no data set of the hub is called org/other"),
        (HUB | {"revision": "v9"}, 200, "data.train_path: org/colours has no revision v9"),
        (HUB | {"split": "test"}, 200, 'cannot be read: Unknown split "test". Should be one of'),
        (HUB, 403, "is a gated dataset on the Hub"),
        (HUB, 500, "data.train_path: org/colours is not in the local cache and the hub cannot be reached"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_error(source, status, words, online_data, project, written):
    online_data(project.rows[:2])
    online_data.hub.status = status
    written(train_path=source)
    assert words in error_of(project.train("run"))
