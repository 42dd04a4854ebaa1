"""What an evaluation leaves in the run folder."""

import pytest
from pages import Page, an_evaluated_row, an_evaluation
from tiny.rows import colour_rows

from vlmtune.errors import VlmtuneError
from vlmtune.runs.evaluation import read_evaluation
from vlmtune.runs.folder import RunFolder
from vlmtune.workflow.evaluated import keep_evaluation


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "cats")


def test_the_page_shows_pictures_and_what_the_base_made_of_them(folder, tmp_path):
    samples = colour_rows(tmp_path, 3)
    (tmp_path / "lime1.png").unlink()
    rows = [an_evaluated_row(number) for number in range(3)]
    keep_evaluation(folder, an_evaluation([*rows], asked="base", loss=4.0), samples)
    kept = keep_evaluation(folder, an_evaluation(rows), samples)
    assert kept.before.loss == 4.0 and read_evaluation(folder) == kept
    page = Page(folder.evaluation_html.read_text(encoding="utf-8"))
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["red0.png", "blue2.png"]
    assert "cats: evaluation" in page.texts and "4 before" in page.texts and "cannot be opened" in page.texts


def test_a_damaged_evaluation_is_replaced(folder):
    folder.evaluation.write_text("{")
    keep_evaluation(folder, an_evaluation([an_evaluated_row()]), [*colour_rows(folder.path, 1)])
    assert read_evaluation(folder).rows == [an_evaluated_row()]


def test_nothing_is_written_through_a_link(folder, tmp_path):
    folder.plan.write_text("{}")
    folder.evaluation_html.symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(VlmtuneError, match="is a symbolic link"):
        RunFolder.open_existing(folder.path)
