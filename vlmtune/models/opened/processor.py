"""A processor that a stranger wrote: its files are looked at, then tried behind limits, then opened.

A tokenizer may write a gigabyte for a letter, a chat template loop for ever or call itself: libraries end the process.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

from vlmtune.errors import VlmtuneError
from vlmtune.files import file_sha256
from vlmtune.models.opened.limited import limited, problem_of
from vlmtune.reading import check_file
from vlmtune.units import MIB

FILE_BYTES = 128 * MIB
"""The most that one of these files may have: the largest published tokenizers have 35 MB."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "qwen.tiktoken")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Where a chat template may be; the first that is there is used."""
OTHERS = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "config.json", "preprocessor_config.json")
OTHERS += ("video_preprocessor_config.json", "generation_config.json")
FOLDERS = (".", "qformer_tokenizer", "additional_chat_templates")
REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
"""What templates and processors raise on rows that they cannot take."""
LARGEST_TEXT = 1_000_000
"""Characters that a chat template may write for a few short turns; the longest published ones write 5,000."""
TOKENS_A_CHARACTER = 16
"""Beyond what any alphabet takes: four bytes, four times over."""
RUNS = "".join(letter * 2_000 + " " for letter in ("a", "A", "1", " ", "\n", "!", "é", "中", "\u3000", "ab", "😀"))
"""Patterns that go back and forth over a text do so where it repeats itself."""
QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "answer"}]}
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
TRIED = ([QUESTION], [QUESTION, ANSWER], [SYSTEM, QUESTION, ANSWER], [QUESTION, ANSWER] * 8)
TOOL = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}

_held: list[ProcessorMixin] = []


def open_processor(folder: Path, class_name: str = "AutoProcessor") -> ProcessorMixin:
    """Return tokenizer, image processor and chat template of a model's folder; none of its code is run.

    Raises:
        VlmtuneError: a file is missing, damaged, or takes more time or memory than any that was published.
    """
    _try(folder, class_name, _identity(folder))
    return _open(folder, class_name)


def _open(folder: Path, class_name: str) -> ProcessorMixin:
    return getattr(transformers, class_name).from_pretrained(folder, trust_remote_code=False)


def _identity(folder: Path) -> str:
    """Return a digest of the files that decide what a processor does; raise for those that are no files."""
    digest = hashlib.sha256()
    for path in (folder / inner / name for inner in FOLDERS for name in _names(folder / inner)):
        check_file(path, FILE_BYTES)
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _names(folder: Path) -> list[str]:
    """Return which of the files are there, broken links among them."""
    names = (*TOKENIZERS, *TEMPLATES, *OTHERS)
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in there if name in names or name.endswith(".jinja"))


@cache
def _try(folder: Path, class_name: str, identity: str) -> None:
    """Raise where a processor cannot be opened, or where it takes more than it may; the same files are tried once."""
    with limited() as process:
        if problem := problem_of(process.submit(_hold, folder, class_name)):
            name, what = _first_broken(folder) or ("", problem)
            raise VlmtuneError(
                f"the processor of {folder} cannot be loaded: {f'{name}: ' if name else ''}{what}",
                "the folder needs the tokenizer and preprocessor files of the model too, as they were published",
            )
        if problem := problem_of(process.submit(_render)):
            raise _refused(folder, TEMPLATES, f"the chat template cannot be used: {problem}")
        if problem := problem_of(process.submit(_read)):
            raise _refused(folder, TOKENIZERS, f"the tokenizer cannot be used: {problem}")
