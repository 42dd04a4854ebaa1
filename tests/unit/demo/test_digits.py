"""The demo's data set and the committed base model."""

import collections
import json
import math
import struct
from pathlib import Path

import pytest
from PIL import Image

from vlmtune.demo.digits import QUESTIONS, WORDS, main, write_digits

MODEL = Path(__file__).parents[3] / "vlmtune" / "demo" / "model"
MAX_FOLDER_BYTES = 4_000_000
MAX_PARAMETERS = 1_500_000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    return folder, write_digits(folder)


def _rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_counts(written):
    folder, counts = written
    assert counts == {"images": 1797, "train": 1437, "heldout": 360, "out_dir": str(folder)}
    assert len(list((folder / "images").glob("*.png"))) == 1797
    assert len(_rows(folder, "train.jsonl")) == 1437
    assert len(_rows(folder, "heldout.jsonl")) == 360


def test_splits_are_disjoint_and_cover_every_image(written):
    folder, _ = written
    train = {row["image"] for row in _rows(folder, "train.jsonl")}
    heldout = {row["image"] for row in _rows(folder, "heldout.jsonl")}
    assert not train & heldout
    assert train | heldout == {f"images/{i:04d}.png" for i in range(1797)}


def test_every_answer_is_a_word_and_every_digit_is_held_out_in_proportion(written):
    folder, _ = written
    for name, smallest in (("train.jsonl", 139), ("heldout.jsonl", 34)):
        rows = _rows(folder, name)
        counts = collections.Counter(row["answer"] for row in rows)
        assert set(counts) == set(WORDS)
        assert min(counts.values()) >= smallest
        assert {row["question"] for row in rows} == set(QUESTIONS)


def test_answers_belong_to_their_pictures(written):
    from sklearn.datasets import load_digits

    folder, _ = written
    targets = load_digits().target
    for row in _rows(folder, "heldout.jsonl"):
        assert row["answer"] == WORDS[targets[int(Path(row["image"]).stem)]]


def test_pictures_are_dark_ink_on_white_paper(written):
    folder, _ = written
    with Image.open(folder / "images/0000.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert picture.convert("L").getextrema()[0] < 32


def test_two_calls_write_the_same_bytes(written, tmp_path):
    folder, _ = written
    write_digits(tmp_path)
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(names) == 1799
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_command_prints_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("sys.argv", ["digits", str(tmp_path)])
    main()
    assert capsys.readouterr().out == (f"wrote 1797 images, 1437 training and 360 held-out rows to {tmp_path}\n")


def test_model_folder_is_small():
    files = [p for p in MODEL.rglob("*") if p.is_file()]
    assert len(files) >= 6
    assert sum(p.stat().st_size for p in files) <= MAX_FOLDER_BYTES


def test_model_has_few_parameters():
    with (MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    count = sum(math.prod(tensor["shape"]) for tensor in header.values())
    assert 500_000 < count <= MAX_PARAMETERS
    assert {tensor["dtype"] for tensor in header.values()} == {"F32"}


def test_chat_template_ends_every_answer_and_the_prompt_is_a_prefix():
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(MODEL)
    question = [{"type": "image"}, {"type": "text", "text": "Which digit is written here?"}]
    user = {"role": "user", "content": question}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": "seven"}]}
    chat = processor.apply_chat_template([user, assistant] * 2)
    prompt = processor.apply_chat_template([user], add_generation_prompt=True)
    assert processor.tokenizer.eos_token == "</s>"
    assert prompt == "USER: <image> Which digit is written here?\nASSISTANT:"
    assert chat == f"{prompt} seven</s>\n" * 2


def test_each_digit_word_is_one_token():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    assert {len(tokenizer(f" {word}").input_ids) for word in WORDS} == {1}


def test_pretraining_draws_letters_and_no_digits():
    drawings = pytest.importorskip("vlmtune.demo.drawings")
    assert set(drawings.LETTERS) == set("abcdefghijklmnopqrstuvwxyz")
