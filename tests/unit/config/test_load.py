"""Merging of layers, the source of each value, and every mistake in its own words."""

import textwrap
from pathlib import Path

import pytest

from vlmtune.config.keys import all_keys
from vlmtune.config.load import load_config
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.levers.batch import rows_per_step

GOOD = "model: {name: some/model}\ndata: {train_path: rows.jsonl}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that loads a config text as `run.yaml`, seen from its own folder."""
    monkeypatch.chdir(tmp_path)

    def _load(text: str | bytes, *overrides: str):
        content = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
        Path("run.yaml").write_bytes(content)
        return load_config(Path("run.yaml"), overrides)

    return _load


def problems_of(load, text, *overrides) -> list[tuple[str, str | None]]:
    """(message, hint) of every mistake in a config."""
    with pytest.raises(VlmtuneError) as caught:
        load(text, *overrides)
    return [(problem.message, problem.hint) for problem in caught.value.problems or (caught.value,)]


def test_later_layers_win_and_each_value_knows_its_source(load):
    text = """\
        preset: 12gb
        model:
          name: some/model
        data:
          train_path: rows.jsonl
        training:
          batch_size: 3
          lora:
            rank: 5
        """
    loaded = load(text, "training.lora.rank=7", "training.num_epochs=2")

    training = loaded.config.training
    assert (training.lora.rank, training.batch_size, training.lora.alpha, training.save_steps) == (7, 3, 32, 100)
    assert loaded.sources["training.lora.rank"] == "--set"
    assert loaded.sources["training.batch_size"] == "run.yaml:7"
    assert loaded.sources["training.lora.alpha"] == "preset 12gb"
    assert loaded.sources["training.save_steps"] == "default"
    assert list(loaded.sources) == [key.name for key in all_keys()] == list(loaded.values())
    assert loaded.values()["training.lora.rank"] == 7


def test_set_may_choose_the_preset_and_the_alias_names_the_guides_recipe(load):
    loaded = load(GOOD, "preset=ultra_low_memory")
    training, data = loaded.config.training, loaded.config.data
    assert loaded.sources["training.lora.rank"] == "preset 8gb"
    assert (training.method, training.lora.rank, training.lora.alpha) == ("qlora", 8, 16)
    assert (training.batch_size, rows_per_step(loaded.config)) == (1, 32)
    assert (data.max_length, data.image_size) == (512, 336)
    assert training.quantization.bnb_4bit_quant_type == "nf4" and training.quantization.bnb_4bit_use_double_quant
    assert loaded.config.hardware.gradient_checkpointing and loaded.config.hardware.mixed_precision == "auto"


def test_an_explicit_empty_value_takes_back_what_the_preset_gave(load):
    loaded = load("preset: 8gb\nmodel: {name: m}\ndata:\n  train_path: t\n  image_size:\n")
    assert loaded.config.data.image_size is None
    assert loaded.sources["data.image_size"] == "run.yaml:5"


def test_data_paths_start_at_the_config_file(load, tmp_path):
    loaded = load(GOOD)
    assert loaded.base_dir == Path(".")
    nested = tmp_path / "configs" / "run.yaml"
    nested.parent.mkdir()
    nested.write_text(GOOD)
    loaded = load_config(nested)
    assert loaded.config.data.train_path == "rows.jsonl"
    assert loaded.resolve_path("../rows.jsonl") == tmp_path / "rows.jsonl"
    assert loaded.resolve_path("/data/rows.jsonl") == Path("/data/rows.jsonl")
    assert loaded.resolve_path("~/rows.jsonl") == Path.home() / "rows.jsonl"


def test_scalars_follow_yaml_1_2(load):
    loaded = load(
        GOOD + "hardware: {mixed_precision: no}\n"
        "training: {learning_rate: 1e-4, num_epochs: 3, weight_decay: 5e-02, report_to: [tensorboard, wandb]}\n"
        'experiment_name: "2024"\n'
    )
    training = loaded.config.training
    assert loaded.config.hardware.mixed_precision == "no"
    assert (training.learning_rate, training.num_epochs, training.weight_decay) == (1e-4, 3.0, 0.05)
    assert training.report_to == ("tensorboard", "wandb")
    assert loaded.config.experiment_name == "2024"


def test_set_takes_text_for_text_keys_and_groups(load):
    loaded = load(
        GOOD, "experiment_name=2024", "model.revision=0012", "training.lora={rank: 3, alpha: 6}", "data.val_path="
    )
    assert (loaded.config.experiment_name, loaded.config.model.revision) == ("2024", "0012")
    assert (loaded.config.training.lora.rank, loaded.config.training.lora.alpha) == (3, 6)
    assert loaded.config.data.val_path is None


def test_a_group_with_nothing_in_it_is_fine(load):
    assert load(GOOD + "training:\n  lora:\n").config.training.lora.rank == 16


