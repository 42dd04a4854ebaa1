"""The checkpoint's processor, set as the plan says, with a chat template that ends the assistant's turn."""

import errno
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES
from vlmtune.families.base import THOUGHT_ENDS
from vlmtune.families.facts import ModelFacts
from vlmtune.files import is_disk_full
from vlmtune.hub.download import checkpoint_folder
from vlmtune.hub.source import open_model
from vlmtune.models.build import family_of
from vlmtune.models.opened.processor import FILE_BYTES, REFUSALS, open_processor
from vlmtune.plan.types import RunPlan
from vlmtune.reading import read_regular

THINKING = "enable_thinking"
TOLD = "{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}"
MEDIA_TOKENS = ("image_token", "boi_token", "video_token", "audio_token")
TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
"""That other programs read in place of tokenizer.json: no token of them is changed here."""
PROBE = [
    {"role": "user", "content": [{"type": "text", "text": "question"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "answer"}]},
]


def save_processor(processor: ProcessorMixin, folder: Path) -> None:
    """Write a processor; a full disk is an OSError, for which tokenizers raises the class of all errors."""
    try:
        processor.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception and is_disk_full(error):
            raise OSError(errno.ENOSPC, str(error)) from None
        raise


def save_for_servers(processor: ProcessorMixin, plan: RunPlan, folder: Path) -> None:
    """Write a processor for programs that go by the files of older transformers, with the tokenizer's as published.

    Transformers 5 writes all settings into processor_config.json, and tokenizers into tokenizer.json.
    """
    save_processor(processor, folder)
    for part in ("image_processor", "video_processor"):
        if (one := getattr(processor, part, None)) is not None:
            one.save_pretrained(folder)
    published = checkpoint_folder(plan.model, plan.revision, weights=False)
    for name in TOKENIZER_FILES:
        if (published / name).is_file() and not (folder / name).exists():
            (folder / name).write_bytes(read_regular(published / name, FILE_BYTES))


def load_processor(plan: RunPlan) -> ProcessorMixin:
    """Return tokenizer, image processor and chat template of the plan's model, ready to be saved with the adapter.

    Raises:
        VlmtuneError: files missing, an image token that the model does not have, or no chat template that ends the
            assistant's turn with an end token.
    """
    family = family_of(plan)
    folder = checkpoint_folder(plan.model, plan.revision, weights=False)
    processor = open_processor(folder, family.processor_class or "AutoProcessor")
    source = open_model(plan.model, plan.revision, Path("/"))
    if family in FAMILIES:
        _check_image_token(processor, source.facts(plan.model_name), plan)
    apply_settings(processor, family.processor_settings(source.config))
    for name, value in plan.image_overrides.items():
        setattr(processor.image_processor, name, value)
    if not family.one_answer:
        if turn_end_id(processor) is None and family.chat_template:
            processor.chat_template = family.chat_template
        if turn_end_id(processor) is None:
            raise VlmtuneError(
                f"the chat template of {plan.model} puts no end token after an answer: a tuned model would never stop",
                "use the instruction-tuned version of the model, or add the end token to its chat_template.jinja",
            )
        _tell_template(processor, plan)
    return processor


def _tell_template(processor: ProcessorMixin, plan: RunPlan) -> None:
    """Let the template be told what the plan says, by whoever asks it: it is saved with what the run makes.

    Where the plan says nothing and the template asks within a thought that rows do not have, it is told not to.
    """
    published = processor.chat_template
    for name, value in plan.chat_template_kwargs.items():
        if not _knows(published, name):
            raise VlmtuneError(
                f"data.chat_template_kwargs.{name}: the chat template of {plan.model_name} knows no {name}",
                "remove the line",
            )
        processor.chat_template = _told(processor.chat_template, name, value)
    if plan.chat_template_kwargs or not _knows(published, THINKING) or asks_as_written(processor):
        return
    processor.chat_template = _told(published, THINKING, False)
    if not asks_as_written(processor):
        processor.chat_template = published


def _knows(template: str | dict[str, str], name: str) -> bool:
    return re.search(rf"\b{name}\b", str(template)) is not None


def _told(template: str | dict[str, str], name: str, value: bool) -> str | dict[str, str]:
    """Return the template with another default."""
    if isinstance(template, dict):
        return {key: _told(one, name, value) for key, one in template.items()}
    return TOLD.format(name=name, value=str(value).lower()) + template


