"""The page of an evaluation: it gets the pictures of the rows, and its word for good from the metric."""

import pytest
from pages import Page, an_evaluated_row, an_evaluation
from tiny.rows import colour_rows

from vlmtune.errors import VlmtuneError
from vlmtune.runs.folder import RunFolder
from vlmtune.workflow.asked.gallery import write_gallery


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "cats")


def test_the_page_shows_the_pictures_of_each_row(folder, tmp_path):
    samples = colour_rows(tmp_path, 3)
    (tmp_path / "lime1.png").unlink()
    rows = [an_evaluated_row(number, scores={"cer": 0.0}) for number in range(3)]
    write_gallery(folder.evaluation.with_suffix(".html"), an_evaluation(rows, metrics={"cer": 0.0}), samples)
    page = Page(folder.evaluation.with_suffix(".html").read_text(encoding="utf-8"))
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["red0.png", "blue2.png"]
    assert "cats: evaluation" in page.texts and "cannot be opened" in page.texts
    assert page.texts.count("right · loss 0.5") == 3, "an error of zero"


def test_nothing_is_written_through_a_link(folder, tmp_path):
    folder.plan.write_text("{}")
    folder.evaluation.with_suffix(".html").symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(VlmtuneError, match="is a symbolic link"):
        RunFolder.open_existing(folder.path)
