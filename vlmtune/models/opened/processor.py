"""A processor that a stranger wrote: its files are looked at, then tried behind limits, then opened.

A tokenizer may write a gigabyte for a letter, a chat template loop for ever or call itself: libraries end the process.
"""

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import transformers
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, ProcessorMixin

from vlmtune.errors import VlmtuneError
from vlmtune.files import cache_folder, code_sha256, file_sha256, json_value
from vlmtune.models.opened.limited import limited, problem_of
from vlmtune.reading import check_regular, read_regular
from vlmtune.units import MIB

FILE_BYTES = 128 * MIB
"""The most that one of these files may have: the largest published tokenizers have 35 MB."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "qwen.tiktoken")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Where a chat template may be; the first that is there is used."""
OTHERS = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "config.json", "preprocessor_config.json")
OTHERS += ("video_preprocessor_config.json", "generation_config.json")
FOLDERS = (".", "qformer_tokenizer", "additional_chat_templates")
LIBRARIES = ("transformers", "tokenizers", "jinja2")
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
"""In the process behind limits."""
_written: list[str] = []
"""There, by the chat template."""
_passed: set[str] = set()
"""What need not be tried again in this process; in the cache lies what need not be in others."""


def open_processor(folder: Path, class_name: str = "AutoProcessor") -> ProcessorMixin:
    """Return tokenizer, image processor and chat template of a model's folder; none of its code is run.

    Raises:
        VlmtuneError: a file is missing, damaged, or takes more time or memory than any that was published.
    """
    tried = cache_folder() / "tried" / _identity(folder, class_name)
    if tried.name not in _passed and not tried.exists():
        _try(folder, class_name)
        with suppress(OSError):  # a cache that cannot be written: it is tried again in the next command
            tried.parent.mkdir(parents=True, exist_ok=True)
            tried.touch()
    _passed.add(tried.name)
    return _open(folder, class_name)


def _open(folder: Path, class_name: str) -> ProcessorMixin:
    return getattr(transformers, class_name).from_pretrained(folder, trust_remote_code=False)


def _identity(folder: Path, class_name: str) -> str:
    """Return a digest of all that decides what a processor does and how it is tried; raise for what is no file."""
    made_by = [class_name, code_sha256(Path(__file__).parent), *map(version, LIBRARIES)]
    digest = hashlib.sha256(" ".join(made_by).encode())
    for path in _files(folder):
        check_regular(path, FILE_BYTES)
        digest.update(f"{path.relative_to(folder)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    names = (*TOKENIZERS, *TEMPLATES, *OTHERS)
    there = (path for inner in FOLDERS if (folder / inner).is_dir() for path in (folder / inner).iterdir())
    return sorted(path for path in there if path.name in names or path.suffix == ".jinja")


def _try(folder: Path, class_name: str) -> None:
    """Raise where a processor cannot be opened, or takes more than it may."""
    with limited() as process:
        if problem := problem_of(process.submit(_hold, folder, class_name)):
            raise VlmtuneError(
                f"the processor of {folder} cannot be loaded: {_broken(folder) or problem}",
                "the folder needs the tokenizer and preprocessor files of the model too, as they were published",
            )
        if problem := problem_of(process.submit(_render)):
            raise _refused(folder, TEMPLATES, f"the chat template cannot be used: {problem}")
        if problem := problem_of(process.submit(_read)):
            raise _refused(folder, TOKENIZERS, f"the tokenizer cannot be used: {problem}")


def _refused(folder: Path, names: tuple[str, ...], what: str) -> VlmtuneError:
    file = next((folder / name for name in names if (folder / name).is_file()), folder)
    return VlmtuneError(f"{file}: {what}", "use the files that the model's makers published")


def _broken(folder: Path) -> str | None:
    """Return the first file that cannot be read by itself, and why."""
    with limited() as process:
        for path in _files(folder):
            if problem := problem_of(process.submit(_read_alone, path)):
                return f"{path.name}: {problem}"
    return None


def _read_alone(path: Path) -> None:
    if path.suffix == ".json":
        json_value(read_regular(path, FILE_BYTES))
    if path.name == "tokenizer.json":
        Tokenizer.from_file(str(path))
    elif path.name == "preprocessor_config.json":
        AutoImageProcessor.from_pretrained(path.parent, trust_remote_code=False)


def _hold(folder: Path, class_name: str) -> None:
    _held[:] = [_open(folder, class_name)]


def _render() -> None:
    """Write a few conversations; that a template refuses some of them is said when there are such rows."""
    [processor], given = _held, {"tokenize": False, "tools": [TOOL]}
    for turns in TRIED if processor.chat_template else ():
        for ask in (True, False):
            try:
                text = processor.apply_chat_template(turns, add_generation_prompt=ask, **given)
            except (TemplateError, *REFUSALS):
                continue
            if len(text) > LARGEST_TEXT:
                raise MemoryError
            _written.append(text)


def _read() -> None:
    """Tokenise what was written, and long runs."""
    [processor] = _held
    for tokenizer in (processor.tokenizer, getattr(processor, "qformer_tokenizer", None)):
        for text in (*_written, RUNS) if tokenizer else ():
            if len(tokenizer(text)["input_ids"]) > TOKENS_A_CHARACTER * (len(text) + TOKENS_A_CHARACTER):
                raise MemoryError
