"""`vlmtune chat`: a conversation with a tuned model in the terminal."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.cli.ask.load import find, pictures
from vlmtune.cli.options import (
    AskedArgument,
    BaseModelOption,
    CheckpointOption,
    MaxNewTokensOption,
    TemperatureOption,
    TopPOption,
    UntunedOption,
)
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say, say_piece

if TYPE_CHECKING:
    from vlmtune.data.types import ImageRef, Turn
    from vlmtune.engine.answers.drawn import Drawing
    from vlmtune.engine.tuned import Tuned

EXAMPLE = "Example: [bold]vlmtune chat runs/my-run[/bold]"
HELP = (
    "/image PATH  a picture for the next question; several may be given\n"
    "/clear       forget the conversation\n"
    "/quit        end (so does Ctrl-D); Ctrl-C stops an answer"
)


def chat(
    run: AskedArgument,
    base: UntunedOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: MaxNewTokensOption = 512,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
) -> None:
    """Talk with the tuned model in the terminal: /image PATH, /clear, /quit."""
    asked = find(run, checkpoint, base_model, base=base)
    tuned = asked.load()
    from vlmtune.engine.answers.drawn import Drawing

    say(HELP)
    conversation = Conversation(tuned, Drawing(max_new_tokens, temperature, top_p))
    while (line := _read_line()) is not None and conversation.take(line):
        pass


def _read_line() -> str | None:
    """Return what somebody types; None at its end, or after Ctrl-C."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        say("")
        return None


class Conversation:
    """What was said so far, and the pictures that wait for the next question."""

    def __init__(self, tuned: "Tuned", drawing: "Drawing") -> None:
        self.tuned, self.drawing = tuned, drawing
        self.turns: tuple[Turn, ...] = ()
        self.images: tuple[ImageRef, ...] = ()

    def take(self, line: str) -> bool:
        """Do what a line asks for, mistakes told; return whether to go on."""
        command, _, rest = line.partition(" ")
        try:
            if command == "/image":
                self._add(rest.strip())
            elif command == "/clear":
                self.turns, self.images = (), ()
                say("forgotten")
            elif command.startswith("/") and command != "/quit":
                say(HELP)
            elif not line:
                say("nothing is asked: write a question, or /quit")
            elif command != "/quit":
                self._ask(line)
        except VlmtuneError as error:
            say(f"{error.message}{f' ({error.hint})' if error.hint else ''}")
        return command != "/quit"

    def _add(self, name: str) -> None:
        if not name:
            raise VlmtuneError("/image needs the path of a picture")
        path = Path(shlex.split(name)[0] if name[0] in "\"'" and name[-1] == name[0] else name)
        self.images += pictures([path])
        from vlmtune.data.types import count

        say(f"{count(len(self.images), 'picture')} for the next question")

    def _ask(self, question: str) -> None:
        """Write the answer as it comes; a question whose answer is stopped, or cannot be given, was not asked."""
        import torch

        from vlmtune.data.types import Sample, Turn, count
        from vlmtune.engine.answers.drawn import answer
        from vlmtune.models.build import family_of

        before = () if family_of(self.tuned.plan).one_answer else self.turns
        asked = (*before, Turn("user", (*self.images, question)))
        try:
            written = answer(
                self.tuned, Sample((*asked, Turn("assistant", ("",))), "the question"), self.drawing, say_piece
            )
        except KeyboardInterrupt:
            say("\nstopped; the question is forgotten")
            return
        except torch.OutOfMemoryError:
            raise VlmtuneError("the card's memory does not hold this conversation", "/clear begins a new one") from None
        cut = f"\n(cut at {count(self.drawing.max_new_tokens, 'token')}: --max-new-tokens)"
        say(cut if written.is_cut else "")
        self.turns, self.images = (*asked, Turn("assistant", (written.answer,))), ()
