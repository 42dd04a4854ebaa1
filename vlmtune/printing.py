"""What is shown to people: nothing in it can move the cursor, colour, or turn text round, wherever it comes from.

Names of files, columns, models and rows, templates and libraries' errors can hold anything. Everything may import this.
"""

import logging
import re
import sys
import warnings

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but tab and line end: escape sequences begin with one of them
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, or turning text round
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Joiners (U+200C, U+200D) stay: scripts and emoji need them."""


def printable(text: str) -> str:
    r"""Return text in which characters that would do something to the terminal, or hide, are written as `\x1b`."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def printable_json(text: str) -> str:
    r"""Return JSON in which such characters are written as `\u009b`: it means the same."""
    return _UNSAFE.sub(lambda found: _json_escaped(found[0]), text)


def say(text: str, *, err: bool = False) -> None:
    """Print a line, or several, for people."""
    print(printable(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_piece(text: str) -> None:
    """Print a piece of a text that goes on."""
    print(printable(text), end="", flush=True)


def say_json(text: str) -> None:
    """Print JSON for programs, in ASCII where standard output takes no more."""
    try:
        text.encode(sys.stdout.encoding or "ascii", "surrogatepass")
    except (UnicodeEncodeError, LookupError):
        text = re.sub(r"[^\x00-\x7f]", lambda found: _json_escaped(found[0]), text)
    print(printable_json(text), flush=True)


class _Record(logging.LogRecord):
    """What a library logs, its message `printable`."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


_in_words = warnings.formatwarning


def escape_libraries() -> None:
    """Let what libraries log, and warnings, be `printable` from now on, whoever shows it: names of files are in it."""
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = lambda *args, **kwargs: printable(_in_words(*args, **kwargs))


def _escaped(character: str) -> str:
    return repr(character)[1:-1] if not character.isprintable() else f"\\u{ord(character):04x}"


def _json_escaped(character: str) -> str:
    if character == "\n" or character == "\t":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
