"""Which optimizer steps of a run are simulated: rows in the order in which the trainer takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from vlmtune.data.batches.order import LengthGroupedOrder
from vlmtune.data.batches.packs import best_fit, filled_up
from vlmtune.data.collate import WHERE, Collate
from vlmtune.data.sources.takes import Takes
from vlmtune.estimate.simulate.simulation import Batch, Steps
from vlmtune.estimate.timing.predict import RunSizes, Sizes
from vlmtune.plan.length import num_steps, steps_per_epoch
from vlmtune.plan.types import RunPlan

ROWS_LOOKED_AT = 200_000
"""In long runs the steps after that many rows are not looked at: the longest rows have met each other by then."""
FEW_BATCHES = 12
"""A run of no more is simulated whole."""
FIRST_BATCHES = 24
"""So many are simulated in the order of the run where segments do not grow: what batches of other lengths leave cut up
adds up, in measured runs until the 8th to 20th batch."""
RowBatches = list[list[list[int]]]
"""Optimizer steps in their order, each with its micro-batches, each with the numbers of its rows."""


@dataclass(frozen=True)
class Learned:
    """Labelled tokens of rows: their logits take memory too, of which the tokens of a batch tell nothing."""

    tokens: np.ndarray
    """About as many as each row has, [N]: they choose what is simulated, and are not simulated."""
    worth: float
    """Tokens of a row that take as much memory as one with logits."""


def steps_of_run(plan: RunPlan, lengths: list[int], takes: Takes | None = None) -> RowBatches:
    """Return the optimizer steps of a run over rows of these lengths in tokens; of long runs those looked at.

    `takes` says which of the rows an epoch takes, where that is not each one once; here and below.
    """
    run, *_ = _runs(plan, lengths, takes)
    return run.all_of_it()


def telling_steps(
    plan: RunPlan,
    lengths: list[int],
    expandable_segments: bool,
    takes: Takes | None = None,
    learned: Learned | None = None,
) -> RowBatches:
    """Return the steps by which the memory of a whole run is known: a short run's own, else those that need most.

    The first; then, once the optimizer's states exist, the one with the longest batch, and the one with the longest
    batch behind another, which finds gradients there. Of each the first batch, the longest behind it and the last.
    Beside the longest batches those that need most with the logits of their labels, where these are others.
    What the other steps leave unused is taken from `fewest_steps`. Without expandable segments the run's first batches
    come before all that. Of several GPUs the one that needs most, then `fewest_steps` of all.
    """
    runs = _runs(plan, lengths, takes, learned)
    run = max(runs, key=_Run.most_behind)
    others = _fewest(runs) if len(runs) > 1 else []
    if len(run.sizes) <= (FEW_BATCHES if expandable_segments else FIRST_BATCHES):
        return run.all_of_it() + others
    behind = [np.where(run.is_first, 0, measure) for measure in run.measures]
    places = {0, *(_first_longest_later(measure, run.firsts) for measure in (*run.measures, *behind))}
    most = [run.thinned(place) for place in sorted(places)] + (others or _fewest([run]))
    return most if expandable_segments else [*run.beginning(FIRST_BATCHES), *most]


def fewest_steps(
    plan: RunPlan, lengths: list[int], takes: Takes | None = None, learned: Learned | None = None
) -> RowBatches:
    """Return one step, to be repeated once the optimizer's states exist, that needs what a whole run does.

    Its batches need not meet in the run, nor on one GPU: the longest, the longest that ever finds gradients there and
    the one that needs most then, and the shortest, which leaves the most unused of what the others took. Where a step
    has one batch, as many steps.
    """
    return _recorded_too(_fewest(_runs(plan, lengths, takes, learned)), plan)


def _recorded_too(steps: RowBatches, plan: RunPlan) -> RowBatches:
    """Return steps that stand for a run, twice where layers are CUDA graphs: the first batch runs without them."""
    return [*steps, *steps] if plan.cuda_graphs else steps


def _fewest(runs: "list[_Run]") -> RowBatches:
    measures = [np.concatenate(of_runs) for of_runs in zip(*(run.measures for run in runs), strict=True)]
    is_first = np.concatenate([run.is_first for run in runs])

    def batch(place: int) -> list[int]:
        for run in runs:
            if place < len(run.sizes):
                return run.batch(place)
            place -= len(run.sizes)
        raise IndexError(place)

    by_size = measures[0].argsort(kind="stable")
    shortest, middle, longest = (int(by_size[place]) for place in (0, len(by_size) // 2, -1))
    if is_first.all():
        # No batch finds gradients: what one leaves to the next is unused memory, by its length.
        most = [int(measure.argmax()) for measure in measures[1:]]
        return [[batch(place)] for place in dict.fromkeys((longest, *most))] + [[batch(middle)], [batch(shortest)]]
    accumulating = dict.fromkeys(int(np.where(is_first, -1, measure).argmax()) for measure in measures)
    return [[batch(place) for place in (longest, *accumulating, shortest)]]


def made_up_steps(plan: RunPlan, fast: bool) -> RowBatches:
    """Return steps of batches of equal rows, numbered from the longest on: any two rows may be as long as allowed."""
    if plan.passes_per_step == 1:
        steps = [[0], [2], [3]] if fast else [[0], [2], [3], [0]]
    else:
        steps = [[0, 0, 3]] if fast else [[0, 0, 2], [1, 2, 3], [0, 0, 3]]
    return [[[row] * plan.batch_size for row in step[: plan.passes_per_step]] for step in steps]


def made_up_packs(plan: RunPlan, lengths: list[int], fast: bool) -> RowBatches:
    """Return steps of packs of made-up rows of these lengths, the longest first: any rows may meet in a pack.

    Full of the longest rows, which leave the least room for others, and of the shortest, which bring the most images.
    """

    def full_of(row: int) -> list[int]:
        most = min(plan.rows_per_step, max(1, plan.pack_tokens // lengths[row]))
        left = plan.pack_tokens - most * lengths[row]
        beside = [other for other in (1, 2, 3) if row < other and lengths[other] <= left and most < plan.rows_per_step]
        return [row] * most + beside[:1]

    long, middle, short, one = full_of(0), full_of(1), full_of(3), [3]
    steps = [[long, short, one]] if fast else [[long, short, [2]], [middle, short, one], [long, long, one]]
    if len(short) >= plan.rows_per_step:  # one pack is a step
        steps = [[pack] for pack in ([long, short, one] if fast else [long, short, one, long])]
    return _recorded_too(steps, plan) if fast else steps


def collated(steps: RowBatches, rows: Sequence, collator: Collate) -> Steps:
    """Return the batches of tensors; `rows` gives an encoded row by its number and is asked once for each."""
    encoded = {number: rows[number] for number in {row for step in steps for batch in step for row in batch}}

    def tensors(batch: list[int]) -> Batch:
        made = collator([encoded[number] for number in batch])
        return {name: tensor for name, tensor in made.items() if name != WHERE}

    return [[tensors(batch) for batch in step] for step in steps]


def sizes_of(steps: RowBatches, plan: RunPlan, lengths: Sequence[int], image_tokens: Sequence[int]) -> Sizes:
    """Return how large the batches of steps are, one after the other, over rows of these lengths."""
    batches = [batch for step in steps for batch in step]
    tokens = [[lengths[row] for row in batch] for batch in batches]
    sizes = [filled_up(sum(batch), plan.pack_step) if plan.pack_tokens else len(batch) * max(batch) for batch in tokens]
    images = [sum(image_tokens[row] for row in batch) for batch in batches]
    return Sizes(np.array(sizes), np.array(images))


def sizes_of_run(plan: RunPlan, lengths: list[int], image_tokens: np.ndarray, takes: Takes | None = None) -> RunSizes:
    """Return how large the batches of a run are; of a long run those of the steps looked at."""
    run, *_ = _runs(plan, lengths, takes)  # of several GPUs the first, whose rows are the longest
    return RunSizes(run.all_sizes(image_tokens), len(run.firsts), num_steps(plan, _rows_an_epoch(lengths, takes)))


def _runs(plan: RunPlan, lengths: list[int], takes: Takes | None, learned: Learned | None = None) -> "list[_Run]":
    """Return what each GPU has of the optimizer steps that are looked at, the first one's first."""
    order = LengthGroupedOrder(lengths, plan.rows_per_step, plan.seed, plan.pack_tokens)
    order.takes = takes
    steps_an_epoch = steps_per_epoch(len(order), plan.batch_size, plan.gradient_accumulation_steps)
    # Two epochs at least: each begins with the longest row, and at the second the optimizer's states exist.
    looked_at = max(2 * steps_an_epoch, ROWS_LOOKED_AT // plan.rows_per_step)
    most_steps = min(num_steps(plan, len(order)), looked_at)
    columns = [_divided(_order(order, epoch), lengths, plan) for epoch in range(ceil(most_steps / steps_an_epoch))]
    for epoch, (_, step, _) in enumerate(columns):
        step += epoch * steps_an_epoch
    rows, step, batch = map(np.concatenate, zip(*columns, strict=True))
    rows, step, batch = (column[step < most_steps] for column in (rows, step, batch))
    on_gpu = [batch % plan.num_gpus == gpu for gpu in range(plan.num_gpus)]
    runs = [_Run(plan, lengths, rows[of_it], step[of_it], batch[of_it], learned) for of_it in on_gpu if of_it.any()]
    return runs


class _Run:
    """The optimizer steps of a run that are looked at, in arrays: rows become lists where a step is asked for.

    Of a million rows, lists of all batches took seconds an estimate, and a search makes many.
    """

    def __init__(
        self,
        plan: RunPlan,
        lengths: list[int],
        rows: np.ndarray,
        step: np.ndarray,
        batch: np.ndarray,
        learned: Learned | None,
    ) -> None:
        """`rows` are those of one GPU in their order, with the step and the batch that each is in."""
        self._rows = rows
        is_first_row = np.diff(step, prepend=-1) != 0
        starts = np.flatnonzero(is_first_row | (np.diff(batch, prepend=-1) != 0))
        self.is_first = is_first_row[starts]
        self.firsts = np.flatnonzero(self.is_first)
        """The first batch of each step, counted through the whole run."""
        self._packed = plan.pack_tokens > 0
        together = np.add if self._packed else np.maximum
        self.sizes = filled_up(together.reduceat(np.asarray(lengths)[rows], starts), plan.pack_step)
        """Tokens of each batch: those of its longest row, to which the others are padded, or of all rows of a pack."""
        self._starts = np.append(starts, len(rows))
        self.measures = [self.sizes]
        """By which the largest batch is found: its size, and if labels are known what it needs with their logits."""
        if learned:
            labels = np.minimum(np.add.reduceat(learned.tokens[rows], starts), plan.loss_chunk_tokens)
            num_rows = 1 if self._packed else np.diff(self._starts)
            self.measures.append(self.sizes * num_rows + learned.worth * labels)

    def most_behind(self) -> float:
        """Return what the batch needs that needs most where gradients lie; where none do, what any needs."""
        needed = self.measures[-1]
        return float((needed if self.is_first.all() else needed[~self.is_first]).max())

    def all_of_it(self) -> RowBatches:
        """Return every step."""
        return [self.step(number) for number in range(len(self.firsts))]

    def batch(self, number: int) -> list[int]:
        """Return the rows of a batch."""
        return self._rows[self._starts[number] : self._starts[number + 1]].tolist()

    def all_sizes(self, image_tokens: np.ndarray) -> Sizes:
        """Return how large all batches are, by the image tokens of each row."""
        ends = self._starts[: len(self.sizes) + 1]
        rows = 1 if self._packed else np.diff(ends)
        images = np.append(0, image_tokens[self._rows].cumsum())
        return Sizes(self.sizes * rows, np.diff(images[ends]))

    def step(self, number: int) -> list[list[int]]:
        """Return the batches of a step."""
        return [self.batch(batch) for batch in self._batches_of(number)]

    def beginning(self, num_batches: int) -> RowBatches:
        """Return the first steps with so many batches in all, the last of them cut short."""
        steps = range(int(np.searchsorted(self.firsts, num_batches)))
        return [[self.batch(batch) for batch in self._batches_of(step) if batch < num_batches] for step in steps]

    def thinned(self, number: int) -> list[list[int]]:
        """Return the batches of a step that need most."""
        batches = self._batches_of(number)
        # Once gradients are there they do not grow: of the batches that find them the longest needs most.
        accumulating = {max(batches[1:], key=measure.__getitem__, default=batches[0]) for measure in self.measures}
        return [self.batch(batch) for batch in sorted({batches[0], *accumulating, batches[-1]})]

    def _batches_of(self, step: int) -> range:
        end = self.firsts[step + 1] if step + 1 < len(self.firsts) else len(self.sizes)
        return range(int(self.firsts[step]), int(end))


def _rows_an_epoch(lengths: list[int], takes: Takes | None) -> int:
    return len(lengths) if takes is None else len(takes)


def _order(order: LengthGroupedOrder, epoch: int) -> np.ndarray:
    order.set_epoch(epoch)
    return np.fromiter(order, np.int64, len(order)) % len(order.lengths)


def _divided(rows: np.ndarray, lengths: list[int], plan: RunPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of an epoch as its batches have them, and the step and the batch of it that each is in."""
    places, size = np.arange(len(rows)), plan.rows_per_step
    step, batch = places // size, places % size // plan.batch_size
    if plan.pack_tokens:
        tokens = np.zeros(ceil(len(rows) / size) * size, np.int64)
        tokens[: len(rows)] = np.asarray(lengths)[rows]
        batch = best_fit(tokens.reshape(-1, size), plan.pack_tokens).ravel()[: len(rows)]
        by_pack = np.lexsort((batch, step))
        rows, batch = rows[by_pack], batch[by_pack]
    return rows, step, batch


def _first_longest_later(sizes: np.ndarray, firsts: np.ndarray) -> int:
    """Return the step behind the first whose longest batch is the longest; the first where there is no other."""
    longest = np.maximum.reduceat(sizes, firsts)[1:]
    return 1 + int(longest.argmax()) if len(longest) else 0
