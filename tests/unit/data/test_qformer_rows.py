"""InstructBLIP's rows: the Q-Former reads the question alone, and what the model cannot take is refused by name."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from tiny.rows import TinyModel, colour_rows, picture, sample

from vlmtune.data.collate import collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED, cut, encode, encode_prompt
from vlmtune.data.measure.lengths import refuse_without_answer
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import build_model

PICTURE = ImageRef(path="in memory")
QUESTION = "What colour is this?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyModel:
    return TinyModel("instructblip", tmp_path_factory.mktemp("models"))


def encoded(tiny, answer: str, question: str = QUESTION):
    return encode(sample(question, answer, PICTURE), [red()], tiny.processor, tiny.family)


def red() -> Image.Image:
    return Image.new("RGB", (60, 40), "red")


def test_the_language_model_gets_queries_start_question_answer_end(tiny):
    row = encoded(tiny, "deep red")
    text = tiny.processor.tokenizer.decode(row.tensors["input_ids"][0])
    assert text == f"{'<image>' * 4}</s>{QUESTION}deep red</s>", "the start is the tokenizer's own, </s>, not <s>"
    assert row.is_image.tolist() == [True] * 4 + [False] * (row.labels.shape[1] - 4)


def test_the_qformer_reads_the_question_alone(tiny):
    short, long = encoded(tiny, "red"), encoded(tiny, "a very dark red")
    words = tiny.processor.qformer_tokenizer.decode(long.tensors["qformer_input_ids"][0])
    assert words == f"[CLS]{QUESTION}[SEP]"
    for key in ("qformer_input_ids", "qformer_attention_mask", "pixel_values"):
        assert torch.equal(short.tensors[key], long.tensors[key])


def test_the_row_begins_as_the_prompt_at_inference(tiny):
    row = encoded(tiny, "deep red")
    prompt = encode_prompt(sample(QUESTION, "", PICTURE), [red()], tiny.processor, tiny.family)
    length = prompt["input_ids"].shape[1]
    assert torch.equal(row.tensors["input_ids"][:, :length], prompt["input_ids"])
    assert bool((row.labels[0, :length] == IGNORED).all()) and bool((row.labels[0, length:] != IGNORED).all())
    assert torch.equal(row.tensors["qformer_input_ids"], prompt["qformer_input_ids"])


def turns(*roles_and_parts) -> Sample:
    return Sample(tuple(Turn(role, parts) for role, parts in roles_and_parts), "rows.jsonl:7")


USER, ASSISTANT = ("user", (PICTURE, "what?")), ("assistant", ("this",))
MISFITS = [
    (turns(USER, ASSISTANT, ("user", ("and?",)), ASSISTANT), "takes one question and one answer a row"),
    (turns(("system", ("be brief",)), USER, ASSISTANT), "no system turn"),
    (turns(("user", ("what?",)), ASSISTANT), "needs an image in every row"),
    (turns(("user", (PICTURE, PICTURE, "what?")), ASSISTANT), "takes one image a row, here are 2"),
    (turns(("user", (PICTURE, "why " * 200)), ASSISTANT), "questions of up to 512 tokens, this one has 801"),
]


@pytest.mark.parametrize(("row", "problem"), MISFITS, ids=[problem for _, problem in MISFITS])
def test_what_the_model_cannot_take_is_refused_by_name(row, problem, tiny):
    for encoder in (encode, encode_prompt):
        with pytest.raises(VlmtuneError, match=f"^rows.jsonl:7: .*{problem}") as error:
            encoder(row, [red() for _ in row.images], tiny.processor, tiny.family)
        assert error.value.hint


def test_all_misfits_are_named_at_once_and_before_images_are_opened(tiny):
    rows = [dataclasses.replace(row, where=f"rows.jsonl:{line}") for line, (row, _) in enumerate(MISFITS, 1)]
    with pytest.raises(VlmtuneError) as error:
        MeasuredRows(rows).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source)
    assert error.value.message == "5 of 5 rows do not fit the model"
    problems = [str(problem) for problem in error.value.problems]
    assert [problem.partition(": ")[0] for problem in problems] == [f"rows.jsonl:{line}" for line in range(1, 6)]


def test_an_image_token_written_in_a_question_is_refused(tiny):
    with pytest.raises(VlmtuneError, match="rows.jsonl:1: a text holds <image>, by which"):
        encoded(tiny, "red", "What is <image> here?")


def test_batches_pad_questions_for_themselves(tiny, tmp_path):
    rows = [encoded(tiny, "red"), encoded(tiny, "red", "Why?")]
    batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
    longest = rows[0].tensors["qformer_input_ids"].shape[1]
    assert batch["qformer_input_ids"].shape == batch["qformer_attention_mask"].shape == (2, longest)
    assert batch["qformer_attention_mask"].sum(1).tolist() == [longest, len("Why?") + 2]


def test_a_question_as_long_as_the_row_is_not_cut_with_it(tiny):
    """The Q-Former's tokens may by chance be as many as the language model's."""
    row = encoded(tiny, "a very dark red")
    same = dict.fromkeys(("qformer_input_ids", "qformer_attention_mask"), torch.ones_like(row.labels))
    row.tensors.update(same)
    short = cut(row, row.num_text_tokens - 3)
    assert short.labels.shape[1] == row.labels.shape[1] - 3 == short.tensors["input_ids"].shape[1]
    assert short.tensors["qformer_input_ids"].shape == row.labels.shape


@pytest.mark.parametrize("spare_tokens", [0, 1])
def test_the_check_of_a_cut_agrees_with_the_cut(spare_tokens, tiny, tmp_path):
    row = sample("why is it so?", "because", picture(tmp_path, "a", (50, 50), "red"))
    prompt = encode_prompt(row, [red()], tiny.processor, tiny.family)["input_ids"]
    num_text = prompt.shape[1] - tiny.family.image_tokens(tiny.source.config, {}, 50, 50)
    plan = dataclasses.replace(tiny.plan, max_length=num_text + spare_tokens, truncation="cut")
    measured = MeasuredRows([row]).lengths(tiny.processor, tiny.family, plan, tiny.source)
    refused = nullcontext() if spare_tokens else pytest.raises(VlmtuneError, match="leaves no answer")
    with refused:
        refuse_without_answer(measured, tiny.processor, tiny.family, plan)
    with refused:
        cut_row = TuneDataset([row], tiny.processor, tiny.family, plan)[0]
        assert int((cut_row.labels != IGNORED).sum()) == spare_tokens


def test_the_qformers_dropout_is_off_in_training(tiny, tmp_path):
    rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, tiny.plan))
    batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
    batch.pop("where")
    assert tiny.source.config["qformer_config"]["hidden_dropout_prob"] == 0.1
    model = build_model(tiny.plan)
    losses = [forward_loss(model.train(), batch, tiny.plan).item() for _ in range(3)]
    assert losses[0] == losses[1] == losses[2] == forward_loss(model.eval(), batch, tiny.plan).item()
