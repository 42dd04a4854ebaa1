"""Held-out rows of a run that is estimated: those whose losses need most memory, and those that are asked."""

from collections.abc import Callable

import numpy as np

from vlmtune.data.encode import Encoded
from vlmtune.data.measure.lengths import refuse_too_long
from vlmtune.engine.answers.held_out import drawn_rows
from vlmtune.engine.evaluate import longest_answer_tokens
from vlmtune.estimate.answers import HeldOutRows
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.learned import learned_of, worth_in_evaluation
from vlmtune.estimate.simulate.steps import Learned
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan


class HeldOut:
    """The rows that a plan evaluates and does not train on."""

    def __init__(self, plan: RunPlan, source: ModelSource, given: GivenRows) -> None:
        self._plan, self._facts, self._given = plan, source.facts(plan.model_name), given
        self.lengths = given.lengths(plan, source, held_out=True)
        refuse_too_long(self.lengths, plan)
        self.rows = given.dataset(plan, held_out=True)

    def needing_most(self, trained: Learned) -> list[Encoded]:
        """Return the rows whose losses need most: the longest, and one with more labels than any that is trained on.

        Without gradients layers take memory one after the other, and logits behind them.
        """
        most_labels = self._plan.loss_chunk_tokens
        labels = np.minimum(learned_of(self.lengths, self._plan, self._facts).tokens, most_labels)
        longest = self.lengths.longest()
        with_logits = int((self.lengths.total + worth_in_evaluation(self._facts) * labels).argmax())
        is_learned = labels[with_logits] <= min(trained.tokens.max(), most_labels)
        return [self.rows[row] for row in ([longest] if is_learned else dict.fromkeys((longest, with_logits)))]

    def asked(self, served: Callable[[Encoded], Encoded]) -> HeldOutRows | None:
        """Return what is asked at each evaluation in training; None where nothing is.

        `served` gives a row features for its pixels, where the plan caches them.
        """
        if not self._plan.generate_rows:
            return None
        drawn = drawn_rows(self._plan, len(self.rows))
        longest = self.rows[max(drawn, key=self.lengths.total.__getitem__)]
        tokens = longest_answer_tokens(self._given.encoded(self._plan, held_out=True), drawn)
        return HeldOutRows(served(longest), tokens, len(drawn[:: self._plan.num_gpus]))
