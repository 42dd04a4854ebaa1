"""The fast tokenizer made from qwen.tiktoken gives the published ids, and texts come back."""

import base64
import unicodedata

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from vlmtune.errors import VlmtuneError
from vlmtune.models.qwen_vl.tokenizer import CONTROL, GROUNDING, IMAGE, WORDS, build_tokenizer, read_ranks

MARKS = (*GROUNDING, *IMAGE, "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>", "<|extra_204|>")


def known_to_all(character):
    """Whether every library's table has the character: newer ones call letters what older ones do not know.

    The tokenizer's expressions lack letters of regex's table, its normalizer accents of Python's, which are of
    Unicode 10. Python keeps one old table, of 3.2: what is in it is normalized alike by all that came later.
    """
    return unicodedata.ucd_3_2_0.category(character) != "Cn"


KNOWN = st.characters(exclude_categories=("Cs", "Cn")).filter(known_to_all)
PIECES = st.one_of(st.text(KNOWN), st.sampled_from(MARKS), st.text("aeinst 's\n\t0189.,()<>|我们café🙂🏽"))
RUNS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def ranks(tiktoken_file):
    return read_ranks(tiktoken_file)


def plain_ids(text, ranks, special):
    """Byte-pair encoding by ranks alone: the published algorithm, slow and without merges."""
    ids = []
    for piece in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
        if piece in special:
            ids.append(special[piece])
            continue
        for word in regex.findall(WORDS, unicodedata.normalize("NFC", piece)):
            parts = [bytes([byte]) for byte in word.encode()]
            while len(parts) > 1:
                rank, at = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
                if rank == 1 << 30:
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [ranks[part] for part in parts]
    return ids


def test_published_cases(qwen_tokenizer, cases):
    assert len(cases["texts"]) == 10
    for case in cases["texts"]:
        assert qwen_tokenizer(case["text"])["input_ids"] == case["ids"]
        assert qwen_tokenizer.decode(case["ids"]) == case["text"]
    assert {token: qwen_tokenizer.convert_tokens_to_ids(token) for token in cases["special"]} == cases["special"]


def test_sizes(qwen_tokenizer):
    assert len(qwen_tokenizer) == 151_860
    assert len(CONTROL) + len(GROUNDING) + len(IMAGE) == 217
    assert qwen_tokenizer.eos_token_id == qwen_tokenizer.pad_token_id == 151_643
    assert qwen_tokenizer.bos_token is None


@RUNS
@given(text=st.lists(PIECES, max_size=6).map("".join))
def test_texts_come_back(qwen_tokenizer, text):
    ids = qwen_tokenizer(text)["input_ids"]
    parts = regex.split("(" + "|".join(map(regex.escape, MARKS)) + ")", text)
    assert qwen_tokenizer.decode(ids) == "".join(unicodedata.normalize("NFC", part) for part in parts)


@RUNS
@given(text=st.lists(PIECES, max_size=6).map("".join))
def test_ids_are_those_of_the_ranks(qwen_tokenizer, ranks, text):
    special = {token: qwen_tokenizer.convert_tokens_to_ids(token) for token in MARKS}
    assert qwen_tokenizer(text)["input_ids"] == plain_ids(text, ranks, special)


def test_tables_agree_on_what_is_known_to_all():
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    known = "".join(filter(known_to_all, every))
    assert len(known) == 232_689
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        others = pre_tokenizers.Split(Regex(kind), behavior="removed").pre_tokenize_str(known)
        assert "".join(text for text, _ in others) == regex.sub(kind, "", known)
    # An accent above before and one below behind each: their order says which of them are known as accents too.
    accented = "\u0316a\u0301".join(known)
    assert normalizers.NFC().normalize_str(accented) == unicodedata.normalize("NFC", accented)
    # `:A` is a word behind a letter, as which regex alone knows the first; Python alone knows the second as an accent.
    assert not known_to_all("\U000323b0") and not known_to_all("\u0898")


def test_grounding_marks_survive_what_decoding_skips(qwen_tokenizer):
    text = "<ref>a cat</ref><box>(1,2),(3,4)</box><quad>(1,2),(3,4),(5,6),(7,8)</quad>"
    ids = qwen_tokenizer(text + "<|im_end|>")["input_ids"]
    assert [ids[0], ids[-2]] == [151_851, 151_856]
    assert qwen_tokenizer.decode(ids, skip_special_tokens=True) == text


def test_ids_of_offsets(qwen_tokenizer):
    text = "naïve <ref>格子</ref>"
    output = qwen_tokenizer(text, return_offsets_mapping=True)
    assert "".join(text[start:end] for start, end in output["offset_mapping"]) == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"not a vocabulary\n" + data,
        lambda data: b"",
        lambda data: data.replace(base64.b64encode(b"A"), b"????", 1),
    ],
    ids=["cut off", "another file", "empty", "a damaged line"],
)
def test_a_damaged_file(tiktoken_file, tmp_path, damage):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(damage(tiktoken_file.read_bytes()))
    with pytest.raises(VlmtuneError, match="qwen.tiktoken is"):
        build_tokenizer(path)
