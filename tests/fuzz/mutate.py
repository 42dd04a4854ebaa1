"""Good files made bad: a few of their bytes, or values of their JSON, become others."""

import copy
import json
import random

BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\x1b[2J",
    b'"',
    b"\\",
    b"{",
    b"]",
    b"NaN",
    b"1e999",
    b"\xf0\x9f",
)
BYTES += (
    b"9" * 5_000,
    b"[" * 2_000,
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"!!python/object/apply:os.system ",
    b"\xc2\x85",
    b"-1",
)
VALUES = (None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1.5, -0.0, 3.4e38, 1e308, float("nan"), float("inf"))
VALUES += (
    "",
    "x",
    "\x00",
    "\ud800",
    "<image>",
    "../../etc/passwd",
    "/dev/zero",
    "\u202e",
    "1",
    "{{ x }}",
    "a" * 10_000,
)
VALUES += ([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, 2, 3, 4], [0.5] * 4, "[1, 2, 3, 4]", "(a+)+$")


def bytes_of(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(content) + 1), rng.randrange(20)
        way = rng.randrange(7)
        before, after = content[:place], content[place:]
        content = (
            before,
            before + after[length:],
            before + rng.choice(BYTES) + after,
            before + rng.choice(BYTES) + after[length:],
            before + bytes([rng.randrange(256)]) + after[1:],
            before + content[place : place + length] * rng.randrange(50) + after,
            before + rng.randbytes(length) + after[length:],
        )[way]
    return content


def value_of(value: object, rng: random.Random) -> object:
    """Return JSON with one to three of its values changed, removed, doubled, wrapped or given other names."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        owner, key = rng.choice(places)
        other, place = rng.choice(places)
        way = rng.randrange(6)
        if way == 0:
            del owner[key]
        elif way == 1:
            owner[key] = [owner[key]] * rng.randrange(4)
        elif way == 2:
            owner[key] = copy.deepcopy(other[place]) if place in _keys(other) else None
        elif way == 3 and isinstance(owner, dict):
            owner[rng.choice((f"{key}s", str(key).upper(), "", "\x1b[31m", "_" + str(key)))] = owner.pop(key)
        else:
            owner[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def json_of(value: object, rng: random.Random) -> bytes:
    """Return JSON text with other values, and now and then other bytes."""
    content = json.dumps(value_of(value, rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return bytes_of(content, rng) if rng.random() < 0.2 else content


def _places(value: object):
    for key in _keys(value):
        yield value, key
        yield from _places(value[key])


def _keys(value: object) -> list:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
