"""What a family's template, processor or collator refuses in training is refused beforehand, and nothing else is."""

import copy

import pytest
from PIL import Image
from tiny import TINY
from tiny.rows import picture, sample

from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import encode
from vlmtune.data.fit import enlarged
from vlmtune.data.measure import pictures
from vlmtune.data.measure.pictures import refused_sizes
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import Sample, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.models.processor import image_marks

SIZES_PX = [(1, 1), (3, 3), (5, 5), (2, 60), (60, 3), (1, 300), (199, 1), (201, 1), (4000, 10), (10, 4000), (640, 480)]
REFUSALS = {
    "a system turn beside an image": (
        "{% for m in messages[1:] %}{% for p in m['content'] if p['type'] == 'image' %}"
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt beside an image') }}{% endif %}"
        "{% endfor %}{% endfor %}"
    ),
    "a word": (
        "{% for m in messages %}{% for p in m['content'] if 'never' in (p['text'] or '') %}"
        "{{ raise_exception('not this word') }}{% endfor %}{% endfor %}"
    ),
    "what it cannot add": (
        "{% for m in messages if m['role'] == 'system' %}{{ 1 + m['content'][0]['text'] }}{% endfor %}"
    ),
}
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{{ '<|image_pad|>' if p['type'] == 'image' else p['text'] if m == messages[-1] "
    "else p['text'].split('</think>')[-1] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes the thoughts of the last turn alone."""


def turns(*roles_and_parts: tuple) -> Sample:
    return Sample(tuple(Turn(role, tuple(parts)) for role, *parts in roles_and_parts), "")


def hostile_rows(folder, tiny) -> list[Sample]:
    """Rows that some model or other refuses, each with a name of its own."""
    image = picture(folder, "usual", (40, 60), "red")
    sizes = [picture(folder, f"{width}x{height}", (width, height), "red") for width, height in SIZES_PX]
    texts = ["say {} please", "{}", "never {}"]
    answer = ("assistant", "it is red")
    rows = [
        *(sample("what?", "this", ref) for ref in sizes),
        sample("two?", "yes", image, sizes[-2]),
        *(sample(text.format(mark), "a", image) for text in texts for mark in image_marks(tiny.processor)),
        *(sample("what?", f"it is {mark}", image) for mark in image_marks(tiny.processor)),
        *(turns(("user", "what?"), ("assistant", f"it is {mark}")) for mark in image_marks(tiny.processor)),
        turns(("system", "be brief"), ("user", image, "what?"), answer),
        turns(("system", "be brief"), ("user", "what?"), answer),
        turns(("user", image, "what?"), answer, ("user", "and?"), answer),
        turns(("user", "what?"), answer, ("user", image, "and?"), answer),
        sample("never say never", "no", image),
        sample("what?", "this"),
        *(sample("q" * length, "a" * length, image) for length in (1, 60, 600)),
    ]
    return [Sample(row.turns, f"rows.jsonl:{line}", line) for line, row in enumerate([*rows, *rows[::-1]], 1)]


def trained(rows: list[Sample], tiny) -> dict[str, bool]:
    """Return of each row whether it can be put into a batch, as training does."""
    dataset, collator = TuneDataset(rows, tiny.processor, tiny.family, tiny.plan), Collator(tiny.processor)

    def is_taken(index: int) -> bool:
        try:
            return bool(collator([dataset[index]]))
        except VlmtuneError:
            return False

    return {row.where: is_taken(index) for index, row in enumerate(rows)}


def checked(rows: list[Sample], tiny) -> dict[str, bool]:
    """Return of each row whether the check lets it pass."""
    fitting, bad_rows = MeasuredRows(rows, "skip").fitting(tiny.processor, tiny.family, tiny.plan)
    passed = {row.where for row in fitting.samples}
    assert passed.isdisjoint(bad.where for bad in bad_rows) and len(passed) + len(bad_rows) == len(rows)
    return {row.where: row.where in passed for row in rows}


@pytest.mark.parametrize("model_type", TINY)
def test_the_check_refuses_what_training_refuses(model_type, models, tmp_path):
    tiny = models(model_type)
    rows = hostile_rows(tmp_path, tiny)
    taken = trained(rows, tiny)
    assert checked(rows, tiny) == taken
    assert 10 < sum(taken.values()) < len(rows) - 5


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("model_type", [name for name in TINY if name not in ("paligemma", "instructblip")])
def test_it_refuses_what_a_template_refuses(model_type, refusal, models, tmp_path):
    tiny = copy.copy(models(model_type))
    tiny.processor = copy.copy(tiny.processor)
    tiny.processor.chat_template = REFUSALS[refusal] + tiny.processor.chat_template
    plain = [row for row in hostile_rows(tmp_path, tiny) if all(ref.path.endswith("usual.png") for ref in row.images)]
    rows = [Sample(row.turns, f"rows.jsonl:{line}", line) for line, row in enumerate(plain * 20, 1)]
    taken = trained(plain, tiny)
    assert checked(plain, tiny) == taken
    assert checked(rows, tiny) == {
        row.where: taken[plain[(line - 1) % len(plain)].where] for line, row in enumerate(rows, 1)
    }
    assert 0 < sum(taken.values()) < len(plain)


def test_it_refuses_what_a_thinking_template_rewrites(models, tmp_path):
    tiny = copy.copy(models("qwen2_vl"))
    tiny.processor = copy.copy(tiny.processor)
    tiny.processor.chat_template = FORGETFUL
    image = picture(tmp_path, "usual", (40, 60), "red")
    plain, thought = (("assistant", f"{thought}it is red") for thought in ("", "<think>so</think>"))
    asked, asked_again = ("user", image, "what?"), ("user", "and?")
    rows = [
        turns(asked, plain),
        turns(asked, thought),
        turns(asked, plain, asked_again, plain),
        turns(asked, thought, asked_again, plain),
        turns(asked, plain, asked_again, thought),
        turns(asked, thought, asked_again, thought),
    ]
    rows = [Sample(row.turns, f"rows.jsonl:{line}", line) for line, row in enumerate(rows * 30, 1)]
    taken = trained(rows, tiny)
    assert list(taken.values()) == [True, True, True, False, True, False] * 30
    assert checked(rows, tiny) == taken


def test_of_many_sizes_few_are_asked(models, monkeypatch):
    tiny, asked = models("qwen2_vl"), []
    real = pictures._refusal
    monkeypatch.setattr(pictures, "_refusal", lambda size_px, *rest: asked.append(size_px) or real(size_px, *rest))
    sizes_px = [(width, height) for width in range(100, 1000, 10) for height in range(100, 1000, 10)]
    wide = [(40_000, height) for height in (150, 190, 199, 201)]
    refused = refused_sizes([*sizes_px, *wide], tiny.processor, tiny.family, None)
    assert sorted(refused) == [len(sizes_px) + place for place in range(3)]
    assert all(why.startswith("the processor refuses this row: absolute aspect ratio") for why in refused.values())
    assert len(asked) <= 8


def test_sizes_are_those_after_shrinking(models):
    tiny = models("qwen2_vl")
    assert refused_sizes([(4000, 20), (4020, 20)], tiny.processor, tiny.family, None).keys() == {1}
    assert refused_sizes([(4000, 20), (4020, 20)], tiny.processor, tiny.family, 512) == {}


def test_a_picture_that_a_processor_would_enlarge_without_end_is_refused_before_it_is_tried(models, monkeypatch):
    """20,000×5 px become 1.3 million by 336 in LLaVA 1.5: 5 GB of main memory for one row."""
    tiny = models("llava")
    side = tiny.processor.image_processor.size["shortest_edge"]
    limit = enlarged.MOST_PX // side**2
    sizes = [(limit * 5, 5), ((limit + 1) * 5, 5), (60, 60), (1, limit + 1)]
    tried = []
    monkeypatch.setattr(pictures, "encode", lambda probe, images, *rest: tried.append(images[0].size))
    refused = refused_sizes(sizes, tiny.processor, tiny.family, None)
    assert set(refused) == {1, 3}
    assert refused[1].startswith("the processor brings its shorter side to a fixed length, which makes ")
    assert sizes[1] not in tried


def test_nobody_hands_such_a_picture_to_its_processor(models):
    """One that was not looked at before, as those of `vlmtune generate`."""
    tiny = models("llava")
    width = enlarged.MOST_PX // tiny.processor.image_processor.size["shortest_edge"] ** 2 + 1
    with pytest.raises(VlmtuneError, match=f"{width:,}×1 pixels: the processor brings its shorter"):
        encode(sample("q", "a"), [Image.new("RGB", (width, 1))], tiny.processor, tiny.family)
