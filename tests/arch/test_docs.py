"""README and docs/: their generated parts are current, links lead somewhere, the map is that of the code."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest

from vlmtune.catalog import catalog, find_entry
from vlmtune.data.boxes.marks import boxes_in
from vlmtune.data.reading.formats import ANSWER_COLUMNS, IMAGE_COLUMNS, QUESTION_COLUMNS, parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.hardware.cards import cards
from vlmtune.runs.folder import RunFolder
from vlmtune.units import GB

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vlmtune"
DOCS = sorted(f"docs/{file.name}" for file in ROOT.glob("docs/*.md"))
PAGES = ("README.md", "CHANGELOG.md", "vlmtune/demo/README.md", *DOCS)
MOST_README_LINES = 150
NAMED_BY_FOLDER = {"cli", "cli/models", "cli/show", "compat", "families", "models/qwen_vl"}
"""Folders whose files the map names by a rule: one file a command, a family, a library; names without their ending."""


@cache
def renew():
    """The module that makes the generated parts."""
    spec = importlib.util.spec_from_file_location("renew", ROOT / "docs" / "renew.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


GENERATED = (
    "README.md",
    "docs/config.md",
    "docs/estimate.md",
    "docs/levers.md",
    "docs/loading.md",
    "docs/contributing.md",
    "docs/evaluation.md",
    "docs/profile.md",
    "docs/several-gpus.md",
    "docs/speed.md",
)


@pytest.mark.parametrize("page", GENERATED)
def test_the_generated_parts_are_current(page):
    text = text_of(page)
    for name in renew().GENERATED[page]:
        assert all(text.count(mark) == 1 for mark in renew().between(name)), f"{page} needs the marks of {name}"
    assert text == renew().renewed(page, text), "renew it: make docs"


def test_every_page_with_generated_parts_is_looked_at():
    marked = {page for page in PAGES if "table: start -->" in text_of(page)}
    assert marked == set(GENERATED) == set(renew().GENERATED)


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("README.md", "| Plans under a memory limit |"),
        ("docs/config.md", "| `training.lora.rank` |"),
        ("docs/levers.md", "| Size of images |"),
        ("docs/estimate.md", "| all | "),
        ("docs/loading.md", "| Qwen/Qwen2.5-VL-7B-Instruct | 4.56 |"),
        ("docs/estimate.md", "| estimated at 92 % |"),
        ("docs/estimate.md", "| five-epochs |"),
        ("docs/contributing.md", "| `make demo` |"),
        ("docs/speed.md", "| Qwen2.5-VL-3B, docs | vlmtune |"),
        ("docs/profile.md", "| attention |"),
    ],
)
def test_a_changed_table_would_be_seen(page, written):
    text = text_of(page)
    changed = text.replace(written, "| none |")
    assert changed != text == renew().renewed(page, changed)


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= MOST_README_LINES


def without_code(text: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: str) -> set[str]:
    """The places in a page that links can name, as GitHub names them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_code(text_of(page)), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{same}" if same else slug)
    return set(found)


