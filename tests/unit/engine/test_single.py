"""One process on one GPU, whatever the environment says; the GPUs are made up."""

import dataclasses
import os
from types import SimpleNamespace

import pytest
import torch
from transformers.training_args import ParallelMode

from vlmtune.engine.arguments import training_arguments
from vlmtune.engine.ranks import single
from vlmtune.engine.ranks.single import refuse_several_processes, stay_single
from vlmtune.engine.runtime import prepare_environment
from vlmtune.errors import VlmtuneError
from vlmtune.runs.folder import RunFolder

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment of its own for each test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def machine(monkeypatch):
    """A function that makes up a machine with so many GPUs; NVML may be missing, and then counts none."""

    def install(num_gpus, nvml=True, driver=True):
        monkeypatch.setattr(single, "visible_gpus", lambda: dict.fromkeys(range(num_gpus if nvml else 0)))
        monkeypatch.setattr(single, "has_driver", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=f"card {device}"))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    os.environ.pop(VISIBLE, None)
    return install


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_several_processes_are_refused(name, machine, monkeypatch):
    machine(1)
    os.environ[name] = "4"
    with pytest.raises(
        VlmtuneError, match=f"^{name}=4: this command is one process on one GPU; each of 4 would"
    ) as raised:
        stay_single()
    assert f"unset {name}" in raised.value.hint
    slept = []
    monkeypatch.setattr(single, "sleep", slept.append)
    for number, waits in (("0", 0), ("2", 1)):
        os.environ[single.NUM_PROCESSES[name]] = number
        with pytest.raises(VlmtuneError):
            refuse_several_processes()
        assert len(slept) == waits, "the first says it, and the launcher ends the others"
    for alone in ("1", "0", "", "many"):
        os.environ[name] = alone
        refuse_several_processes()


@pytest.mark.parametrize(
    "left", [("LOCAL_RANK",), ("ACCELERATE_USE_FSDP", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")]
)
def test_what_launchers_leave_is_removed_and_named(machine, left):
    machine(1)
    before = os.environ.copy()
    os.environ.update(dict.fromkeys(left, "1"))
    assert stay_single() == (f"not followed: {', '.join(left)}; vlmtune is one process, and its config decides",)
    assert os.environ == before and stay_single() == ()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", lambda arguments: arguments.mixed_precision),
        ("ACCELERATE_TORCH_DEVICE", "meta", lambda arguments: arguments.distributed_state.device),
        ("ACCELERATE_DEBUG_MODE", "true", lambda arguments: arguments.distributed_state.debug),
    ],
)
def test_accelerates_settings_reach_the_trainer_no_more(machine, models, folder, name, value, read):
    machine(0)
    ours = read(training_arguments(models("llava").plan, folder))
    os.environ[name] = value
    assert read(training_arguments(models("llava").plan, folder)) != ours, "or it is read no more"
    stay_single()
    assert read(training_arguments(models("llava").plan, folder)) == ours


@pytest.fixture
def plan(models):
    return dataclasses.replace(models("llava").plan, device="cuda")


def test_of_two_gpus_the_trainer_sees_one(machine, plan, folder):
    machine(2)
    arguments = training_arguments(plan, folder)
    assert (arguments.n_gpu, arguments.train_batch_size) == (2, 2 * plan.batch_size), "what the trainer would do"
    said = ("2 GPUs are visible, this process uses the first: card 0; CUDA_VISIBLE_DEVICES chooses another",)
    assert stay_single() == said
    arguments = training_arguments(plan, folder)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, plan.batch_size)
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL and torch.cuda.device_count() == 1


@pytest.mark.parametrize(
    ("visible", "left"), [(None, "0"), ("2,0", "2"), ("1", "1"), ("GPU-a,GPU-b", "GPU-a"), ("", ""), ("-1,0", "-1")]
)
def test_the_first_visible_gpu_stays(machine, visible, left):
    machine(3)
    if visible is not None:
        os.environ[VISIBLE] = visible
    stay_single()
    assert os.environ[VISIBLE] == left


def test_where_nobody_counts_the_gpus_one_stays_unsaid(machine):
    machine(2, nvml=False)
    assert (stay_single(), os.environ[VISIBLE]) == ((), "0")


def test_several_gpus_that_torch_cannot_use_are_not_said_to_be_used(machine, monkeypatch):
    machine(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stay_single() == ()


@pytest.mark.parametrize(("num_gpus", "driver"), [(1, True), (0, False)])
def test_where_there_is_no_choice_nothing_changes(machine, num_gpus, driver):
    machine(num_gpus, driver=driver)
    assert stay_single() == () and VISIBLE not in os.environ


def test_cards_that_nccl_could_not_pair_train_alone(machine, plan, folder, monkeypatch):
    """accelerate asks nvidia-smi for all cards of the machine, and refuses two RTX 40 on an older driver."""
    machine(1)
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        os.environ.pop(name, None)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: False)
    with pytest.raises(NotImplementedError, match="RTX 4000"):
        training_arguments(plan, folder)
    prepare_environment()
    assert training_arguments(plan, folder).n_gpu == 1


def test_nothing_is_reported_but_what_the_config_names(models, folder):
    os.environ.pop("DISABLE_KUBEFLOW_INTEGRATION", None)
    os.environ["KUBEFLOW_TRAINER_SERVER_URL"] = "https://kubeflow"
    assert training_arguments(models("llava").plan, folder).report_to == ["kubeflow"], "what the trainer would do"
    prepare_environment()
    assert training_arguments(models("llava").plan, folder).report_to == []


def test_no_tpu_is_taken():
    os.environ["USE_TORCH_XLA"] = "1"
    prepare_environment()
    assert os.environ["USE_TORCH_XLA"] == "0"