def test_unknown_keys_are_named_with_line_and_nearest_key(load):
    text = """\
        model: {name: m}
        data: {train_path: t}
        learning_rate: 1e-4
        lora:
          rank: 3
        training:
          lora:
            rnak: 8
            zzzzz: 1
          experiment_name: x
        training.seed: 3
        """
    assert problems_of(load, text) == [
        ("learning_rate is not a known key  (run.yaml:3)", "did you mean training.learning_rate?"),
        ("lora is not a known key  (run.yaml:4)", "did you mean training.lora?"),
        ("training.lora.rnak is not a known key  (run.yaml:8)", "did you mean training.lora.rank?"),
        (
            "training.lora.zzzzz is not a known key  (run.yaml:9)",
            "remove it; the keys of training.lora are rank, alpha, dropout, vision_tower",
        ),
        ("training.experiment_name is not a known key  (run.yaml:10)", "did you mean experiment_name?"),
        (
            "training.seed is not a known key  (run.yaml:11)",
            "write it in its group, or on the command line as --set training.seed=…",
        ),
    ]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lora_r", "that is `training.lora.rank` here"),
        ("cutoff_len", "that is `data.max_length` here"),
        ("per_device_train_batch_size", "that is `training.batch_size` here"),
        ("MAX_PIXELS", "that is `data.image_size` here (the longest side in pixels, not an area)"),
        ("bf16", "that is `hardware.mixed_precision: bf16` here"),
        ("quantization_bit", "that is `training.method: qlora` here (4 bits are its default)"),
        ("gradient_checkpointing", "did you mean hardware.gradient_checkpointing?"),
        ("trust_remote_code", "vlmtune never runs code from a model repository; remove the line"),
    ],
)
def test_other_tools_words_are_known(load, word, hint):
    assert problems_of(load, f"{GOOD}{word}: 1\n") == [(f"{word} is not a known key  (run.yaml:3)", hint)]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            'training: {batch_size: "1"}',
            'training.batch_size must be a whole number from 1 to 1000000, not the text "1"',
            "remove the quotes",
        ),
        (
            "training: {batch_size: 1.5}",
            "training.batch_size must be a whole number from 1 to 1000000, not 1.5",
            "Rows per forward pass. Default: 1",
        ),
        (
            "training: {batch_size: true}",
            "training.batch_size must be a whole number from 1 to 1000000, not true",
            "Rows per forward pass. Default: 1",
        ),
        (
            "training: {batch_size: }",
            "training.batch_size must be a whole number from 1 to 1000000, but it is empty",
            "give a value, or remove the line: the default is 1",
        ),
        (
            "training: {batch_size: {a: 1}}",
            "training.batch_size must be a whole number from 1 to 1000000, not a group of keys",
            "Rows per forward pass. Default: 1",
        ),
        (
            "training: {batch_size: [1]}",
            "training.batch_size must be a whole number from 1 to 1000000, not a list",
            "Rows per forward pass. Default: 1",
        ),
        (
            "training: {lora: {rank: 1025}}",
            "training.lora.rank must be a whole number from 1 to 1024, not 1025",
            "Rank r of every adapter. Default: 16",
        ),
        (
            "training: {learning_rate: .nan}",
            "training.learning_rate must be a number above 0, up to 1, not nan",
            "Peak learning rate. Default: 0.0002",
        ),
        (
            "training: {max_grad_norm: .inf}",
            "training.max_grad_norm must be a number above 0, not inf",
            "Gradients are scaled down to this norm. Default: 1.0",
        ),
        (
            "training: {method: qlorra}",
            "training.method must be one of qlora, lora, full, not qlorra",
            "did you mean qlora?",
        ),
        (
            "training: {report_to: wandb}",
            'training.report_to must be a list with any of tensorboard, wandb, not the text "wandb"',
            "write it as report_to: [wandb]",
        ),
        (
            "training: {report_to: [wandbb, tensorbord]}",
            "training.report_to must be a list with any of tensorboard, wandb, not wandbb",
            "write it as report_to: [wandb]",
        ),
        (
            "evaluation: {metrics: [exact, accuracy]}",
            "evaluation.metrics must be a list with any of exact, contains, cer, wer, anls, token_f1, json_valid, "
            "json_fields, iou, not accuracy",
            "write it as metrics: [exact]",
        ),
        (
            "hardware: {gradient_checkpointing: yes}",
            'hardware.gradient_checkpointing must be true or false, not the text "yes"',
            "write true",
        ),
        (
            "experiment_name: 12",
            "experiment_name must be text of letters, digits, '.', '_', '-', not 12",
            'put it in quotes: experiment_name: "12"',
        ),
        (
            "experiment_name: ../up",
            "experiment_name must be text of letters, digits, '.', '_', '-', not the text \"../up\"",
            "Name of the run folder inside `output_dir`: letters, digits, `.`, `_`, `-`. Default: run",
        ),
        (
            "training: qlora",
            'training must be a group of keys, not the text "qlora"',
            "put keys below it, indented: method, learning_rate, batch_size, gradient_accumulation_steps, packing, "
            "pack_tokens, num_epochs, max_steps, warmup_ratio, lr_scheduler_type, optim, weight_decay, max_grad_norm, "
            "seed, logging_steps, eval_steps, save_steps, save_minutes, save_total_limit, save_best_by, "
            "early_stopping_patience, report_to, freeze_vision_tower, freeze_projector",
        ),
        ("preset: 9gb", "preset 9gb is unknown", "did you mean 8gb? there are 6gb, 8gb, 12gb, 16gb, 24gb, 48gb"),
        ("preset: 8", "preset must be text, not 8", 'put it in quotes: preset: "8"'),
    ],
)
def test_wrong_values_say_what_was_given_and_what_is_allowed(load, line, message, hint):
    assert problems_of(load, f"{GOOD}{line}\n") == [(f"{message}  (run.yaml:3)", hint)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "training:\n  quantization:\n    load_in_4bit: false\n",
            "training.quantization.load_in_4bit: false contradicts training.method: qlora; use method: lora"
            "  (run.yaml:5)",
        ),
        (
            "training:\n  eval_steps: 5\n",
            "training.eval_steps: nothing to evaluate without data.val_path or data.val_fraction  (run.yaml:4)",
        ),
        (
            "training:\n  freeze_projector: false\n",
            "training.freeze_projector: method qlora keeps tower and projector frozen; "
            "use training.lora.vision_tower: true or method: full  (run.yaml:4)",
        ),
        (
            "training:\n  method: full\n  lora: {vision_tower: true}\n",
            "training.lora.vision_tower: method full has no adapters; set training.freeze_vision_tower: false"
            "  (run.yaml:5)",
        ),
    ],
)
def test_contradictions_name_the_key_and_its_line(load, lines, message):
    assert problems_of(load, GOOD + lines) == [(message, None)]


