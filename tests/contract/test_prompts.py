"""What is asked is how what is learned begins: a prompt's tokens are the first tokens of its row, for every family."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY
from tiny.rows import TinyModel
from tiny.templates import THINKING

from vlmtune.data.encode import IGNORED, encode, encode_prompt
from vlmtune.data.measure.counting import text_tokens
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.errors import VlmtuneError

BLANKS = st.sampled_from(["", "", " ", "\n", "\n\n", "\t \n", "\u2003"])
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=12)
ENDS = st.sampled_from(["", "", ")", "://x", "</s>x", "\u0301", "<box>", "\n"])
TEXTS = st.builds("".join, st.tuples(BLANKS, ENDS, WORDS, ENDS, BLANKS)).filter(str.strip)
SYSTEMS = st.none() | st.just("") | TEXTS
NUM_ANSWERS = st.sampled_from([1, 1, 1, 2, 3])


@pytest.fixture(scope="module", params=[*sorted(TINY), "thinking"])
def tiny(request, models, tmp_path_factory) -> TinyModel:
    if request.param != "thinking":
        return models(request.param)
    made = TinyModel("qwen3_vl", tmp_path_factory.mktemp("thinking"))
    made.processor.chat_template = THINKING
    return made


def conversation(tiny, system: str | None, texts: list[str], num_answers: int) -> Sample:
    """Return a row of such turns, its picture in the first question."""
    turns = [Turn("system", (system,))] if system is not None and not tiny.family.one_answer else []
    for number in range(1 if tiny.family.one_answer else num_answers):
        images = (ImageRef(path="a picture"),) if number == 0 else ()
        turns += [Turn("user", (*images, texts[2 * number])), Turn("assistant", (texts[2 * number + 1],))]
    return Sample(tuple(turns), "rows.jsonl:7")


def is_rewritten(error: VlmtuneError) -> bool:
    return error.message.startswith("rows.jsonl:7: ") and any(
        said in error.message for said in ("rewrites earlier turns", "joins the beginning of answer")
    )


@settings(max_examples=60, deadline=None)
@given(system=SYSTEMS, texts=st.lists(TEXTS, min_size=6, max_size=6), num_answers=NUM_ANSWERS)
@example(system=None, texts=["q", "\na"] * 3, num_answers=1)
@example(system=None, texts=["q", "\n\na"] * 3, num_answers=2)
@example(system="", texts=["q\n", " a "] * 3, num_answers=1)
@example(system=None, texts=["q", ") a"] * 3, num_answers=1)
def test_the_tokens_of_every_prompt_begin_the_row(tiny, system, texts, num_answers):
    row, images = conversation(tiny, system, texts, num_answers), [Image.new("RGB", (60, 60), "red")]
    try:
        measured = text_tokens([row], tiny.processor, tiny.family)
    except VlmtuneError as error:
        assert num_answers > 1 and is_rewritten(error)
        return
    encoded = encode(row, images, tiny.processor, tiny.family)
    ids, labels = encoded.tensors["input_ids"][0].tolist(), encoded.labels[0].tolist()
    assert encoded.num_text_tokens == pytest.approx(measured[0], abs=2 if tiny.family.one_answer else 0)
    for index, turn in enumerate(row.turns):
        if turn.role == "assistant":
            asked = Sample(row.turns[: index + 1], row.where)
            prompt = encode_prompt(asked, images, tiny.processor, tiny.family)["input_ids"][0].tolist()
            assert ids[: len(prompt)] == prompt
            assert labels[len(prompt) - 1] == IGNORED and labels[len(prompt)] == ids[len(prompt)]
