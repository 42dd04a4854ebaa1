"""Metrics of texts. Each gives (amount, whole): the value of a row is amount / whole, that of many rows sum / sum."""

import re
import string
from collections import Counter
from unicodedata import normalize

Ratio = tuple[float, float]
ANLS_THRESHOLD = 0.5
"""At half of the characters wrong or more, an answer counts as another one."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(answer: str, expected: str) -> Ratio:
    """Whether the texts agree, but for blanks at their ends and for how accents are encoded.

    Many tokenizers compose accents, so that no model could write them otherwise.
    """
    return float(normalize("NFC", answer.strip()) == normalize("NFC", expected.strip())), 1.0


def contains(answer: str, expected: str) -> Ratio:
    """Whether the expected text is somewhere in the answer, capitals and amount of blanks aside."""
    return float(_folded(expected) in _folded(answer)), 1.0


def anls(answer: str, expected: str) -> Ratio:
    """1 - edits / characters of the longer text, capitals and amount of blanks aside; 0 below the threshold."""
    from rapidfuzz.distance import Levenshtein

    similarity = Levenshtein.normalized_similarity(_folded(answer), _folded(expected))
    return (similarity if similarity > ANLS_THRESHOLD else 0.0), 1.0


def cer(answer: str, expected: str) -> Ratio:
    """Character edits, and characters of the expected text."""
    import jiwer

    found = jiwer.process_characters(expected, answer)
    return _errors(found), found.hits + found.substitutions + found.deletions


def wer(answer: str, expected: str) -> Ratio:
    """Word edits, and words of the expected text."""
    import jiwer

    found = jiwer.process_words(expected, answer)
    return _errors(found), found.hits + found.substitutions + found.deletions


def token_f1(answer: str, expected: str) -> Ratio:
    """Harmonic mean of precision and recall of the words, as SQuAD counts them."""
    answered, wanted = _squad_words(answer), _squad_words(expected)
    if not answered or not wanted:
        return float(answered == wanted), 1.0
    shared = (Counter(answered) & Counter(wanted)).total()
    return 2 * shared / (len(answered) + len(wanted)), 1.0


def _errors(found) -> int:
    return found.substitutions + found.deletions + found.insertions


def _folded(text: str) -> str:
    return " ".join(normalize("NFC", text).lower().split())


def _squad_words(text: str) -> list[str]:
    """Return the words in small letters, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()
