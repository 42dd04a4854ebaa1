"""The processes that share a model's layers."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Peers(NamedTuple):
    """The processes that share a model's layers, as one of them sees them."""

    number: int
    size: int
    gather: Callable[[Tensor, Tensor], None]
    """(place for all shares, own share) -> None: fills the place with everyone's, the first one's first."""
