import dataclasses
import json

import pytest

from vlmtune.hardware.machine import Machine
from vlmtune.hardware.main_memory import MainMemory
from vlmtune.hardware.sensors import GpuProcess, GpuReading
from vlmtune.units import GIB
from vlmtune.workflow.doctor import Diagnosis, check_machine

CARD = GpuReading(
    name="NVIDIA GeForce RTX 4060", total_bytes=8 * GIB, used_bytes=GIB // 4, temperature_c=45, slowdown_c=87,
    driver="580.95", cuda_version="13.0", processes=(),
)  # fmt: skip
MACHINE = Machine(
    python="3.12.1",
    versions={
        "python": "3.12.1", "vlmtune": "0.1.0", "torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.17.0",
        "peft": "0.20.0", "bitsandbytes": "0.50.0", "accelerate": "1.10.0",
    },
    windows={
        "python": ">=3.11", "torch": ">=2.11", "torchvision": "", "transformers": ">=5.17,<6", "peft": ">=0.20",
        "bitsandbytes": ">=0.50", "accelerate": ">=1.10",
    },
    probe={
        "torch": {"version": "2.11.0+cu130", "cuda": "13.0", "available": True},
        "cuda": {
            "name": CARD.name, "uuid": "a", "names": [CARD.name], "free_bytes": 7 * GIB, "total_bytes": 8 * GIB,
        },
        "torchvision": {"version": "0.26.0"},
        "bitsandbytes": {"device": "cuda"},
    },
    gpu=CARD,
    visible_devices=None,
    disk_free_bytes={"current folder": 200 * 10**9, "model cache": 300 * 10**9},
    main_memory=MainMemory(32 * GIB, 24 * GIB),
    shared_memory_bytes=8 * 10**9,
)  # fmt: skip
ON_CPU = dataclasses.replace(
    MACHINE,
    gpu=None,
    probe={
        **MACHINE.probe,
        "torch": {"version": "2.11.0+cu130", "cuda": "13.0", "available": False},
        "cuda": {},
        "bitsandbytes": {"device": "cpu"},
    },
)


def machine(base=MACHINE, versions=(), probe=(), **changes):
    return dataclasses.replace(
        base, versions={**base.versions, **dict(versions)}, probe={**base.probe, **dict(probe)}, **changes
    )


def complaints(found):
    return [check for check in check_machine(found) if check.state != "ok"]


def test_a_good_machine():
    assert [(check.name, check.found) for check in check_machine(MACHINE) if check.state == "ok"] == [
        ("python", "3.12.1 (>=3.11)"),
        ("torch", "2.11.0 (>=2.11)"),
        ("torchvision", "0.26.0"),
        ("transformers", "5.17.0 (>=5.17,<6)"),
        ("peft", "0.20.0 (>=0.20)"),
        ("bitsandbytes", "0.50.0 (>=0.50)"),
        ("accelerate", "1.10.0 (>=1.10)"),
        ("torch loads", "built for CUDA 13.0"),
        ("torchvision loads", "yes"),
        ("bitsandbytes works", "quantises to 4 bits on the card"),
        ("gpu", "NVIDIA GeForce RTX 4060, driver 580.95 (CUDA up to 13.0)"),
        ("gpu memory", "7.8 of 8.0 GiB free"),
        ("gpu temperature", "45 °C, slows down from 87 °C"),
        ("disk, current folder", "200 GB free"),
        ("disk, model cache", "300 GB free"),
        ("main memory", "24.0 of 32.0 GiB available"),
        ("shared memory", "8,000 MB free in /dev/shm"),
    ]
    assert complaints(MACHINE) == []


def test_no_card_is_a_warning():
    remedy = "training runs on the CPU, good for smoke runs only"
    assert complaints(ON_CPU) == [Diagnosis("gpu", "warning", "none found", remedy)]
    assert complaints(machine(ON_CPU, visible_devices="")) == [
        Diagnosis("gpu", "warning", "none visible (CUDA_VISIBLE_DEVICES=)", remedy)
    ]