def test_two_contradictions_are_two_problems(load):
    text = GOOD + "training:\n  eval_steps: 5\n  quantization: {load_in_4bit: false}\n"
    assert [message.split(":")[0] for message, _ in problems_of(load, text)] == [
        "training.eval_steps",
        "training.quantization.load_in_4bit",
    ]


def test_missing_keys_come_with_the_line_to_add(load):
    assert problems_of(load, "experiment_name: x\n") == [
        ("model.name is missing  (run.yaml)", "under `model:` add the line `  name: Qwen/Qwen3-VL-2B-Instruct`"),
        ("data.train_path is missing  (run.yaml)", "under `data:` add the line `  train_path: train.jsonl`"),
    ]


def test_all_mistakes_come_at_once_in_the_order_of_the_file(load):
    text = """\
        preset: 9gb
        training:
          seed: -1
          seed: 2
          method: !!str qlora
          lora: {rnak: 8}
        """
    messages = [message for message, _ in problems_of(load, text, "training.batch_size=0", "nope=1")]
    assert messages == [
        "preset 9gb is unknown  (run.yaml:1)",
        "training.seed must be a whole number from 0 to below 4294967296, not -1  (run.yaml:3)",
        "training.seed is given twice, first on line 3  (run.yaml:4)",
        "the tag !!str is not allowed  (run.yaml:5)",
        "training.lora.rnak is not a known key  (run.yaml:6)",
        "nope is not a known key  (--set)",
        "model.name is missing  (run.yaml)",
        "data.train_path is missing  (run.yaml)",
        "training.batch_size must be a whole number from 1 to 1000000, not 0  (--set)",
    ]


def test_one_mistake_is_the_error_itself_and_many_are_counted(load):
    with pytest.raises(VlmtuneError) as one:
        load(GOOD + "nope: 1\n")
    assert one.value.message == "nope is not a known key  (run.yaml:3)"
    with pytest.raises(VlmtuneError) as many:
        load(GOOD + "nope: 1\nnah: 1\n")
    assert many.value.message == "2 problems in run.yaml"


def test_a_flood_of_mistakes_is_cut_off(load):
    with pytest.raises(VlmtuneError) as caught:
        load(GOOD + "".join(f"wrong{number}: 1\n" for number in range(5000)))
    assert caught.value.message == "more than 100 problems in run.yaml"
    assert len(caught.value.problems) == 100


@pytest.mark.parametrize("text", ["rank", "=3", "training..rank=3", "."])
def test_a_malformed_set_is_a_usage_error(load, text):
    with pytest.raises(VlmtuneError) as caught:
        load(GOOD, text)
    assert caught.value.message == f"--set {text} is not KEY=VALUE"
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize("value", ["[1", "*alias", "!!int 3", "&a 3", "{a: 1, a: 2}", "\x00"])
def test_a_set_value_is_as_restricted_as_the_file(load, value):
    with pytest.raises(VlmtuneError, match="has a value that is not plain YAML") as caught:
        load(GOOD, f"training.seed={value}")
    assert caught.value.code is ExitCode.USAGE
