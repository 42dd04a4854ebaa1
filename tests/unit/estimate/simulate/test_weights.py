"""What loading allocates on the way to the weights, and what it leaves."""

from types import SimpleNamespace

import pytest
import torch
from tiny import TINY
from tiny.packed import save_packed
from tiny.rows import TinyModel, colour_rows, tiny_plan

from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.estimate.allocator.peaks import peaks_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.estimate.simulate.steps import collated
from vlmtune.estimate.simulate.weights import DYNAMIC_MAP_BYTES, STATE_BYTES, load_checkpoint, loading_of, quantise
from vlmtune.models.build import base_of, build_model
from vlmtune.models.packed import packed_weights
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
    log = simulate(plan, Run(collated([[[0]]], rows, Collator(tiny.processor))))
    peaks = peaks_of(log, expandable_segments=True)
    assert peaks.phases["load"].peak_allocated_bytes <= peaks.allocated_bytes


def packed_load(tiny: TinyModel, folder, **bits):
    plan = tiny_plan(save_packed(tiny.folder, folder / "packed", **bits))
    model = build_model(plan, weights="none")
    recorder = Recorder()
    loading_of(plan)(model, recorder)
    return plan, model, recorder.log


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_base_in_4_bits_comes_as_its_files_hold_it(tiny, tmp_path, double_quant):
    """Each tensor of the files once, the JSON of each packed weight for a moment, and nothing in 16 bits on the way."""
    from safetensors.torch import load_file

    _, model, log = packed_load(tiny, tmp_path, double_quant=double_quant)
    files = load_file(tmp_path / "packed" / "model.safetensors")
    states = packed_weights(files)
    of_files = sorted(tensor.nbytes for name, tensor in files.items() if name not in states.values())
    taken = [(num_bytes, *log.tags[handle][:2]) for handle, num_bytes in log.events[2:] if handle > 0]
    loads = sorted(num_bytes for num_bytes, kind, how in taken if (kind, how) == ("weights", "load") and num_bytes)
    buffers = sorted(buffer.nbytes for buffer in base_of(model).buffers())
    assert loads == sorted(of_files + buffers)
    assert [entry for entry in taken if entry[1:] == ("load", "to")] == [(STATE_BYTES, "load", "to")] * len(states)
    assert all(len(files[name]) <= 512 for name in states.values()), "one block of the allocator each"
    offsets = [entry for entry in taken if entry[2] == "from_dict"]
    assert offsets == [(4, "weights", "from_dict")] * (len(states) if double_quant else 0)


def test_streamed_layers_of_it_pass_one_weight_after_the_other(tmp_path):
    deep = TinyModel("llava", tmp_path, layers=5)
    folder = save_packed(deep.folder, tmp_path / "packed")
    plans = [tiny_plan(source, hardware={"streamed_layers": 4}) for source in (folder, deep.folder)]
    models = [build_model(plan, weights="none") for plan in plans]
    recorders = [Recorder(), Recorder()]
    for plan, model, recorder in zip(plans, models, recorders, strict=True):
        loading_of(plan)(model, recorder)
    logs = [recorder.log for recorder in recorders]
    places = stream_of(base_of(models[0])).places
    largest = max(linear.weight.nbytes + linear.weight.quant_state.absmax.nbytes for linear in places)
    assert most_at_a_time(logs[0], "to") == largest + STATE_BYTES
    left = sorted(live(logs[1]).values())
    left.remove(DYNAMIC_MAP_BYTES)
    assert sorted(live(logs[0]).values()) == left


def test_what_stays_of_it_is_what_stays_of_a_base_that_was_quantised(tiny, tmp_path):
    kept_alive, quantised = loaded(tiny)
    _, model, log = packed_load(tiny, tmp_path)
    left = sorted(live(quantised).values())
    left.remove(DYNAMIC_MAP_BYTES)
    assert sorted(live(log).values()) == left


@pytest.mark.parametrize(
    ("config", "recast"),
    [
        ({"dtype": "bfloat16"}, True),
        ({"torch_dtype": "float32"}, False),
        ({"text_config": {"dtype": "float16"}}, True),
        ({"text_config": {"torch_dtype": "float32"}}, False),
        ({}, False),
    ],
)
def test_the_config_says_which_format_files_have_in_either_place(config, recast, monkeypatch):
    source = SimpleNamespace(config=config)
    monkeypatch.setattr("vlmtune.estimate.simulate.weights.open_model", lambda *args: source)
    plan = SimpleNamespace(prequantised=True, cache_quantized=False, model="", revision=None, base_dtype="fp32")
    assert loading_of(plan).keywords == {"recast": recast}


def test_files_of_another_format_are_there_twice_for_a_moment(tiny, tmp_path):
    _, model, log = packed_load(tiny, tmp_path, dtype=torch.bfloat16)
    plain = [
        tensor.nbytes
        for name, tensor in base_of(model).named_parameters()
        if tensor.is_floating_point() and name.endswith(".weight") and ".lora_" not in name
    ]
    again = [num_bytes for handle, num_bytes in log.events if handle > 0 and log.tags[handle][1] == "give_format"]
    assert sorted(again) == sorted(plain) and len(plain) >= 15
    _, other, same = packed_load(tiny, tmp_path)
    assert sorted(live(log).values()) == sorted(live(same).values())
    assert not [tag for tag in same.tags.values() if tag[1] == "give_format"]


@pytest.mark.parametrize("packed", [False, True], ids=["16-bit files", "4-bit files"])
def test_a_head_in_8_bits_comes_last_and_never_was_there_in_16(tiny, tmp_path, packed):
    sections = {"training": {"quantization": {"quantize_head": "8bit"}}}
    folder = save_packed(tiny.folder, tmp_path / "packed") if packed else tiny.folder
    plan, plain = tiny_plan(folder, **sections), tiny_plan(folder)
    logs = []
    for one in (plan, plain):
        model, recorder = build_model(one, weights="none"), Recorder()
        loading_of(one)(model, recorder)
        logs.append(recorder.log)
    head = base_of(build_model(plan, weights="none")).get_output_embeddings()
    sizes = [[(size, log.tags[handle][1]) for handle, size in log.events if handle > 0] for log in logs]
    without = [entry for entry in sizes[0] if entry[1] not in ("lora", "warm-up")]
    assert without[-2:] == [(head.weight.nbytes, "pack_head"), (head.scale.nbytes, "pack_head")]
    expected = [entry for entry in sizes[1] if entry[1] not in ("lora", "warm-up")]
    expected.remove((head.weight.nbytes * 4, "load"))  # the tiny model's numbers are fp32
    assert sorted(without[:-2]) == sorted(expected)
    warmed_up = [entry[0] for one in sizes for entry in one if entry[1] == "warm-up"]
    assert warmed_up[1] - warmed_up[0] == head.weight.nbytes * 4
