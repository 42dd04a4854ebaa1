"""Labelled tokens of rows before any is encoded: beside the tokens, they say which rows need most memory."""

from typing import TYPE_CHECKING

from vlmtune.families.facts import ModelFacts
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from vlmtune.data.measure.lengths import Lengths
    from vlmtune.data.types import Sample
    from vlmtune.estimate.simulate.steps import Learned

ROWS_ASKED = 1000
"""Of so many rows, the longest, the answers are looked at: shorter ones are taken to have none."""
LOGIT_BYTES = 12
"""In the backward pass: log-softmax and two gradients, each in fp32."""
NUMBER_BYTES = 2
KEPT_BY_WHOLE_LAYER = 20
"""What a layer that does not recompute keeps for a token, in widths of the model."""


def learned_of(lengths: "Lengths", plan: RunPlan, model: ModelFacts) -> "Learned":
    """Return about how many labelled tokens rows have, by the characters of their answers among those of all turns."""
    import numpy as np

    from vlmtune.estimate.simulate.steps import Learned

    tokens = np.zeros(len(lengths))
    for row in np.sort((-lengths.total).argsort(kind="stable")[:ROWS_ASKED]).tolist():
        tokens[row] = lengths.text[row] * _learned_share(lengths.samples[row])
    return Learned(tokens, worth_of_label(plan, model))


def worth_of_label(plan: RunPlan, model: ModelFacts) -> float:
    """Return the tokens of a row that take as much memory as the logits of one label do."""
    recomputing = (plan.checkpointed_layers or model.num_layers) if plan.gradient_checkpointing else 0
    kept = (not plan.offload_activations) * recomputing + KEPT_BY_WHOLE_LAYER * (model.num_layers - recomputing)
    return worth_in_evaluation(model) / max(1, kept)


def worth_in_evaluation(model: ModelFacts) -> float:
    """Return the same where nothing is kept but the hidden states that logits are made of."""
    return LOGIT_BYTES * model.vocabulary / (NUMBER_BYTES * model.hidden_size)


def _learned_share(sample: "Sample") -> float:
    written = [(len(turn.text), turn.is_answer) for turn in sample.turns]
    return sum(length for length, is_answer in written if is_answer) / max(1, sum(length for length, _ in written))