def template_notes(processor: ProcessorMixin, plan: RunPlan) -> list[str]:
    """Return what people must know of how the model is asked."""
    if not processor.chat_template:
        return []
    notes = []
    is_chosen = str(processor.chat_template).startswith(TOLD.format(name=THINKING, value="false"))
    if is_chosen and not plan.chat_template_kwargs:
        notes.append(
            f"data.chat_template_kwargs.{THINKING} = false: the chat template would ask for a thought, and rows have "
            "none; the template saved with the run has the same default"
        )
    if (ours := family_of(plan).chat_template) and str(processor.chat_template).endswith(ours):
        notes.append(
            "the chat template is vlmtune's: the published one of such models puts no end token after an answer, so a "
            "tuned model would never stop; it is saved with the run"
        )
    if any(end in ask_and_answer(processor)[1] for end in THOUGHT_ENDS):
        notes.append(
            "this model is asked for a thought first: rows without one teach it an empty one, as its chat template "
            "writes them; `evaluate` and `generate` show what follows"
        )
    return notes


def apply_settings(processor: ProcessorMixin, settings: dict[str, Any]) -> None:
    """Set attributes of a processor, or of its parts where a name has a dot."""
    for name, value in settings.items():
        owner, _, attribute = name.rpartition(".")
        setattr(attrgetter(owner)(processor) if owner else processor, attribute, value)


def image_token_id(processor: ProcessorMixin) -> int:
    """Return the id of the token that stands for a piece of an image."""
    for owner in (processor.tokenizer, processor):  # Gemma 3's processor calls the mark before an image so
        if (own := getattr(owner, "image_token_id", None)) is not None:
            return own
    return processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))


def image_marks(processor: ProcessorMixin) -> tuple[str, ...]:
    """Return the strings by which the model knows images and other media: no text may hold them."""
    if marks := getattr(processor, "image_marks", ()):
        return tuple(marks)
    named = processor.tokenizer.special_tokens_map
    tokens = [named.get(name) for name in MEDIA_TOKENS]
    tokens += [getattr(processor, name, None) for name in MEDIA_TOKENS]
    tokens.append(processor.tokenizer.convert_ids_to_tokens(image_token_id(processor)))
    return tuple(dict.fromkeys(str(token) for token in tokens if token))


def _check_image_token(processor: ProcessorMixin, model: ModelFacts, plan: RunPlan) -> None:
    """Raise when the image token is none of the model's: libraries put the image nowhere then, or read beyond a table.

    An id that config.json leaves out is not checked: the library has defaults that fit the published models.
    """
    token_id = image_token_id(processor)
    if token_id is None:
        raise VlmtuneError(
            f"{plan.model}: its tokenizer has no image token {processor.image_token}", "download the model again"
        )
    if token_id >= model.vocabulary:
        raise VlmtuneError(
            f"{plan.model}: the image token {processor.image_token} has the id {token_id}, "
            f"but the model has embeddings for {model.vocabulary} tokens",
            "its files are of different ages: download all of them again, in their newest revision",
        )
    named = [model.config.get(key) for key in ("image_token_id", "image_token_index")]
    expected = next((token for token in named if token is not None), token_id)
    if token_id != expected:
        raise VlmtuneError(
            f"{plan.model}: the image token {processor.image_token} has the id {token_id} in the tokenizer, "
            f"{expected} in config.json",
            "its files do not fit together: download all of them again",
        )


def special_token_ids(processor: ProcessorMixin) -> set[int]:
    """Return the ids of tokens that mark structure, such as the end of a turn; they never come from plain text."""
    tokenizer = processor.tokenizer
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def plain_ids(processor: ProcessorMixin, text: str) -> list[int]:
    """Return the tokens of a text as it stands, without any that the tokenizer puts before or behind."""
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _rendered(processor: ProcessorMixin, messages: list[dict], *, ask: bool = False) -> str:
    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, *REFUSALS) as error:
        raise VlmtuneError(
            f"the chat template of {processor.tokenizer.name_or_path} cannot write a question and its answer: {error}",
            "download chat_template.jinja, or the file that holds the template, again",
        ) from None


def ask_and_answer(processor: ProcessorMixin) -> tuple[str, str]:
    """Return what the chat template makes of a question, and what it writes between that and its answer."""
    prompt, row = _rendered(processor, PROBE[:1], ask=True), _rendered(processor, PROBE)
    if not row.startswith(prompt):
        return prompt, ""
    return prompt, row[len(prompt) :].partition(PROBE[1]["content"][0]["text"])[0]


def asks_as_written(processor: ProcessorMixin) -> bool:
    """Return whether the tokens of a question are the first tokens of the row with its answer."""
    prompt, row = ask_and_answer(processor)[0], _rendered(processor, PROBE)
    ids = plain_ids(processor, prompt)
    return row.startswith(prompt) and plain_ids(processor, row)[: len(ids)] == ids


def turn_end_id(processor: ProcessorMixin) -> int | None:
    """Return the special token that the chat template puts after an answer, or None when it puts none."""
    if not processor.chat_template:
        return None
    tail = _rendered(processor, PROBE).rpartition("answer")[2]
    special = special_token_ids(processor)
    ends = [token for token in processor.tokenizer(tail, add_special_tokens=False)["input_ids"] if token in special]
    return ends[0] if ends else None
