"""Asks questions about the drawings that the demo's base model is pretrained on.

Letters and symbols have names, strokes can be counted, and the words of the digits come in an
order. Only `vlmtune.demo.pretrain` imports this file.

Shapes: B chats, T tokens.
"""

import itertools

import torch

from vlmtune.demo.base_model import IMAGE_PIXELS
from vlmtune.demo.drawings import Drawing

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = {
    "letter": (
        "Which letter is written here?",
        "What letter is this?",
        "Read the letter in the picture.",
        "Name the letter that you see.",
    ),
    "symbol": (
        "Which symbol is written here?",
        "What symbol is this?",
        "Read the symbol in the picture.",
        "Name the symbol that you see.",
    ),
    "strokes": ("How many strokes are there?", "How many strokes do you see?"),
    "next": ("Which digit comes after {}?", "What digit comes after {}?"),
}
IGNORED_LABEL = -100


class Chats:
    """Token ids and labels of every question that can be asked of each drawing class."""

    def __init__(self, processor, drawings: list[Drawing]) -> None:
        self._tokenizer = processor.tokenizer
        self._processor = processor
        num_image_tokens = (IMAGE_PIXELS // processor.patch_size) ** 2
        self._image_text = "<image>" * num_image_tokens
        self.names = [[self._encode(q, d.name) for q in QUESTIONS[d.kind]] for d in drawings]
        self.strokes = [[self._encode(q, NUMBER_WORDS[len(d.strokes)]) for q in QUESTIONS["strokes"]] for d in drawings]
        self.order = [
            self._encode(q.format(word), following)
            for word, following in itertools.pairwise(NUMBER_WORDS)
            for q in QUESTIONS["next"]
        ] + [self._encode(q.format("nine"), "zero") for q in QUESTIONS["next"]]

    def _encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """Returns the ids of the whole chat and how many of them are the prompt."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        user = {"role": "user", "content": content}
        prompt = self._processor.apply_chat_template([user], add_generation_prompt=True)
        ids = [
            self._tokenizer(text.replace("<image>", self._image_text)).input_ids
            for text in (prompt, f"{prompt} {answer}{self._tokenizer.eos_token}")
        ]
        assert ids[1][: len(ids[0])] == ids[0], (prompt, answer)
        return ids[1], len(ids[0])

    def batch(self, class_ids: torch.Tensor, generator: torch.Generator) -> dict:
        """Returns `input_ids`, `attention_mask` and `labels` [B, T] of one random question each."""
        draws = torch.rand(len(class_ids), 2, generator=generator).tolist()
        chosen = []
        for class_id, (kind, which) in zip(class_ids.tolist(), draws, strict=True):
            pool = self.names[class_id]
            if kind > 0.9:
                pool = self.order if kind > 0.95 else self.strokes[class_id]
            chosen.append(pool[int(which * len(pool))])
        return self.pad(chosen)

    def pad(self, chats: list[tuple[list[int], int]]) -> dict:
        """Returns the chats as tensors [B, T], labelled from the first token of the answer."""
        width = max(len(ids) for ids, _ in chats)
        input_ids = torch.full((len(chats), width), self._tokenizer.pad_token_id)
        labels = torch.full((len(chats), width), IGNORED_LABEL)
        for row, (ids, num_prompt) in enumerate(chats):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
        mask = (input_ids != self._tokenizer.pad_token_id).long()
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def vocabulary(names: list[str]) -> list[str]:
    """Returns the words that deserve a token of their own."""
    questions = " ".join(itertools.chain.from_iterable(QUESTIONS.values()))
    asked = "".join(c if c.isalpha() else " " for c in questions).split()
    return sorted({*asked, *names, *NUMBER_WORDS, *"abcdefghijklmnopqrstuvwxyz"})
