"""A recorded step appended once more, without being simulated again: steps of equal batches allocate the same."""

from vlmtune.estimate.simulate.record import Recorder


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