def broken_links(page: str, text: str) -> list[str]:
    """The relative links of a page's text that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        is_page = target.suffix == ".md"
        if not target.exists() or (anchor and not (is_page and anchor in anchors_of(str(target.relative_to(ROOT))))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, text_of(page)) == []


def test_a_broken_link_would_be_seen():
    text = "[](docs/data.md#images) [](docs/data.md#pictures) [](docs/none.md) [](https://a.b) [](#start) [](#end)"
    assert broken_links("README.md", text) == ["docs/data.md#pictures", "docs/none.md", "#end"]


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", text_of("README.md")))
    assert linked == set(DOCS) and len(linked) >= 10


def map_of_the_code() -> dict[str, str]:
    """Folder of the package → what the map says of it and of the files that lie in it."""
    block = re.search(r"^## Map$.*?^```$\n(.*?)^```$", text_of("docs/code.md"), flags=re.MULTILINE | re.DOTALL)[1]
    said: dict[str, str] = {}
    parents: list[str] = []
    current = ""
    for line in block.splitlines():
        depth = len(line) - len(line.lstrip())
        name = line.split()[0]
        if depth <= 4 and name.endswith("/"):
            parents[depth // 2 :] = [name.rstrip("/")]
            current = "/".join(parents)
        elif depth <= 4:
            current = "/".join(parents[: depth // 2])
        said[current] = f"{said.get(current, '')} {line}"
    return {path.partition("/")[2]: text for path, text in said.items() if path.split("/")[0] == "vlmtune"}


def modules_of(folder: str) -> set[str]:
    return {file.name for file in (PACKAGE / folder).glob("*.py") if not file.name.startswith("__")}


def test_the_map_names_every_module():
    said = map_of_the_code()
    folders = {file.parent.relative_to(PACKAGE).as_posix().strip(".") for file in PACKAGE.rglob("*.py")}
    assert len(folders) >= 20 and folders - said.keys() == set()
    missing = [
        f"{folder}/{name}"
        for folder in sorted(folders - NAMED_BY_FOLDER)
        for name in sorted(modules_of(folder))
        if not re.search(rf"(?<![\w]){re.escape(name)}", said[folder])
    ]
    assert missing == []


def test_the_map_names_nothing_that_is_gone():
    said = map_of_the_code()
    assert [folder for folder in said if not (PACKAGE / folder).is_dir()] == []
    named = {folder: set(re.findall(r"\b\w+\.py\b", text)) for folder, text in said.items()}
    assert {folder: gone for folder, names in named.items() if (gone := names - modules_of(folder))} == {}


def test_the_page_of_the_run_folder_names_every_file():
    folder = RunFolder(Path("run"))
    values = [getattr(folder, name) for name, kind in vars(RunFolder).items() if isinstance(kind, property)]
    text = text_of("docs/run-folder.md")
    assert len(values) >= 10
    assert [file.name for file in values if not re.search(rf"`{re.escape(file.name)}/?`", text)] == []


def test_the_rows_of_the_page_on_data_are_rows():
    text = text_of("docs/data.md")
    blocks = re.findall(r"^```json\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    samples = [parse_row(json.loads(block), "here", ImageRules("/data", allow_urls=False)).sample for block in blocks]
    image = ImageRef(path="/data/photos/1.jpg")
    same = Sample((Turn("user", (image, "What is this?")), Turn("assistant", ("A cat.",))), "here")
    *plain, boxed = samples
    assert plain == [same] * 4
    assert [box.numbers for box in boxes_in(boxed.answer)] == [(64, 240, 320, 480)]
    rows = {line.split("|")[1].strip(): re.findall(r"`(\w+)`", line) for line in text.splitlines() if "` `" in line}
    columns = {"image": IMAGE_COLUMNS, "question": QUESTION_COLUMNS, "answer": ANSWER_COLUMNS}
    assert {name: tuple(rows[name]) for name in columns} == columns


def test_numbers_in_the_pages_are_those_of_the_code():
    types = json.loads(text_of("docs/architectures.json"))["types"]
    holding = re.search(r"^(\d+) of (\d+) hold all", text_of("docs/architectures.md"), flags=re.MULTILINE)
    models, estimate = " ".join(text_of("docs/models.md").split()), " ".join(text_of("docs/estimate.md").split())
    assert holding[2] == str(len(types))
    assert f"lists all {holding[2]} types" in models and f"{holding[1]} of them train" in models
    assert f"the {len(catalog())} models of its catalogue" in models
    assert f"total memory of {len(cards())} cards" in estimate
    download = find_entry("Qwen/Qwen3-VL-4B-Instruct").download_bytes / GB
    assert f"download of {download:.1f} GB" in " ".join(text_of("README.md").split())