def test_a_card_without_nvml_is_fine():
    checks = check_machine(machine(gpu=None))
    assert [check.found for check in checks if check.name == "gpu"] == [
        "NVIDIA GeForce RTX 4060, 7.0 of 8.0 GiB free; no NVML, so no temperature and no list of processes"
    ]


@pytest.mark.parametrize("gpu", (CARD, None))
def test_of_several_cards_the_one_that_is_used_is_named(gpu):
    names = [CARD.name, "NVIDIA GeForce GT 710", "NVIDIA GeForce RTX 3060"]
    several = machine(gpu=gpu, probe={"cuda": cuda_of(names)})
    assert [(check.state, check.found) for check in check_machine(several) if check.name == "several gpus"] == [
        (
            "ok",
            "3 visible, used is the first: NVIDIA GeForce RTX 4060; not used: NVIDIA GeForce GT 710, "
            "NVIDIA GeForce RTX 3060; CUDA_VISIBLE_DEVICES chooses another, hardware.num_gpus takes several",
        )
    ]
    assert complaints(several) == []


def cuda_of(names, reach=True, nccl="2.27.7"):
    """What torch says of several cards."""
    more = {"sizes": [8 * GIB] * len(names), "reach": [reach] * (len(names) - 1), "nccl": nccl}
    return {**MACHINE.probe["cuda"], "names": names, **more}


@pytest.mark.parametrize(
    ("links", "reach", "said"),
    [
        (("NVLink", "NVLink"), True, "NVLink; P2P; NCCL 2.27.7"),
        (("PCIe, switches between them", "NVLink"), True, "PCIe, switches between them, NVLink; P2P; NCCL 2.27.7"),
        ((), False, "what links them is not known; no P2P, so they speak through main memory; NCCL 2.27.7"),
    ],
)
def test_what_links_several_cards_is_said(links, reach, said):
    found = check_machine(machine(links=links, probe={"cuda": cuda_of([CARD.name] * 3, reach)}))
    assert [check.found for check in found if check.name == "gpus together"] == [said]
    assert [check for check in found if check.name == "gpus differ"] == []


def test_different_cards_are_said():
    found = check_machine(machine(probe={"cuda": cuda_of([CARD.name, "NVIDIA GeForce RTX 3060"])}))
    assert [check.found for check in found if check.name == "gpus differ"] == [
        "NVIDIA GeForce RTX 3060, 8.0 GiB beside NVIDIA GeForce RTX 4060, 8.0 GiB: "
        "together they go at the pace of the slowest, and have the room of the smallest"
    ]


def test_several_cards_without_nccl_train_alone():
    (found,) = complaints(machine(probe={"cuda": cuda_of([CARD.name] * 2, nccl=None)}))
    assert found.found == "this torch has no NCCL, so one trains alone"


@pytest.mark.parametrize("version", ("5.16.9", "6.0.0", "6.0.0rc1"))
def test_a_version_outside_its_window_is_a_problem(version):
    assert complaints(machine(versions={"transformers": version})) == [
        Diagnosis(
            "transformers", "problem", f"{version}, supported is >=5.17,<6", 'pip install "transformers>=5.17,<6"'
        )
    ]


def test_builds_and_prereleases_count_as_their_version():
    assert complaints(machine(versions={"torch": "2.12.0+cu130", "peft": "0.21.0.dev0"})) == []


def test_an_old_python_is_a_problem():
    assert complaints(machine(python="3.10.4")) == [
        Diagnosis("python", "problem", "3.10.4, supported is >=3.11", "use Python >=3.11")
    ]


def test_a_missing_library_is_one_problem():
    absent = {"torchvision": {"error": "ModuleNotFoundError: No module named 'torchvision'"}}
    assert complaints(machine(versions={"torchvision": "not installed"}, probe=absent)) == [
        Diagnosis("torchvision", "problem", "not installed", 'pip install "torchvision"')
    ]


