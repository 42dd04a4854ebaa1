"""`vlmtune generate`: answers of a tuned model, as a run folder or merged."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.ask.load import find, pictures, refuse_blank
from vlmtune.cli.options import (
    AskedArgument,
    BaseModelOption,
    CheckpointOption,
    JsonOption,
    MaxNewTokensOption,
    TemperatureOption,
    TopPOption,
    UntunedOption,
)
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say
from vlmtune.reading import read_regular
from vlmtune.units import MIB

if TYPE_CHECKING:
    from vlmtune.engine.evaluate import Written

EXAMPLE = 'Example: [bold]vlmtune generate runs/my-run --image cat.jpg --prompt "What is this?"[/bold]'
STANDARD_INPUT = Path("-")
PROMPTS_BYTES = 16 * MIB


def generate(
    run: AskedArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The question.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file with a question a line, each about the same pictures; -: standard input.",
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture. Repeatable.")] = None,
    base: UntunedOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: MaxNewTokensOption = 256,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the tuned model questions, one by one, about one or several pictures, or none."""
    asked = find(run, checkpoint, base_model, base=base)
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give one of --prompt TEXT and --prompts FILE", param_hint="--prompt")
    refuse_blank(prompt)
    questions = {"--prompt": prompt} if prompts is None else _lines(prompts)
    refs = pictures(image or [])
    from vlmtune.data.types import Sample, Turn, count

    samples = [
        Sample((Turn("user", (*refs, question)), Turn("assistant", ("",))), where)
        for where, question in questions.items()
    ]
    tuned = asked.load(samples)
    from vlmtune.engine.answers.drawn import Drawing, answer

    drawing, found = Drawing(max_new_tokens, temperature, top_p), []
    for question, sample in zip(questions.values(), samples, strict=True):
        written = answer(tuned, sample, drawing)
        if written.is_cut:
            say(f"cut at {count(max_new_tokens, 'token')}: --max-new-tokens N lets the answer be longer", err=True)
        found.append(_as_dict(question, image or [], written))
        if not as_json:
            say(f"> {question}\n{written.answer}" if prompts else written.answer)
    if as_json:
        from vlmtune.cli.show import render

        render.print_json(found if prompts else found[0])


def _as_dict(question: str, images: list[Path], written: "Written") -> dict:
    asked = {"prompt": question, "images": [str(path) for path in images]}
    return {**asked, "answer": written.answer, "thought": written.thought, "cut": written.is_cut}


def _standard_input() -> bytes:
    raw = sys.stdin.buffer.read(PROMPTS_BYTES + 1)
    if len(raw) > PROMPTS_BYTES:
        raise VlmtuneError(f"--prompts: standard input has more than {PROMPTS_BYTES // MIB} MiB", "ask fewer at once")
    return raw


def _lines(path: Path) -> dict[str, str]:
    """Return the questions of a file, or of standard input, by the names of their lines; none is empty."""
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        raw = _standard_input() if path == STANDARD_INPUT else read_regular(path, PROMPTS_BYTES)
        lines = enumerate(raw.decode("utf-8-sig").splitlines(), 1)
    except FileNotFoundError:
        raise VlmtuneError(
            f"--prompts: there is no file {path}", "give a file with one question a line, or -"
        ) from None
    except UnicodeDecodeError:
        raise VlmtuneError(f"--prompts: {name} is not UTF-8 text", "save it as UTF-8") from None
    questions = {f"{name}:{number}": line.strip() for number, line in lines if line.strip()}
    if not questions:
        raise VlmtuneError(f"--prompts: {name} holds no question", "write one a line")
    return questions
