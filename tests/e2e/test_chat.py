"""`vlmtune chat` and `generate`: one model is asked by both, in process."""

import io
import json

import pytest
import torch

from vlmtune.cli.ask import chat
from vlmtune.engine.answers import drawn


@pytest.fixture(scope="module")
def tuned(models):
    """The tiny LLaVA without adapters."""
    from tiny.rows import tiny_plan

    from vlmtune.engine.tuned import load_untuned

    return load_untuned(tiny_plan(models("llava").folder))


@pytest.fixture
def picture_file(tmp_path):
    from tiny.rows import picture

    return picture(tmp_path, "a red one", (40, 30), "red").path


@pytest.fixture
def seen(monkeypatch):
    """The conversations that were asked, in place of what the model would say to them."""
    asked = []

    def answer(tuned, sample, drawing, tell=None):
        asked.append(sample)
        tell("red \x1b[2J")
        return drawn.Written("red", "", is_cut=False)

    monkeypatch.setattr(drawn, "answer", answer)
    return asked


def conversation(tuned):
    return chat.Conversation(tuned, drawn.Drawing(8))


def test_questions_carry_what_was_said_and_their_pictures(tuned, seen, picture_file, capsys):
    talk = conversation(tuned)
    for line in (f"/image {picture_file}", f"/image '{picture_file}'", "What?", "And now?", "/clear", "Again?"):
        assert talk.take(line)
    first, second, third = ([(turn.role, turn.text) for turn in sample.turns] for sample in seen)
    assert first == [("user", "What?"), ("assistant", "")] and len(seen[0].images) == 2
    assert second == [("user", "What?"), ("assistant", "red"), ("user", "And now?"), ("assistant", "")]
    assert seen[1].images == seen[0].images, "those of the first question, and no others"
    assert third == [("user", "Again?"), ("assistant", "")] and not seen[2].images
    out = capsys.readouterr().out
    assert "2 pictures for the next question" in out and "red \\x1b[2J" in out and "\x1b" not in out
    assert not talk.take("/quit")


def test_mistakes_are_told_and_the_conversation_goes_on(tuned, seen, tmp_path, capsys):
    talk = conversation(tuned)
    (tmp_path / "no.png").write_bytes(b"no picture")
    for line in ("/image", "/image absent.png", f"/image {tmp_path / 'no.png'}", "/picture", "", "What?"):
        assert talk.take(line)
    out = capsys.readouterr().out
    assert "/image needs the path" in out and "absent.png does not exist" in out and "/clear       forget" in out
    assert out.count("nothing is asked: write a question") == 1
    assert len(seen) == 1 and not seen[0].images


def test_ctrl_c_stops_an_answer_and_forgets_its_question(tuned, monkeypatch, capsys):
    talk = conversation(tuned)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawn, "answer", interrupted)
        assert talk.take("What?")
    assert talk.turns == () and "stopped" in capsys.readouterr().out


def test_what_is_streamed_is_the_answer(tuned, picture_file):
    from vlmtune.data.types import ImageRef, Sample, Turn
    from vlmtune.engine.evaluate import generate

    turns = (Turn("user", (ImageRef(path=picture_file), "What?")), Turn("assistant", ("",)))
    sample, pieces = Sample(turns, "here"), []
    written = drawn.answer(tuned, sample, drawn.Drawing(8), pieces.append)
    assert len(pieces) > 1 and "".join(pieces).rstrip() == written.answer
    assert [written] == generate(tuned, [sample], 8), "without a temperature it is the likeliest answer"


def test_neither_the_end_of_an_answer_nor_its_first_blanks_are_streamed(tuned):
    tokenizer, pieces = tuned.processor.tokenizer, []
    end = tokenizer.eos_token_id
    told = drawn._Told(tokenizer, [end], pieces.append)
    told.put(torch.tensor([[1, 2]]))  # the prompt
    for token in [*tokenizer("  red one", add_special_tokens=False)["input_ids"], end]:
        told.put(torch.tensor([token]))
    told.end()
    assert "".join(pieces) == "red one"


def test_a_temperature_draws_and_the_least_top_p_does_not(tuned, picture_file):
    from vlmtune.data.types import ImageRef, Sample, Turn

    sample = Sample((Turn("user", (ImageRef(path=picture_file), "What?")), Turn("assistant", ("",))), "here")

    def drawn_with(seed, **settings):
        torch.manual_seed(seed)
        return drawn.answer(tuned, sample, drawn.Drawing(8, **settings)).answer

    assert len({drawn_with(seed, temperature=5.0) for seed in range(4)}) > 1
    likeliest = drawn.answer(tuned, sample, drawn.Drawing(8)).answer
    assert {drawn_with(seed, temperature=0.001, top_p=0.01) for seed in range(4)} == {likeliest}


def test_the_commands_ask_a_run(project, monkeypatch):
    project.train("run", "training.max_steps=1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What colour?\n\nWhat shape?\n")))
    image = next(project.root.glob("*.png"))
    words = ("--image", image, "--image", image, "--max-new-tokens", 3, "--json")
    told = project.run_cli("generate", "runs/run", "--prompts", "-", *words)
    assert told.code == 0, told.stderr
    assert [one["prompt"] for one in json.loads(told.stdout)] == ["What colour?", "What shape?"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What?\n\n<image>\n")))
    refused = project.run_cli("generate", "runs/run", "--prompts", "-", "--max-new-tokens", 3)
    assert refused.stderr.splitlines()[-2].startswith("error: standard input:3: "), "the line of the file"
    base = project.run_cli("generate", "runs/run", "--base", "--prompt", "What?", *words)
    assert base.code == 0 and json.loads(base.stdout)["prompt"] == "What?", base.stderr
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n/quit\n"))
    talked = project.run_cli("chat", "runs/run", "--max-new-tokens", 3)
    assert talked.code == 0 and "/image PATH" in talked.stdout and "cut at 3 tokens" in talked.stdout, talked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one of --prompt TEXT and --prompts FILE"),
        (("--prompt", "q", "--prompts", "x"), "give one of --prompt TEXT and --prompts FILE"),
        (("--prompts", "absent.txt"), "there is no file absent.txt"),
        (("--prompt", ""), "--prompt: it says nothing: write the question"),
        (("--prompt", " \n"), "--prompt: it says nothing: write the question"),
        (("--prompts", "empty.txt"), "empty.txt holds no question"),
        (("--prompts", "-"), "standard input holds no question"),
        (("--prompt", "q", "--base", "--checkpoint", "newest"), "which is no checkpoint"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_loads(run_cli, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n \n")))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    refused = run_cli("generate", "model", *words)
    assert refused.code in (1, 2) and said in " ".join(refused.stderr.replace("│", " ").split())
