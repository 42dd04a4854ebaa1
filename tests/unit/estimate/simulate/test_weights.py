"""What loading allocates on the way to the weights, and what it leaves."""

import pytest
from tiny import TINY
from tiny.rows import TinyModel, colour_rows, tiny_plan

from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.estimate.allocator.peaks import peaks_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.estimate.simulate.steps import collated
from vlmtune.estimate.simulate.weights import DYNAMIC_MAP_BYTES, load_checkpoint, quantise
from vlmtune.models.build import base_of, build_model
from vlmtune.models.streaming import stream_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyModel("llava", tmp_path_factory.mktemp("model"), layers=5)


def loaded(tiny: TinyModel, **sections):
    model = build_model(tiny_plan(tiny.folder, **sections), weights="none")
    recorder = Recorder()
    load_checkpoint(model, recorder)
    return model, recorder.log


def live(log) -> dict[int, int]:
    sizes = {}
    for handle, num_bytes in log.events:
        if handle > 0:
            sizes[handle] = num_bytes
        else:
            del sizes[-handle]
    return sizes


def allocated(log, operation: str) -> list[tuple[int, int]]:
    return [event for event in log.events if event[0] > 0 and log.tags[event[0]][1] == operation]


def most(log) -> int:
    sizes, held, peak = {}, 0, 0
    for handle, num_bytes in log.events:
        sizes[abs(handle)] = sizes.get(abs(handle), num_bytes)
        held += sizes[abs(handle)] * (1 if handle > 0 else -1)
        peak = max(peak, held)
    return peak


def test_one_block_for_all_weights_comes_first_and_goes(tiny):
    model, log = loaded(tiny, training={"method": "full"})
    total = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert log.events[:2] == [(1, total), (-1, 0)]


def test_what_stays_are_the_weights(tiny):
    model, log = loaded(tiny, training={"method": "full"})
    tensors = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    assert sorted(live(log).values()) == sorted(size for size in tensors.values() if size)


def test_weights_of_streamed_layers_pass_through_the_card(tiny):
    plain, plain_log = loaded(tiny)
    streamed, log = loaded(tiny, hardware={"streamed_layers": 4})
    stream = stream_of(base_of(streamed))
    sizes = [buffer.nbytes for buffer in stream.buffers]
    assert [event[1] for event in log.events[:2]] == sizes, "the buffers come first, and no block for all weights"
    streamed_bytes = sum(linear.weight.nbytes + linear.weight.quant_state.absmax.nbytes for linear in stream.places)
    stayed = sum(live(plain_log).values()) - streamed_bytes
    assert sum(live(log).values()) == stayed + sum(sizes)
    passing = [num_bytes for _, num_bytes in allocated(log, "quantize_4bit")]
    assert sorted(passing) == sorted(num_bytes for _, num_bytes in allocated(plain_log, "quantize_4bit"))
    assert most(plain_log) - most(log) == streamed_bytes - sum(sizes)


def test_packing_passes_each_weight_through_16_bits(tiny):
    model, log = loaded(tiny)
    packed = [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    assert packed
    raw = [num_bytes for handle, num_bytes in log.events if handle > 0 and log.tags[handle][1] == "to"]
    assert sorted(raw) == sorted(p.quant_state.shape.numel() * p.quant_state.dtype.itemsize for p in packed)
    assert list(live(log).values()).count(DYNAMIC_MAP_BYTES) >= 1


def test_constants_in_the_order_of_a_recorded_run(tiny):
    model, _ = loaded(tiny)
    weight = next(p for p in model.parameters() if getattr(p, "quant_state", None) is not None)
    recorder = Recorder()
    quantise(weight, "weights", recorder)
    blocks = weight.quant_state.absmax.numel()
    sizes = [num_bytes for handle, num_bytes in recorder.log.events if handle > 0]
    assert sizes == [4 * blocks, weight.numel(), 64, 64, 4, 4, 4 * blocks, 4 * -(-blocks // 256), blocks, 1024]
    left = live(recorder.log).values()
    assert sorted(left) == sorted([weight.numel(), 64, 4, 4 * -(-blocks // 256), blocks, 1024])


def test_adapters_are_made_wide_then_narrow_then_wide(tiny):
    model, log = loaded(tiny)
    adapters = [p for name, p in model.named_parameters() if ".lora_" in name]
    sizes = [num_bytes for handle, num_bytes in log.events if handle > 0 and log.tags[handle][1] == "lora"]
    assert sum(sizes) == sum(p.numel() for p in adapters) * (4 + 2 + 4)


def most_at_a_time(log, operation: str) -> int:
    """The most that blocks of an operation took together."""
    held, most = {}, 0
    for handle, num_bytes in log.events:
        if handle < 0:
            held.pop(-handle, None)
        elif handle and log.tags[handle][1] == operation:
            held[handle] = num_bytes
            most = max(most, sum(held.values()))
    return most


@pytest.mark.parametrize("name", sorted(TINY))
def test_one_weight_at_a_time_waits_in_16_bits_to_be_packed(name, models):
    _, log = loaded(models(name))
    sizes = [num_bytes for handle, num_bytes in log.events if handle > 0 and log.tags[handle][1] == "to"]
    assert len(sizes) > 1 and most_at_a_time(log, "to") == max(sizes)


IN_MAIN_MEMORY = {"offload_embeddings": True, "streamed_layers": 4}


@pytest.mark.parametrize(
    ("training", "hardware"),
    [
        ({"quantization": {"quantize_vision_tower": True}}, {}),
        ({"quantization": {"quantize_vision_tower": False}}, {}),
        ({}, IN_MAIN_MEMORY),
        ({"method": "lora"}, {}),
        ({"method": "full"}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", sorted(TINY))
def test_loading_never_takes_more_than_training(name, training, hardware, models, tmp_path):
    """On the card; of main memory there is another rule."""
    tiny = models(name, 4)
    if tiny.source.facts(name).shares_embedding:
        hardware = {key: value for key, value in hardware.items() if key != "offload_embeddings"}
    plan = tiny_plan(tiny.folder, training={"gradient_accumulation_steps": 1, **training}, hardware=hardware)
    rows = TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, plan)
    log = simulate(plan, Run(collated([[[0]], [[1]]], rows, Collator(tiny.processor))))
    peaks = peaks_of(log, expandable_segments=True)
    assert peaks.phases["load"].peak_allocated_bytes <= peaks.allocated_bytes
