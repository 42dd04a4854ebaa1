"""What is simulated once and repeated without being simulated again: a step of equal batches, and CUDA graphs."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from vlmtune.estimate.allocator.caching import EMPTY_CACHE, ENTER_POOL, LEAVE_POOL
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.timing.kernels import Kernels

ON_STREAM_OF_GRAPHS: ContextVar[bool] = ContextVar("on_stream_of_graphs", default=False)
"""Whether CUDA graphs are recorded now, on a stream of their own."""


def repeat_step(recorder: Recorder, start: int, end: int) -> None:
    """Append the events of a step, but for what it left behind: workspaces and the optimizer's states are there."""
    events = recorder.log.events[start:end]
    live: set[int] = set()
    for handle, _ in events:
        if handle > 0:
            live.add(handle)
        else:
            live.discard(-handle)
    copies: dict[int, int] = {}
    for handle, num_bytes in events:
        if handle > 0 and handle not in live:
            copies[handle] = recorder.allocate_again(handle, num_bytes)
        elif -handle in copies:
            recorder.free(copies.pop(-handle))


class SimulatedGraphs:
    """Stands for a card that records CUDA graphs (`models.graphs.recording.Card`): they have a pool of memory."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def begin(self) -> None:
        """Record that cached memory is given back."""
        self.recorder.log.events.append(EMPTY_CACHE)

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` allocates, in the pool; what it computes counts whenever it is repeated."""
        recorder, token = self.recorder, ON_STREAM_OF_GRAPHS.set(True)
        flops, before = recorder.log.flops, recorder.ledger.taken()
        recorder.log.events.append(ENTER_POOL)
        work()
        recorder.log.events.append(LEAVE_POOL)
        ON_STREAM_OF_GRAPHS.reset(token)
        kernels = recorder.ledger.taken().tokens
        recorder.ledger.goes_on(before)
        flops, recorder.log.flops = recorder.log.flops - flops, flops
        return partial(self._repeat, kernels, flops)

    def _repeat(self, kernels: Kernels, flops: int) -> None:
        self.recorder.ledger.repeat(kernels)
        self.recorder.log.flops += flops
