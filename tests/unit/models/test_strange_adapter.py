"""An adapter of a stranger: what is in its weights is used, and nothing that its config asks for."""

import json
import shutil
import time

import pytest
import torch
from tiny.rows import tiny_plan

from vlmtune.engine.checkpoints import save_adapter
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import build_model, build_tuned

BOMB = "(([a-z_.0-9]+)+)+!"
ASKED = {
    "target_modules": BOMB,
    "exclude_modules": BOMB,
    "modules_to_save": [BOMB],
    "rank_pattern": {BOMB: 8},
    "alpha_pattern": {BOMB: 10**9},
    "layers_pattern": BOMB,
    "lora_alpha": 10**30,
    "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
    "peft_type": "IA3",
    "trainable_token_indices": [0],
    "target_parameters": [BOMB],
    "base_model_name_or_path": "evil/model",
}


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    """An adapter with numbers in it, and its plan."""
    plan = tiny_plan(models("qwen3_vl").folder, training={"method": "lora"})
    model = build_model(plan)
    for number, parameter in enumerate(one for one in model.parameters() if one.requires_grad):
        parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) * (number + 1)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, folder)
    return folder, plan, learned(model)


def learned(model) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("key", ASKED)
def test_what_the_config_asks_for_is_not_done(saved, tmp_path, key):
    folder, plan, expected = saved
    copy = shutil.copytree(folder, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, key: ASKED[key]}))
    started = time.perf_counter()
    found = learned(build_tuned(plan, str(copy)))
    assert time.perf_counter() - started < 20
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_pickle_beside_is_not_opened(saved, tmp_path):
    folder, plan, expected = saved
    copy = shutil.copytree(folder, tmp_path / "adapter")
    (copy / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert learned(build_tuned(plan, str(copy))).keys() == expected.keys()
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(VlmtuneError, match=r"adapter_model\.safetensors"):
        build_tuned(plan, str(copy))
    assert not (tmp_path / "ran").exists()
