"""What users read when a row or a file cannot be used, word for word."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmtune.data.reading import files, parquet
from vlmtune.data.reading.data_files import DataFile
from vlmtune.data.reading.files import Piece, pieces, read_rows
from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.samples import read_samples
from vlmtune.data.types import RowProblem
from vlmtune.errors import VlmtuneError

SIMPLE = 'a right row: {"image": "photos/1.jpg", "question": "What is this?", "answer": "A cat."}'
CAPTION = (
    "a caption or label is the answer to a question: ask one of all such rows, "
    'data.prompt: "Describe the picture.", or write one into each, in a column question'
)
MESSAGES = (
    'a right row: {"images": ["photos/1.jpg"], "messages": [{"role": "user", "content": "<image>What is this?"}, '
    '{"role": "assistant", "content": "A cat."}]}'
)
PARTS = 'a right part: {"type": "text", "text": "What is this?"} or {"type": "image", "image": "photos/1.jpg"}'
PATH = 'write a path, such as "image": "photos/1.jpg"'
ORDER = "turns alternate: system (optional), user, assistant, user, assistant, ..."
ANSWER = "write the answer, or remove the row"
LIMITS = "not usable JSON: nested too deeply, or a number of thousands of digits"
COUNTS = "write one <image> for every image, or none to place the images first"


def chat(*turns: tuple, **columns: object) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


def asking(content: object, **columns: object) -> dict:
    return chat(("user", content), ("assistant", "a"), **columns)


def with_image(value: object) -> dict:
    return {"image": value, "question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "problem", "hint"),
    [
        (7, "the row is a number where an object is expected", SIMPLE),
        (["a"], "the row is a list where an object is expected", SIMPLE),
        ({}, "the row has no columns", SIMPLE),
        ({"id": 1, "meta": "x"}, "no known columns; found 'id', 'meta'", SIMPLE),
        ({"Question": "q", "Answer": "a"}, "no known columns; found 'Question', 'Answer'",
         "did you mean question instead of 'Question'?"),
        ({"image": "a.jpg", "question": "q", "anwser": "a"}, "question has no answer beside it",
         "did you mean answer instead of 'anwser'?"),
        ({"image": "a.jpg", "caption": "A cat."}, "caption has no question beside it", CAPTION),
        ({"file_name": "a.jpg", "text": "A cat."}, "text has no question beside it", CAPTION),
        ({"question": "q", "anwser": "a", "text": "A cat."}, "question has no answer beside it",
         "did you mean answer instead of 'anwser'?"),
        ({"question": "q", "prompt": "p", "answer": "a"}, "question and prompt could both be the question",
         "keep one of them, or write messages"),
        ({"question": "q", "answer": "a", "label": 1}, "answer and label could both be the answer",
         "keep one of them, or write messages"),
        ({"question": "q", "answer": " \n"}, "turn 2 (assistant) is an empty answer", ANSWER),
        ({"question": "", "answer": "a"}, "turn 1 (user) is empty", "write its text, or remove the turn"),
        ({"question": "q", "answer": ["a", "b"]}, "answer is a list where a string is expected",
         "keep one of them, or write one row for each; several right ones go into answers, the first is learned"),
        ({"question": "q", "answer": True}, "answer is true/false where a string is expected", SIMPLE),
        ({"question": "q", "answer": float("nan")}, "answer is nan where a string is expected", SIMPLE),
        ({"question": 3, "answer": "a"}, "question is a number where a string is expected", SIMPLE),
        ({"messages": "[]"}, "messages is a string where a list of turns is expected", MESSAGES),
        ({"messages": []}, "messages is an empty list", MESSAGES),
        ({"messages": ["hello"]}, "turn 1 is a string where an object is expected", MESSAGES),
        ({"conversations": [{"value": "q"}]}, "turn 1 has no role", MESSAGES),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
         "completion is a string where a list of turns is expected", MESSAGES),
        ({"prompt": [{"role": "user", "content": "q"}]},
         "completion is null where a list of turns is expected", MESSAGES),
        (chat(("user", "q"), ("critic", "t")), "turn 2 has the role 'critic'",
         "known roles: system, user, human, assistant, gpt, tool"),
        (chat((3, "q")), "turn 1 has the role a number", "known roles: system, user, human, assistant, gpt, tool"),
        (chat(("user", "q"), ("tool", "t")), "turn 2 is tool where assistant is expected", ORDER),
        (chat(("assistant", "a")), "turn 1 is assistant where user is expected", ORDER),
        (chat(("user", "q"), ("user", "q")), "turn 2 is user where assistant is expected", ORDER),
        (chat(("user", "q"), ("assistant", "a"), ("system", "s")), "turn 3 is system where user is expected", ORDER),
        (chat(("user", "q")), "the last turn is user: there is no answer to learn",
         "end every row with an assistant turn"),
        (chat(("user", "q"), ("assistant", None)), "turn 2 (assistant) is an empty answer", ANSWER),
        (chat(("user", "q"), ("assistant", ""), ("user", "q"), ("assistant", "a")),
         "turn 2 (assistant) is an empty answer", ANSWER),
        (chat(("user", "q"), ("assistant", "a <image>"), image="a.jpg"), "turn 2 (assistant) holds an image",
         "move it to a user turn"),
        (asking(7), "turn 1 (user) is a number where a string or a list of parts is expected", MESSAGES),
        (asking(["q"]), "turn 1 (user), part 1 is a string where an object is expected", PARTS),
        (asking([{"type": "text", "text": 3}]),
         "turn 1 (user), part 1: text is a number where a string is expected", PARTS),
        (asking([{"type": "video", "video": "a.mp4"}]), "turn 1 (user), part 1 has the type 'video'", PARTS),
        (asking([{"content": "q"}]), "turn 1 (user), part 1 has no type", PARTS),
        (asking("\ud800"), "turn 1 (user) holds a broken character (half of a surrogate pair)",
         "write the text as UTF-8"),
        (asking("<image>", images=["a.jpg", "b.jpg"]), "2 images but 1 <image> placeholder", COUNTS),
        (asking("<image> <image>", image="a.jpg"), "1 image but 2 <image> placeholders", COUNTS),
        (asking("<image>"), "0 images but 1 <image> placeholder", COUNTS),
        (asking([{"type": "image", "image": "a.jpg"}], images=["b.jpg"]),
         "1 image in the image column beside 1 in the messages",
         "keep one of the two, or write <image> where the others belong"),
        (with_image(5), "image 1 is a number where a path is expected", PATH),
        (with_image(["a.jpg", None]), "image 2 is null where a path is expected", PATH),
        (with_image(""), "image 1 is an empty string", "leave the column out, or null, in a row without images"),
        (with_image(b""), "image 1 is empty where a path is expected", PATH),
        (with_image({"file": "a.jpg"}),
         "image 1 is an object without bytes, base64, image, image_url, path or url", PATH),
        (with_image("a\0.jpg"), "image 1 holds a broken character: 'a\\x00.jpg'", PATH),
        (with_image("file://photos/a.jpg"), "image 1 is a file: address of another machine: 'file://photos/a.jpg'",
         "write the path alone, or file:/// and the absolute path"),
        (with_image("ftp://photos/a.jpg"), "image 1 is a ftp:// address: 'ftp://photos/a.jpg'", PATH),
        (with_image("data:image/png,abc"), "image 1 is a data: address without base64",
         "write data:image/png;base64,..."),
        (with_image("data:image/png;base64,AAAA*"), "image 1 is not valid base64",
         "encode the whole image file, with its = padding"),
        (with_image("https://example.org/a.jpg"),
         "image 1 is an address, and nothing is fetched: 'https://example.org/a.jpg'",
         "download the image and write its path, or set data.allow_urls: true"),
    ],
)  # fmt: skip
def test_problem_of_a_row(row, problem, hint):
    with pytest.raises(RowProblem) as raised:
        parse_row(row, "rows.jsonl:1", ImageRules("/data", allow_urls=False))
    assert (raised.value.problem, raised.value.hint) == (problem, hint)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "q",}', "not valid JSON: Expecting property name enclosed in double quotes at column 18"),
        ("1" * 5000, LIMITS),
        ("[" * 100_000, LIMITS),
    ],
)
def test_a_line_that_is_not_json_does_not_stop_the_file(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n" + json.dumps({"question": "q", "answer": "a"}))
    rows = read_samples(path)
    assert [sample.where for sample in rows.samples] == ["rows.jsonl:2"]
    assert rows.bad_rows[0].where == "rows.jsonl:1"
    assert rows.bad_rows[0].problem == problem
    assert rows.bad_rows[0].hint == "every line is one JSON object"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "data file {path} is empty"),
        ("rows.jsonl", b" \n\n", "data file {path} holds no rows"),
        ("rows.json", b"[]", "data file {path} holds no rows"),
        ("rows.csv", b"a", "data file {path} is none of .jsonl, .json or .parquet\n"
         "hint: convert it, or give it its right ending"),
        ("rows.jsonl", b"[\n{}\n]", "rows.jsonl:1: a row is spread over several lines\n"
         "hint: write each row on one line, or rename a JSON array to .json"),
        ("rows.jsonl", b'{"question": "caf\xe9"}',
         "rows.jsonl:1: not UTF-8: byte 0xe9 at position 18\nhint: save it as UTF-8"),
        ("rows.jsonl", b'\xef\xbb\xbf{"question": "caf\xe9"}',
         "rows.jsonl:1: not UTF-8: byte 0xe9 at position 18\nhint: save it as UTF-8"),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16"),
         "rows.jsonl:1: the file is UTF-16, not UTF-8\nhint: save it as UTF-8"),
        ("rows.json", b"\xff", "rows.json: not UTF-8: byte 0xff at position 1\nhint: save it as UTF-8"),
        ("rows.json", b'[{"a": 1},\n{"b": }]', "rows.json:2: not valid JSON: Expecting value"),
        ("rows.json", b'{"a": 1}\n{"a": 2}', "rows.json:2: not valid JSON: Extra data\n"
         "hint: one object a line is JSONL: rename the file to .jsonl"),
        ("rows.json", b"[" * 100_000, f"rows.json: {LIMITS}"),
        ("rows.json", b'{"rows": []}', 'rows.json: no list of rows\n'
         'hint: write [{{...}}, {{...}}] or {{"data": [{{...}}, {{...}}]}}'),
    ],
)  # fmt: skip
def test_problem_of_a_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VlmtuneError) as raised:
        read_samples(path)
    assert str(raised.value) == message.format(path=path)


def test_a_broken_parquet_file(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing more PAR1")
    with pytest.raises(VlmtuneError, match=r"^rows\.parquet: Parquet file cannot be read after row 0: "):
        read_samples(path)


def test_times_of_any_resolution_and_depth_stand_in_no_ones_way(tmp_path):
    nanoseconds = pa.timestamp("ns")
    table = pa.table({
        "question": ["q"], "answer": ["a"], "time": pa.array([1], nanoseconds),
        "took": pa.array([1], pa.duration("ns")),
        "day": pa.array([9_000_000], pa.date32()), "map": pa.array([[("a", 1)]], pa.map_(pa.string(), nanoseconds)),
        "list": pa.array([[{"deep": 1}]], pa.list_(pa.struct([("deep", nanoseconds)]))),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    [(_, row)] = read_rows(Piece(tmp_path / "rows.parquet"))
    assert row["time"] == row["list"][0]["deep"] == row["map"][0][1] == "1970-01-01 00:00:00.000000001"
    assert row["day"] == "26611-03-02"
    assert read_samples(tmp_path / "rows.parquet").samples[0].answer == "a"


def test_what_parquet_cannot_give_is_one_error(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"time": pa.array([1], pa.timestamp("us", tz="Nowhere/None"))}), path)
    with pytest.raises(VlmtuneError, match=r"^rows\.parquet: Parquet file cannot be read after row 0: .*Nowhere"):
        read_samples(path)


def test_a_parquet_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a" * 2**20] * 4}), path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 2**21)
    with pytest.raises(VlmtuneError, match=r"rows\.parquet: [\d,]+ bytes of it unpack to 0.0 GiB: a decompression"):
        read_samples(path)
    monkeypatch.setattr(parquet, "LIKELY_RATIO", 10**6)
    assert len(list(read_rows(Piece(path)))) == 4


SHARED = {"dictionary": {}, "prefixes": {"use_dictionary": False, "column_encoding": {"question": "DELTA_BYTE_ARRAY"}}}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", SHARED.values(), ids=SHARED)
def test_a_large_value_that_many_rows_refer_to_is_not_held_for_all_of_them(tmp_path, monkeypatch, encoding, version):
    path = tmp_path / "rows.parquet"
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2**21 + 2**10)
    asked = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, **how: asked.append(how["batch_size"]) or iter_batches(self, **how)
    )
    for texts in (["a" * 2**20] * 50, [f"{number}" for number in range(50)]):
        pq.write_table(pa.table({"question": texts}), path, compression="zstd", data_page_version=version, **encoding)
        assert len(list(read_rows(Piece(path)))) == 50
    assert asked == [2, 64]


def thrift(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, found = number << 1, b""
    while number >= 0x80:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


def changed(path, old: int, new: int) -> None:
    """Put another number, as long, in each place of a Parquet file where this one stands."""
    assert len(thrift(old)) == len(thrift(new)) and thrift(old) in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(thrift(old), thrift(new)))


def test_a_parquet_bomb_whose_metadata_lie_is_not_unpacked_either(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a" * 2**20] * 4}), path, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    changed(path, column.total_uncompressed_size, 2**21 - 7)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 2**21 - 7
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 2**21)
    with pytest.raises(VlmtuneError, match=r"rows\.parquet: [\d,]+ bytes of it unpack to 0.0 GiB: a decompression"):
        read_samples(path)


def test_a_list_of_more_values_than_bytes_is_not_made(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    lists = pa.array([[None] * 2**17], pa.list_(pa.int8()))
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"], "x": lists}), path)
    assert len(read_samples(path).samples) == 1
    monkeypatch.setattr(parquet, "LIST_VALUES", 2**16)
    with pytest.raises(VlmtuneError, match=r"rows\.parquet: \d+ bytes of it unpack to 131,072 values in lists"):
        read_samples(path)


def test_a_page_that_ends_before_it_begins_is_one_error(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), path, use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    page = b"\x15\x00\x15\x02\x15\x0d\x00"  # of -7 bytes: the next begins where this one does
    content = path.read_bytes()
    path.write_bytes(content[:start] + page + content[start + len(page) :])
    with pytest.raises(VlmtuneError, match=r"^rows\.parquet: Parquet file cannot be read after row 0: a page of a neg"):
        read_samples(path)


def test_a_line_and_a_file_of_json_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROW_BYTES", 100)
    monkeypatch.setattr(files, "JSON_FILE_BYTES", 100)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 16)
    row = json.dumps({"question": "q", "answer": "a"})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n{row}\n" + " " * 70 + row)
    with pytest.raises(VlmtuneError, match=r"^rows\.jsonl: a line is longer than 0 MiB"):
        list(read_rows(Piece(path)))
    assert [(piece.start, piece.first_number) for piece in pieces(DataFile(path, ImageRules("", False)), 10)] == [
        (0, 1),
        (33, 2),
        (66, 3),
    ]
    path = tmp_path / "rows.json"
    path.write_text(f"[{row}, {row}, {row}]")
    with pytest.raises(VlmtuneError, match=r"rows\.json is larger than 0 KiB.*\nhint: write it as JSONL"):
        list(read_rows(Piece(path)))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(VlmtuneError) as raised:
        read_samples(tmp_path / "trian.jsonl")
    assert str(raised.value) == f"data file {tmp_path}/trian.jsonl does not exist\nhint: did you mean train.jsonl?"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(VlmtuneError) as raised:
        read_samples(tmp_path / "data" / "train.jsonl")
    assert raised.value.hint == f"the folder {tmp_path}/data does not exist"


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(VlmtuneError) as raised:
        read_samples(tmp_path)
    assert (
        str(raised.value) == f"data file {tmp_path} is a folder\nhint: name the .jsonl, .json or .parquet file itself"
    )


def test_a_missing_image_folder(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    with pytest.raises(VlmtuneError) as raised:
        read_samples(path, image_dir=tmp_path / "photos")
    assert str(raised.value) == f"image folder {tmp_path}/photos does not exist\nhint: correct data.image_dir"


MISSPELT = {
    "imgae": "image", "iamge": "image", "Image": "image", "IMAGES": "images", "imge": "image",
    "image_pth": "image_path", "imagepath": "image_path", "filename": "file_name", "Img": "img",
    "systm": "system", "System": "system", "system_prompt": "system", "sys_prompt": "system",
}  # fmt: skip


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_misspelt_column_is_no_quiet_line(tmp_path, name, meant):
    row = {"question": "q", "answer": "a", name: "photos/1.jpg"}
    with pytest.raises(RowProblem) as raised:
        parse_row(row, "rows.jsonl:1", ImageRules(str(tmp_path), allow_urls=False))
    assert str(raised.value) == f"the column '{name}' is not known"
    assert raised.value.hint == f"did you mean {meant}? Rename the column, or remove it"


@pytest.mark.parametrize(
    "columns",
    [
        *({name: 7} for name in ("image_id", "images_id", "id", "page", "mask", "imageid", "answer_id", "source")),
        {"image": "photos/1.jpg", "imgae": "photos/1.jpg"},
        {"system": "Be short.", "systm": "x"},
        {"imgae": ""},
    ],
    ids=str,
)
def test_other_columns_are_a_quiet_line(tmp_path, columns):
    row = {"question": "q", "answer": "a", **columns}
    parsed = parse_row(row, "rows.jsonl:1", ImageRules(str(tmp_path), allow_urls=False))
    assert parsed.unused_columns == set(columns) - {"image", "system"}
