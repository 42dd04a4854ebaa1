"""Rows from every kind of source: each is trained on, its rows are named, and what is wrong with one is one error."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vlmtune.config.load import load_config
from vlmtune.hardware.cards import Target, find_card
from vlmtune.plan.file import load_plan
from vlmtune.workflow.scenario import open_scenario


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps is this test's alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def embedded(root: Path, row: dict) -> dict:
    return row | {"image": {"bytes": (root / row["image"]).read_bytes(), "path": row["image"]}}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_table(path: Path, rows: list[dict], separator: str = ",") -> None:
    path.parent.mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()) if path.suffix == ".gz" else text.getvalue().encode())


def write_tar(path: Path, root: Path, rows: list[dict], first: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows, first):
            said = json.dumps({"question": row["question"], "answer": row["answer"]}).encode()
            for ending, content in (("png", (root / row["image"]).read_bytes()), ("json", said)):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def csv_file(root: Path, rows: list[dict]) -> object:
    write_table(root / "rows.csv", rows)
    return "rows.csv"


def packed_tsv(root: Path, rows: list[dict]) -> object:
    write_table(root / "rows.tsv.gz", rows, "\t")
    return "rows.tsv.gz"


def packed_lines(root: Path, rows: list[dict]) -> object:
    write_lines(root / "rows.jsonl.gz", rows)
    return "rows.jsonl.gz"


def packed_json(root: Path, rows: list[dict]) -> object:
    (root / "rows.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    return "rows.json.gz"


def listed(root: Path, rows: list[dict]) -> object:
    write_lines(root / "a.jsonl", rows[:4])
    write_lines(root / "b.jsonl", rows[4:])
    return ["a.jsonl", {"path": "b.jsonl", "weight": 2}]


def pattern(root: Path, rows: list[dict]) -> object:
    listed(root, rows)
    return "[ab].jsonl"


def shards(root: Path, rows: list[dict]) -> object:
    (root / "shards").mkdir()
    for number, some in enumerate((rows[:4], rows[4:])):
        table = pa.Table.from_pylist([embedded(root, row) for row in some])
        pq.write_table(table, root / f"shards/train-0000{number}-of-00002.parquet")
    (root / "shards/test-00000-of-00001.parquet").write_bytes(b"not read")
    return "shards"


def saved(root: Path, rows: list[dict]) -> object:
    kinds = {"image": datasets.Image(), "question": datasets.Value("string")}
    features = datasets.Features(kinds | {"answer": datasets.ClassLabel(names=["no", "yes"])})
    told = [embedded(root, row) | {"answer": number % 2} for number, row in enumerate(rows)]
    datasets.Dataset.from_list(told, features=features).save_to_disk(root / "saved", num_shards=2)
    return {"path": "saved"}


def saved_splits(root: Path, rows: list[dict]) -> object:
    parts = {"train": rows[:3], "rest": rows[3:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list([embedded(root, row) for row in some]) for name, some in parts.items()}
    ).save_to_disk(root / "saved")
    return {"path": "saved", "split": "rest"}


def image_folder(root: Path, rows: list[dict]) -> object:
    folder = root / "photos" / "train"
    folder.mkdir(parents=True)
    for row in rows:
        (folder / row["image"]).write_bytes((root / row["image"]).read_bytes())
    named = [{"file_name": row["image"], "question": row["question"], "answer": row["answer"]} for row in rows]
    write_table(folder / "metadata.csv", named)
    return "photos"


def by_class(root: Path, rows: list[dict]) -> object:
    for row in rows:
        folder = root / "photos" / "train" / Path(row["image"]).stem.rstrip("0123456789")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / row["image"]).write_bytes((root / row["image"]).read_bytes())
    return {"path": "photos", "prompt": "Which colour?"}


def tars(root: Path, rows: list[dict]) -> object:
    write_tar(root / "shard-0.tar", root, rows[:3])
    write_tar(root / "shard-1.tar", root, rows[3:], first=3)
    return "shard-*.tar"


KINDS: dict[Callable, tuple[int, str]] = {
    csv_file: (7, "rows.csv row 7"),
    packed_tsv: (7, "rows.tsv.gz row 7"),
    packed_lines: (7, "rows.jsonl.gz:7"),
    packed_json: (7, "rows.json.gz row 7"),
    listed: (7, "b.jsonl:3"),
    pattern: (7, "b.jsonl:3"),
    shards: (7, "train-00001-of-00002.parquet row 3"),
    saved: (7, "saved/data-00001-of-00002.arrow row 3"),
    saved_splits: (4, "data-00000-of-00001.arrow row 4"),
    image_folder: (7, "metadata.csv row 7"),
    by_class: (7, "train row 7"),
    tars: (7, "shard-1.tar row 4"),
}
"""Source → how many rows it has, and what the last of them is called."""


def set_source(project, source: object, **data) -> None:
    config = yaml.safe_load(project.config.read_text())
    config["data"] = {"train_path": source, **data}
    project.write_config(config)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_source_is_trained_on_and_its_rows_are_named(kind, project):
    set_source(project, kind(project.root, project.rows))
    done = project.train("run", "training.max_steps=2", "training.gradient_accumulation_steps=1")
    assert done.code == 0, done.stderr
    report = json.loads(project.run("run").report_json.read_text())
    num_rows, last = KINDS[kind]
    assert (report["steps"], report["num_rows"]) == (2, num_rows)
    checked = project.run_cli("validate", project.config, "--json", "--set", "data.max_samples=1000")
    assert checked.code == 0 and json.loads(checked.stdout)["data"]["train_path"]["rows"] == num_rows
    assert last in project.run_cli("validate", project.config, "--preview", num_rows).stdout


WEIGHTED = [{"path": "a.jsonl", "weight": 0.5}, {"path": "b.jsonl", "weight": 3}]
AUGMENT = {"rotation": 5.0, "color_jitter": 0.3, "jpeg_quality": 30}


def test_a_weighted_and_augmented_run_goes_on_bit_for_bit(project, assert_same_weights):
    """Killed and resumed, with reading processes beside it, and straight through without."""
    listed(project.root, project.rows)
    set_source(project, WEIGHTED, augment=AUGMENT)
    assert project.train("straight").code == 0
    report = json.loads(project.run("straight").report_json.read_text())
    assert report["steps"] == 12, "two epochs of 2 and 9 rows, two a step"
    project.train_killed("killed")
    resumed = project.train("killed", "hardware.num_workers=1", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("straight"), project.run("killed"))


def test_augmentation_changes_what_is_learned_and_not_what_is_evaluated(project, monkeypatch):
    from vlmtune.data import dataset

    seen = []
    monkeypatch.setattr(dataset, "augmented", lambda images, augment, seed: seen.append(seed) or images)
    set_source(project, "rows.jsonl", augment=AUGMENT, val_fraction=0.3)
    done = project.train("run", "training.seed=3")
    assert done.code == 0, done.stderr
    report = json.loads(project.run("run").report_json.read_text())
    assert report["num_rows"] == 5 and report["eval_loss"] is not None
    takes = {(number, take) for seed, number, take in seen}
    assert {seed for seed, _, _ in seen} == {3} and {take for _, take in takes} == {0, 1}
    assert len({number for number, _ in takes}) == 5, "no held-out row is among them"


def test_augmented_pictures_have_no_kept_features(project):
    set_source(project, "rows.jsonl", augment=AUGMENT)
    refused = project.train("run", "data.cache_features=true")
    assert refused.code == 1
    assert "data.cache_features: true, but pictures are changed anew in each epoch (data.augment)" in refused.stderr
    set_source(project, "rows.jsonl", augment=AUGMENT)
    assert project.train("run", "training.max_steps=1").code == 0
    assert not load_plan(project.run("run").plan).cache_features


def test_boxes_are_not_turned_with_their_picture(project):
    objects = {"ref": ["it"], "bbox": [[1, 1, 9, 9]]}
    boxed = {"question": "Where is <ref-object>?", "answer": "<bbox>", "objects": objects}
    project.write_rows([*project.rows, project.rows[0] | boxed])
    set_source(project, "rows.jsonl", augment=AUGMENT)
    refused = project.run_cli("validate", project.config)
    assert refused.code == 1
    assert "data.augment.rotation: 1 of 8 rows hold boxes, which do not turn with their picture" in refused.stderr


def test_held_out_rows_are_the_same_when_the_run_is_evaluated(project):
    set_source(project, "rows.jsonl", val_fraction=0.4, max_samples=6)
    assert project.train("run", "training.max_steps=1").code == 0
    trained = json.loads(project.run("run").report_json.read_text())
    asked = project.run_cli("evaluate", project.run("run").path, "--max-new-tokens", 1, "--json")
    assert asked.code == 0, asked.stderr
    result = json.loads(asked.stdout)
    assert trained["num_rows"] == 4 and len(result["answers"]) == 2
    assert abs(result["loss"] - trained["eval_loss"]) < 1e-4


def test_images_on_both_sides_are_a_warning(project):
    other = [row | {"question": "And what is the colour here?"} for row in project.rows[:2]]
    project.write_rows(other, "held-out.jsonl")
    set_source(project, "rows.jsonl", val_path="held-out.jsonl")
    done = project.train("run", "training.max_steps=1")
    assert "warning: the images of 2 of 2 held-out rows are trained on too" in done.stdout


def test_an_estimate_is_for_the_rows_of_all_sources(project):
    """The longest row, which decides it, is the last one of the second source."""
    longest = project.rows[0] | {"question": "What colour is this? " * 9}
    write_table(project.root / "rows.csv", project.rows[:2])
    write_tar(project.root / "shard-0.tar", project.root, [project.rows[0], longest])
    set_source(project, ["rows.csv", "shard-*.tar"], max_samples=1000)
    done = project.run_cli("estimate-vram", project.config, "--gpu", "rtx-4060", "--fast", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["worst_row"] == "shard-0.tar row 2"


def test_plan_and_estimate_take_rows_as_training_does(project):
    listed(project.root, project.rows)
    set_source(project, WEIGHTED)
    target = Target(find_card("8gb"), 8 * 2**30, True)
    scenario = open_scenario(load_config(project.config), target, live=False)
    assert scenario.rows.num_rows == 11 and len(scenario.rows.samples) == 7
    taken = scenario.rows.takes(scenario.plan, scenario.rows.samples)
    assert len(taken) == 11 and scenario.estimate(fast=True).fits
    set_source(project, ["a.jsonl", "b.jsonl"])
    plain = open_scenario(load_config(project.config), target, live=False)
    assert plain.rows.num_rows == 7 and plain.rows.takes(plain.plan, plain.rows.samples) is None
