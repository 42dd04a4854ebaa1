"""What the card did while it was profiled.

Taken from the profiler's own records: of half a million of them its `events()` makes objects, which takes minutes.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch.profiler import profile

NOT_KERNELS = ("Memcpy", "Memset")


class Span(NamedTuple):
    """Something that ran on the card."""

    start_ns: int
    end_ns: int
    name: str


def on_card(profiler: profile) -> list[Span]:
    """Return all that ran while the profiler did, in its order."""
    events = profiler.profiler.kineto_results.events()
    return sorted(Span(e.start_ns(), e.end_ns(), e.name()) for e in events if e.device_type().name == "CUDA")


def kernels_of(spans: Iterable[Span]) -> list[Span]:
    """Return those that compute: neither copies nor fills."""
    return [span for span in spans if not span.name.startswith(NOT_KERNELS)]


def seconds_of(spans: Iterable[Span]) -> float:
    """Return how long they ran in all, side by side counted twice."""
    return sum(span.end_ns - span.start_ns for span in spans) / 1e9


def seconds_of_both(some: list[Span], others: list[Span]) -> float:
    """Return how long one of `some` and one of `others` ran at once; both are in their order."""
    shared_ns, place, busy = 0, 0, _joined(others)
    for span in _joined(some):
        while place < len(busy) and busy[place].end_ns <= span.start_ns:
            place += 1
        for other in busy[place:]:
            if other.start_ns >= span.end_ns:
                break
            shared_ns += min(span.end_ns, other.end_ns) - max(span.start_ns, other.start_ns)
    return shared_ns / 1e9


def _joined(spans: list[Span]) -> list[Span]:
    """Return when anything ran: spans that do not overlap."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start_ns <= joined[-1].end_ns:
            joined[-1] = joined[-1]._replace(end_ns=max(span.end_ns, joined[-1].end_ns))
        else:
            joined.append(span)
    return joined
