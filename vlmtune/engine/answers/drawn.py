"""One answer to a conversation, told as it is written: the likeliest tokens, or drawn ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from vlmtune.data.dataset import TuneDataset
from vlmtune.data.types import Sample
from vlmtune.engine.evaluate import Written, end_token_ids, generated, written_of
from vlmtune.engine.tuned import Tuned
from vlmtune.models.build import base_of, family_of

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Drawing:
    """How an answer is chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this probability together."""

    def settings(self) -> dict[str, Any]:
        """Return it in transformers' words; what the model's own config asks for is set aside where it draws."""
        if not self.temperature:
            return {"max_new_tokens": self.max_new_tokens}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {**drawn, "max_new_tokens": self.max_new_tokens}


class _Told(TextStreamer):
    """Transformers' streamer, which prints, with a function in the place of that.

    Without the ends of answers, and without the blanks that they begin with.
    """

    def __init__(self, tokenizer: Any, ends: list[int], tell: Tell) -> None:
        super().__init__(tokenizer, skip_prompt=True, clean_up_tokenization_spaces=False)
        self.ends, self.tell, self.has_begun = ends, tell, False

    def put(self, value: torch.Tensor) -> None:
        if value.numel() > 1 or int(value) not in self.ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.has_begun else text.lstrip()
        if text:
            self.has_begun = True
            self.tell(text)


def answer(tuned: Tuned, sample: Sample, drawing: Drawing, tell: Tell | None = None) -> Written:
    """Return what the model writes in the place of the sample's last answer; `tell` gets its pieces as they come."""
    plan, tokenizer = tuned.plan, tuned.processor.tokenizer
    ends = end_token_ids(base_of(tuned.model), tuned.processor)
    rows = TuneDataset([sample], tuned.processor, family_of(plan), plan, tuned.features)
    prompt = {key: value.to(plan.device) for key, value in rows.prompt(0).tensors.items()}
    settings = {**drawing.settings(), "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    ids = generated(tuned.model, prompt, **settings, streamer=_Told(tokenizer, ends, tell) if tell else None)
    return written_of(ids[0, prompt["input_ids"].shape[1] :].tolist(), ends, tuned.processor)
