"""What checkpoints keep of each process: where its random numbers are."""

from pathlib import Path

import torch

from vlmtune.engine.ranks import group

RANDOM_STATES = "random_states.pt"
"""One a process, where there are several; Trainer keeps that of the first."""
RandomState = dict[str, torch.Tensor]


def save_random_states(checkpoint: Path | None) -> None:
    """Write all processes' states into the first one's checkpoint; the others have none."""
    if group.size() > 1:
        states = group.gathered(_random_state())
        if checkpoint:
            torch.save(states, checkpoint / RANDOM_STATES)


def load_random_state(checkpoint: Path, seed: int) -> None:
    """Take this process's state back; one of which the checkpoint knows nothing begins anew."""
    if group.is_first():
        return
    file = checkpoint / RANDOM_STATES
    states: list[RandomState] = torch.load(file, weights_only=True) if file.is_file() else []
    if len(states) <= group.number():
        torch.manual_seed(seed + group.number())
        return
    state = states[group.number()]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _random_state() -> RandomState:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state
