"""qwen.tiktoken → fast tokenizer, without the tiktoken package.

The file lists byte strings by rank. A byte-pair vocabulary needs the merges too: the last merge that makes a token is
found by merging its bytes with the ranks below its own, which leaves two parts.
"""

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmtune.errors import VlmtuneError
from vlmtune.reading import JSON_BYTES, read_regular

FILE_NAME = "qwen.tiktoken"
MODEL_MAX_LENGTH = 8192
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
GROUNDING = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE = ("<img>", "</img>", "<imgpad>")


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the byte strings of a tiktoken file and their ids.

    Raises:
        VlmtuneError: the file is damaged.
    """
    ranks = {}
    try:
        for line in read_regular(path, JSON_BYTES).splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        raise VlmtuneError(f"{path} is damaged", "download the file again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise VlmtuneError(f"{path} is cut off or damaged: {len(ranks)} tokens", "download the file again")
    return ranks


def build_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkout's qwen.tiktoken.

    Special strings in a text are always taken as special tokens, as in the original. Grounding marks are not called
    special: decoding keeps them, whatever it skips.
    """
    return wrap_tokenizer(byte_level_bpe(read_ranks(path)))


def byte_level_bpe(ranks: dict[bytes, int]) -> Tokenizer:
    """Return the tokenizer without its special tokens."""
    spelling = _spelling()
    vocabulary = {_spell(token, spelling): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = _merged(token, ranks) if len(token) > 1 else ()
        if len(parts) == 2:
            merges.append((_spell(parts[0], spelling), _spell(parts[1], spelling)))
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges))


def wrap_tokenizer(core: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with Qwen-VL's way of splitting text and its special tokens after all others."""
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_tokens(
        [
            AddedToken(token, normalized=False, special=token not in GROUNDING)
            for token in (*CONTROL, *GROUNDING, *IMAGE)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=CONTROL[0],
        pad_token=CONTROL[0],
        model_max_length=MODEL_MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _merged(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the parts of a token after all merges that rank before it."""
    parts = [bytes([byte]) for byte in token]
    limit = ranks[token]
    while len(parts) > 2:
        rank, index = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _spelling() -> dict[int, str]:
    """Return the printable character by which byte-level vocabularies write each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _spell(token: bytes, spelling: dict[int, str]) -> str:
    return "".join(spelling[byte] for byte in token)