def test_a_missing_torch_is_one_problem():
    failed = {part: {"error": "ModuleNotFoundError: No module named 'torch'"} for part in MACHINE.probe}
    assert complaints(machine(ON_CPU, versions={"torch": "not installed"}, probe=failed))[0] == Diagnosis(
        "torch", "problem", "not installed", 'pip install "torch>=2.11"'
    )
    assert len(complaints(machine(versions={"torch": "not installed"}, probe=failed))) == 1


def test_versions_are_shown_when_vlmtune_is_not_installed():
    checks = complaints(machine(windows={}))
    assert checks[1] == Diagnosis(
        "torch", "warning", "2.11.0, supported versions unknown", "install vlmtune itself: pip install -e ."
    )
    assert {check.state for check in checks} == {"warning"}


def test_a_torch_that_crashes_is_one_problem():
    failed = {part: {"error": "crashed with signal 11"} for part in MACHINE.probe}
    assert complaints(machine(probe=failed)) == [
        Diagnosis(
            "torch loads",
            "problem",
            "crashed with signal 11",
            "pip install --force-reinstall torch torchvision",
        )
    ]


@pytest.mark.parametrize(
    ("torch", "driver", "found", "remedy"),
    (
        (
            {"version": "2.11.0+cu130", "cuda": "13.0"},
            "12.4",
            "built for CUDA 13.0, but cannot use the card",
            "driver 580.95 runs CUDA up to 12.4: update the NVIDIA driver, or install a torch built for CUDA 12",
        ),
        (
            {"version": "2.11.0+cu128", "cuda": "12.8"},
            "12.4",
            "built for CUDA 12.8, but cannot use the card",
            "restart the machine: the driver may have been updated since the last start",
        ),
        (
            {"version": "2.11.0", "cuda": None},
            "13.0",
            "built for the CPU only, so the card is not used",
            "pip install --force-reinstall torch torchvision",
        ),
    ),
)
def test_a_card_that_torch_cannot_use_is_a_problem(torch, driver, found, remedy):
    probe = {"torch": {**torch, "available": False}, "cuda": {}}
    card = dataclasses.replace(CARD, cuda_version=driver)
    assert complaints(machine(probe=probe, gpu=card)) == [Diagnosis("torch loads", "problem", found, remedy)]


def test_a_card_that_fails_to_compute_is_a_problem():
    probe = {"cuda": {"error": "RuntimeError: CUDA error: no kernel image is available"}}
    assert complaints(machine(probe=probe))[0].found == (
        "built for CUDA 13.0; computing on the card fails: RuntimeError: CUDA error: no kernel image is available"
    )


def test_a_cpu_only_torch_beside_the_default_torchvision_is_a_problem():
    probe = {
        "torch": {"version": "2.11.0+cpu", "cuda": None, "available": False},
        "torchvision": {"error": "RuntimeError: operator torchvision::nms does not exist"},
    }
    assert complaints(machine(ON_CPU, probe=probe))[0] == Diagnosis(
        "torchvision loads",
        "problem",
        "one of torch and torchvision is a CPU-only build",
        "pip install --force-reinstall torch torchvision (the default builds run on a CPU too)",
    )


def test_other_broken_libraries_are_problems():
    probe = {"torchvision": {"error": "ImportError: x"}, "bitsandbytes": {"error": "ImportError: y"}}
    assert complaints(machine(probe=probe)) == [
        Diagnosis("torchvision loads", "problem", "ImportError: x", "pip install --force-reinstall torch torchvision"),
        Diagnosis(
            "bitsandbytes works",
            "problem",
            "ImportError: y",
            "pip install --force-reinstall --no-deps bitsandbytes; details: python -m bitsandbytes",
        ),
    ]


