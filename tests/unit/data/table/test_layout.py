"""A row taken apart and put together is the same row."""

from hypothesis import given
from hypothesis import strategies as st

from vlmtune.data.table.layout import assembled, laid_out, num_images, without_images
from vlmtune.data.types import ImageRef, Sample, Turn

IMAGES = st.sampled_from(
    [ImageRef(path="/a.png"), ImageRef(path="/b.png"), ImageRef(url="https://c.org/d.png"), ImageRef(data=b"bytes")]
)
TURNS = st.builds(
    lambda role, parts, is_learned, more: Turn(role, tuple(parts), is_learned or role != "assistant", more),
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(st.text(min_size=1) | IMAGES, max_size=5),
    st.booleans(),
    st.sampled_from(["", '{"tool_calls": []}']),
)
SAMPLES = st.builds(
    lambda turns, tools, accepted: Sample(tuple(turns), "rows.jsonl:7", 7, tools, accepted),
    st.lists(TURNS, min_size=1, max_size=6),
    st.sampled_from(["", "[{}]"]),
    st.sampled_from([(), ("a", "an a")]),
)


def test_a_shape_says_who_speaks_and_where_images_stand():
    parts = (ImageRef(path="/a.png"), "what?", ImageRef(url="https://b.org"), ImageRef(data=b"c"))
    turns = (Turn("system", ("be brief",)), Turn("user", parts), Turn("assistant", ("this", " and that")))
    layout = laid_out(Sample(turns, "rows.jsonl:1"))
    assert layout == ("StUptudAtt", ["be brief", "what?", "this", " and that"], ["/a.png", "https://b.org"], [b"c"], ())


def test_a_shape_says_what_is_learned_and_what_templates_are_given():
    turns = (
        Turn("user", ("q",)),
        Turn("assistant", (), False, "{1}"),
        Turn("tool", ("ok",)),
        Turn("assistant", ("a",)),
    )
    layout = laid_out(Sample(turns, "rows.jsonl:1", tools="[2]"))
    assert layout == ("xUtNxTtAt", ["[2]", "q", "{1}", "ok", "a"], [], [], ())


@given(SAMPLES)
def test_nothing_is_lost(sample):
    layout = laid_out(sample)
    again = assembled(layout, sample.where, sample.number)
    assert again == sample and again.number == 7
    assert num_images(layout.shape) == len(sample.images)


@given(SAMPLES)
def test_without_its_images_a_row_is_written_the_same(sample):
    layout = laid_out(sample)
    bare = without_images(layout.shape, layout.texts, sample.where)
    assert bare.messages() == sample.messages() and bare.where == sample.where
    assert bare.tools == sample.tools
    assert [turn.text for turn in bare.turns] == [turn.text for turn in sample.turns]
