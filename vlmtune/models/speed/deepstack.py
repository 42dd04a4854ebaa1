"""Features that a tower gives to the first layers too (deepstack), added where images are without waiting for the card.

The library finds the places by a mask, twice a layer and again in the backward pass, and each time the processor waits
until the card has counted them: by the end of the step it has nothing left to hand over in advance. How many places
there are is known from the features, so nobody needs to count; and a sum needs no copy of what is added to.

Shapes: B batch rows, T tokens, H hidden size, N image tokens of the batch.
"""

import inspect

import torch
from torch import Tensor, nn

from vlmtune.compat.transformers import DEEPSTACK


def add_deep_features(model: nn.Module) -> None:
    """Let the language models of a base model that take such features add them so."""
    for module in model.modules():
        library = DEEPSTACK.read_or_none(module)
        if library and [*inspect.signature(library).parameters] == [*inspect.signature(_added).parameters]:
            DEEPSTACK.write(module, _added)


def _added(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
    """Return hidden states [B, T, H] with features [N, H] added where the mask [B, T] is true; names as in the library.

    The same numbers as the library's, and gradients equal to the bit.
    """
    places = visual_pos_masks.to(hidden_states.device).flatten()
    [index_N] = torch.nonzero_static(places, size=len(visual_embeds)).T
    flat = hidden_states.flatten(0, 1)
    return flat.index_add(0, index_N, visual_embeds.to(flat.device, flat.dtype)).view_as(hidden_states)