def test_a_busy_card_names_its_users():
    processes = (GpuProcess(7, "Xorg", None), GpuProcess(42, "firefox", int(1.5 * GIB)))
    card = dataclasses.replace(CARD, used_bytes=2 * GIB, processes=processes, temperature_c=85)
    assert complaints(machine(gpu=card)) == [
        Diagnosis(
            "gpu memory",
            "warning",
            "6.0 of 8.0 GiB free; in use by Xorg (pid 7), firefox (pid 42, 1.5 GiB)",
            "close what uses the card before training",
        ),
        Diagnosis(
            "gpu temperature", "warning", "85 °C, slows down from 87 °C", "let air to the card: fans, dust, case"
        ),
    ]


def test_small_disks_and_little_memory_are_warnings():
    disks = {"current folder": 19_900_000_000, "model cache": 20_000_000_000}
    assert complaints(machine(disk_free_bytes=disks, main_memory=MainMemory(32 * GIB, 3 * GIB))) == [
        Diagnosis(
            "disk, current folder",
            "warning",
            "19.9 GB free",
            "free some space, or point output_dir to a larger disk: checkpoints go there",
        ),
        Diagnosis(
            "main memory",
            "warning",
            "3.0 of 32.0 GiB available",
            "a run takes about 2.6 GiB, more with layers in main memory; close other programs",
        ),
    ]


def test_a_container_that_allows_too_little_is_named():
    (found,) = complaints(machine(main_memory=MainMemory(3 * GIB, 2 * GIB, is_limited=True)))
    assert found.found == "2.0 of 3.0 GiB (the container's limit) available"
    assert found.remedy.endswith("; raise the limit, or close other programs")


def test_unknown_memory_is_left_out():
    names = [check.name for check in check_machine(machine(main_memory=None))]
    assert "main memory" not in names


def test_the_shared_memory_of_a_container_is_small():
    (found,) = complaints(machine(shared_memory_bytes=67_108_864))
    assert (found.name, found.found) == ("shared memory", "67 MB free in /dev/shm")
    assert found.remedy == (
        "2 data workers take 576 MB with large photos, else a run has fewer: give the container more, --shm-size=2g"
    )
    assert all(check.name != "shared memory" for check in check_machine(machine(shared_memory_bytes=None)))


@pytest.fixture
def doctor(run_cli, monkeypatch):
    """Run `vlmtune doctor` on a machine of our making."""

    def run(found, *arguments):
        monkeypatch.setattr("vlmtune.hardware.machine.read_machine", lambda: found)
        return run_cli("doctor", *arguments)

    return run


def test_command_prints_remedies_and_a_verdict(doctor):
    result = doctor(ON_CPU)
    assert result.code == 0
    assert "warning  gpu                   none found" in result.stdout
    assert "→ training runs on the CPU, good for smoke runs" in result.stdout
    assert result.stdout.endswith("\nThis machine can train: no problem, 1 warning.\n")
    assert doctor(MACHINE).stdout.endswith("\nThis machine can train: no problem, no warning.\n")


def test_command_fails_when_training_would(doctor):
    result = doctor(machine(versions={"peft": "0.1"}))
    assert result.code == 1
    assert 'problem  peft                  0.1, supported is >=0.20' in result.stdout  # fmt: skip
    assert result.stdout.endswith("\n1 problem to solve before training, 0 warnings.\n")


def test_command_prints_json(doctor):
    result = doctor(machine(versions={"peft": "0.1"}), "--json")
    answer = json.loads(result.stdout)
    assert result.code == 1 and answer["can_train"] is False
    assert answer["checks"][4] == {
        "name": "peft",
        "state": "problem",
        "found": "0.1, supported is >=0.20",
        "remedy": 'pip install "peft>=0.20"',
    }
    assert json.loads(doctor(ON_CPU, "--json").stdout)["can_train"] is True


def test_help_has_an_example(run_cli):
    assert "Example: vlmtune doctor" in run_cli("doctor", "--help").stdout
