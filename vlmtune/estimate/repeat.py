"""One batch simulated, the rest of two optimizer steps repeated from it: the same events in a quarter of the time.

Steps of equal batches allocate the same again, but for two things. Gradients of a step's second batch are added to
those of the first and freed at once, and what the first batch or the optimizer keeps (workspaces, states) is there
already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from vlmtune.estimate.record import Recorder

CLONES = ("aten.clone.default", "aten.new_empty_strided.default")
"""How autograd makes a parameter's gradient where it cannot keep the one that came."""


@dataclass
class StepCuts:
    """Where in the log the pieces of a recorded step begin."""

    batch: int = 0
    optimizer: int = 0
    end: int = 0
    accumulated: list[tuple[int, int]] = field(default_factory=list)
    """Index of the event before which a parameter's gradient was set, and the gradient's handle."""


@contextmanager
def gradients_noted(model: nn.Module, recorder: Recorder, cuts: StepCuts) -> Iterator[None]:
    """Note when each parameter gets its gradient."""

    def note(parameter: Tensor) -> None:
        cuts.accumulated.append((len(recorder.log.events), recorder.handle_of(parameter.grad)))

    hooks = [p.register_post_accumulate_grad_hook(note) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def repeat_step(recorder: Recorder, cuts: StepCuts, accumulates: bool) -> None:
    """Complete the recorded first step with its second batch, and add the second step.

    Args:
        cuts: of the last thing in the log, a step of which only the first batch was computed.
        accumulates: whether a step has more than one batch.
    """
    log = recorder.log
    batch = log.events[cuts.batch : cuts.optimizer]
    optimizer = log.events[cuts.optimizer : cuts.end]
    kept = _live([*batch, *optimizer])

    del log.events[cuts.optimizer :]
    if accumulates:
        _Repeated(recorder).add_to_gradients(batch, cuts, kept)
    log.events += optimizer

    log.begin("step 2")
    repeated = _Repeated(recorder)
    repeated.copy(batch, kept)
    if accumulates:
        _Repeated(recorder).add_to_gradients(batch, cuts, kept)
    repeated.copy(optimizer, kept)


class _Repeated:
    """Copies of events, with handles of their own."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.copies: dict[int, int] = {}

    def copy(self, events: list[tuple[int, int]], left_out: set[int]) -> None:
        """Append the events again, but for what is there already."""
        for event in events:
            self._one(event, left_out)

    def add_to_gradients(self, batch: list[tuple[int, int]], cuts: StepCuts, kept: set[int]) -> None:
        """Append a batch whose gradients are added to those that parameters have."""
        log = self.recorder.log
        gradients = {handle for _, handle in cuts.accumulated}
        cloned = {handle for handle in gradients if log.tags[handle][1] in CLONES}
        freed_at: dict[int, list[int]] = {}
        for index, handle in cuts.accumulated:
            freed_at.setdefault(index, []).append(handle)
        for index, event in enumerate(batch, cuts.batch):
            self._free(freed_at.get(index, []))
            self._one(event, kept - gradients | cloned)
        self._free(freed_at.get(cuts.optimizer, []))

    def _one(self, event: tuple[int, int], left_out: set[int]) -> None:
        handle, num_bytes = event
        if handle > 0 and handle not in left_out:
            self.copies[handle] = self.recorder.allocate_again(handle, num_bytes)
        elif handle < 0:
            self._free([-handle])

    def _free(self, handles: list[int]) -> None:
        for handle in handles:
            if handle in self.copies:
                self.recorder.free(self.copies.pop(handle))


def _live(events: list[tuple[int, int]]) -> set[int]:
    """Return what the events allocate and do not free."""
    live: set[int] = set()
    for handle, _ in events:
        if handle > 0:
            live.add(handle)
        else:
            live.discard(-handle)
    return live
