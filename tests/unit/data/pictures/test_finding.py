"""Pictures are found under the names that other systems write, and the likely reason is said where they are not."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vlmtune.data.checked import with_images_checked
from vlmtune.data.images import image_size_px, open_image
from vlmtune.data.pictures.finding import MOST_NAMES, _names
from vlmtune.data.samples import read_samples
from vlmtune.data.types import Rows

RELATIVE = "relative paths start from data.image_dir, or from the folder of the data file"


def checked(folder: Path, name: str) -> Rows:
    data = folder / "rows.jsonl"
    data.write_text(json.dumps({"image": name, "question": "q", "answer": "a"}))
    return with_images_checked(read_samples(data))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png")),
        (unicodedata.normalize("NFC", "日本ガ/é.png"), unicodedata.normalize("NFD", "日本ガ/é.png")),
        (unicodedata.normalize("NFD", "é/") + unicodedata.normalize("NFC", "é.png"), "É/é.png"),
        ("my photo (1).png", "my%20photo%20%281%29.png"),
        (unicodedata.normalize("NFD", "é.png"), "%C3%A9.png"),
        ("photos/1.png", "photos\\1.png"),
        ("photos/my cat.png", ".\\photos\\my%20cat.png"),
        ("Photos/IMG_1.PNG", "photos/img_1.png"),
        ("photos/1.png", "file://{folder}/photos/1.png"),
        ("my cat.png", "file://localhost{folder}/my%20cat.png"),
    ],
)
def test_a_name_as_other_systems_write_it_is_found(tmp_path, on_disk, written):
    picture(tmp_path / on_disk)
    rows = checked(tmp_path, written.format(folder=tmp_path))
    assert rows.bad_rows == []
    [ref] = rows.samples[0].images
    assert image_size_px(ref) == open_image(ref, None).size == (6, 4)
    said = "1 image with a name written in another way than on the disk (Unicode form, %20, backslashes, capitals)"
    assert any(note.startswith(said) for note in rows.notes) == ("file:" not in written)


@pytest.mark.parametrize("name", ["100%.png", "a%20b.png", "back\\slash.png"])
def test_a_name_that_is_there_is_never_read_in_another_way(tmp_path, name):
    picture(tmp_path / name)
    for other in ("a b.png", "slash.png"):
        (tmp_path / other).write_text("another file")
    rows = checked(tmp_path, name)
    assert rows.bad_rows == []
    assert not any("another way" in note for note in rows.notes)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("A.png", "a.PNG and a.png are there: write which of them it is"),
        ("b.png", RELATIVE),
        ("photos/a.png", f"there is no folder photos in {{folder}}; {RELATIVE}"),
        ("photos/2024/a.png", f"there is no folder photos in {{folder}}; {RELATIVE}"),
        (
            "C:\\Users\\me\\a.jpg",
            "this is a Windows path: copy the pictures here, and write paths relative to data.image_dir",
        ),
    ],
)
def test_the_likely_reason_is_said(tmp_path, written, hint):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.PNG")
    [bad] = checked(tmp_path, written).bad_rows
    assert bad.problem == f"image {tmp_path}/{written} does not exist"
    assert bad.hint == hint.format(folder=tmp_path)


@pytest.mark.parametrize("written", ["file://photos/a.png", "file:a.png", "file://server/share/a.png"])
def test_file_addresses_of_other_machines_are_refused(tmp_path, written):
    picture(tmp_path / "a.png")
    [bad] = checked(tmp_path, written).bad_rows
    assert bad.problem == f"image 1 is a file: address of another machine: {written!r}"
    assert bad.hint == "write the path alone, or file:/// and the absolute path"


def test_names_of_huge_folders_are_not_kept(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    assert len(_names(str(tmp_path))) == 5
    monkeypatch.setattr("vlmtune.data.pictures.finding.MOST_NAMES", 4)
    (tmp_path / "5.png").touch()
    assert _names(str(tmp_path)) == {}
    assert MOST_NAMES > 10_000


def test_a_found_picture_of_a_table_is_found_in_training_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    picture(tmp_path / "My Cat.png")
    rows = checked(tmp_path, "my%20cat.png")
    assert type(rows.samples).__name__ == "TableRows"
    assert any("another way" in note for note in rows.notes)
    assert open_image(rows.samples[0].images[0], None).size == (6, 4)
