"""Both pages in a browser, full of odd content: no error, no request, room on a phone."""

import dataclasses

import pytest
from pages import an_evaluated_row, an_evaluation, with_all_texts

from vlmtune.runs.histogram import histogram_of_lengths, histogram_of_losses
from vlmtune.runs.memory import Memory, parts_of_peak
from vlmtune.runs.pages.evaluation import Judge, Picture, render_evaluation
from vlmtune.runs.pages.report import render_page
from vlmtune.units import GIB

ODD = (
    "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">" + "W" * 300 + "\u202e دیده"
)
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
PICTURES = [Picture(ODD, DOT), Picture(ODD, "", "cannot be opened")]


@pytest.fixture(scope="module")
def browser():
    try:
        from browsers import NoBrowser, open_browser
    except ImportError as error:
        pytest.skip(f"pages are not tried in a browser: {error}")
    try:
        with open_browser() as browser:
            yield browser
    except NoBrowser as error:
        pytest.skip(f"pages are not tried in a browser: {error}")


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens HTML in a browser window and returns it; what went wrong and was asked for is in `said`."""
    opened = []

    def open_page(text: str, width_px: int, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width_px, "height": 800}, color_scheme=scheme)
        opened.append(page)
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.said.append(request.url))
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        page.goto(file.as_uri())
        page.said = [said for said in page.said if said != file.as_uri() and not said.startswith("data:")]
        return page

    yield open_page
    for page in opened:
        page.close()


def odd_report(a_record, a_report) -> str:
    parts = parts_of_peak(3 * GIB, 4 * GIB, 5 * GIB)
    memory = Memory(6 * GIB, 5 * GIB, parts)
    report = with_all_texts(a_report(notes=["a"], skipped=["a"] * 9), ODD)
    report = dataclasses.replace(
        report, memory_measured=memory, memory_estimated=memory, row_lengths=histogram_of_lengths([5, 70, 9_000_000])
    )
    evaluated = {"eval_loss": 1e6, "eval_metrics": {ODD: 0.5}, "eval_row_losses": histogram_of_losses([0.1, 3.0])}
    memory_now = {"gpu_allocated_bytes": 4 * GIB, "gpu_allocated_peak_bytes": 5 * GIB, "gpu_estimate_bytes": 5 * GIB}
    records = [a_record(step * 1_000_000, loss=1e-9, **evaluated, **memory_now) for step in range(1, 9)]
    return render_page(report, records)


def odd_evaluation() -> str:
    record = an_evaluation([an_evaluated_row(before=0.0), an_evaluated_row(2, exact=0.0)], with_base=True)
    return render_evaluation(
        with_all_texts(record, ODD), ODD, Judge(f"{ODD}0", is_error=False), {0: PICTURES, 1: PICTURES * 3}
    )


@pytest.mark.parametrize("width_px", (360, 1200))
@pytest.mark.parametrize("name", ("report", "evaluation"))
def test_a_page_asks_for_nothing_runs_nothing_and_is_not_wider_than_its_window(
    show, a_record, a_report, name, width_px
):
    text = odd_report(a_record, a_report) if name == "report" else odd_evaluation()
    page = show(text, width_px)
    assert page.said == [] and page.title() != "run"
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    smallest = page.evaluate("Math.min(...[...document.querySelectorAll('svg')].map(one => one.clientWidth))")
    assert smallest >= 300, "letters in a chart are as large as they are drawn"


def test_a_page_is_dark_where_the_system_is(show):
    colours = [show(odd_evaluation(), 360, scheme).evaluate("getComputedStyle(document.body).backgroundColor")
               for scheme in ("light", "dark")]  # fmt: skip
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_rows_are_chosen_and_put_in_order(show):
    rows = [
        an_evaluated_row(1, loss=0.1, exact=0.0, before=1.0),
        an_evaluated_row(2, loss=4.0, before=0.0),
        an_evaluated_row(3, loss=9.0, exact=0.0, before=0.0),
    ]
    rows[2] = dataclasses.replace(rows[2], before=dataclasses.replace(rows[2].before, loss=9.0))
    page = show(
        render_evaluation(an_evaluation(rows, with_base=True), "cats", Judge("exact", is_error=False), {0: PICTURES}),
        360,
    )

    def seen() -> list[str]:
        boxes = [(one.bounding_box(), one.locator(".where").inner_text()) for one in page.locator(".row").all()]
        return [where.split()[0][-1] for box, where in sorted((b["y"], w) for b, w in boxes if b)]

    assert seen() == ["3", "2", "1"]
    page.get_by_label("as in the file").check()
    assert seen() == ["1", "2", "3"]
    page.get_by_label("loss rose most").check()
    assert seen() == ["2", "3", "1"]
    page.get_by_label("wrong (2)").check()
    assert seen() == ["3", "1"]
    page.get_by_label("worse (1)").check()
    assert seen() == ["1"] and page.said == []
