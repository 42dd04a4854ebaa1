"""What records the launches of some work, to repeat them in one: a card, or on a CPU the work itself."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch

Replay = Callable[[], None]


class Card(Protocol):
    """What records and repeats."""

    def begin(self) -> None:
        """Give memory back that nothing holds: from now on the graphs have their own."""

    def recorded(self, work: Callable[[], None]) -> Replay:
        """Record what `work` launches, and return what launches it again; it has not run yet."""


class Cuda:
    """CUDA's graphs, of one pool."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()

    def begin(self) -> None:
        """Give cached memory back to the card."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def recorded(self, work: Callable[[], None]) -> Replay:
        """Record on a stream of its own; other threads, which fetch rows, may do what a recording may not."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # that it is cut short says less than why
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self.stream)
        return graph.replay


class Repeated:
    """Runs the work itself each time: for CPUs, whose tests compare what graphs compute."""

    def begin(self) -> None:
        """Nothing is cached."""

    def recorded(self, work: Callable[[], None]) -> Replay:
        """Return the work."""
        return work
