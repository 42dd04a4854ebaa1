import sys
from types import SimpleNamespace

import pytest

from vlmtune.hardware import sensors
from vlmtune.hardware.sensors import GpuProcess, read_gpu, read_gpus, read_links, visible_gpus
from vlmtune.units import GIB


class NVMLError(Exception):
    pass


class FakeNvml:
    """Three cards, as nvidia-ml-py shows them; `missing` are functions that the driver does not support."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    UUIDS = ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3")

    def __init__(self, *missing):
        for name in missing:
            setattr(self, name, self._refuse)

    def _refuse(self, *arguments):
        raise NVMLError("not supported")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(self.UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.UUIDS):
            raise NVMLError("invalid argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self.UUIDS.index(uuid.replace("MIG", "GPU"))

    def nvmlDeviceGetUUID(self, handle):
        return self.UUIDS[handle]

    def nvmlDeviceGetName(self, handle):
        return f"card {handle}".encode()  # bytes, as older nvidia-ml-py returns

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=8 * GIB, used=2 * GIB)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 61

    def nvmlDeviceGetTemperatureThreshold(self, handle, threshold):
        return 87

    def nvmlDeviceGetP2PStatus(self, first, other, kind):
        return 5 if other == 2 else 0

    def nvmlDeviceGetTopologyCommonAncestor(self, first, other):
        return 30

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlSystemGetCudaDriverVersion(self):
        return 12080

    def nvmlSystemGetProcessName(self, pid):
        if pid == 7:
            raise NVMLError("not found")
        return "/usr/bin/firefox"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=42, usedGpuMemory=GIB)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return [SimpleNamespace(pid=7, usedGpuMemory=None), SimpleNamespace(pid=42, usedGpuMemory=GIB)]


@pytest.fixture
def nvml(monkeypatch):
    """Put a FakeNvml in the place of nvidia-ml-py."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*missing):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*missing))

    install()
    return install


def test_a_reading_has_everything(nvml):
    reading = read_gpu("GPU-bbbb-2")
    assert (reading.name, reading.total_bytes, reading.used_bytes) == ("card 1", 8 * GIB, 2 * GIB)
    assert (reading.temperature_c, reading.slowdown_c) == (61, 87)
    assert (reading.driver, reading.cuda_version) == ("570.1", "12.8")
    assert reading.processes == (GpuProcess(7, "unknown", None), GpuProcess(42, "firefox", GIB))


def test_what_a_driver_does_not_report_is_none(nvml):
    nvml(
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTemperatureThreshold",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
    )
    reading = read_gpu("GPU-aaaa-1")
    assert (reading.temperature_c, reading.slowdown_c, reading.processes) == (None, None, ())


@pytest.mark.parametrize("missing", ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"))
def test_no_reading_without_a_working_driver(nvml, missing):
    nvml(missing)
    assert read_gpu("GPU-aaaa-1") is None and visible_gpus() == {}


def test_no_reading_without_nvidia_ml_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu("GPU-aaaa-1") is None and visible_gpus() == {}


def test_every_card_is_visible_by_default(nvml):
    assert {uuid: reading.name for uuid, reading in visible_gpus().items()} == {
        "GPU-aaaa-1": "card 0",
        "GPU-bbbb-2": "card 1",
        "GPU-cccc-3": "card 2",
    }


@pytest.mark.parametrize(
    ("visible", "names"),
    (
        ("2,0", ["card 2", "card 0"]),
        ("1,7,0", ["card 1"]),
        ("", []),
        ("-1", []),
        ("GPU-bbbb-2", ["card 1"]),
        (" GPU-cccc , 1", ["card 2", "card 1"]),
        ("MIG-bbbb-2", ["card 1"]),
        ("GPU-dddd", []),
    ),
)
def test_cuda_visible_devices_is_followed(nvml, monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [reading.name for reading in visible_gpus().values()] == names


def test_a_card_is_found_by_its_uuid_whatever_the_order(nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read_gpu(uuid="GPU-cccc-3").name == "card 2"
    assert read_gpu(uuid="GPU-dddd-4") is None


@pytest.mark.parametrize(("platform", "library"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")])
def test_the_driver_is_there_when_its_library_loads(monkeypatch, platform, library):
    def load(name):
        if name not in installed:
            raise OSError(name)

    monkeypatch.setattr(sensors.ctypes, "CDLL", load)
    monkeypatch.setattr(sensors.sys, "platform", platform)
    installed = {library}
    assert sensors.has_driver()
    installed = set()
    assert not sensors.has_driver()


def test_links_are_those_from_the_first_card(nvml):
    nvml()
    assert read_links(FakeNvml.UUIDS) == ("NVLink", "PCIe, one processor between them")
    assert read_links(FakeNvml.UUIDS[:1]) == ()


def test_where_the_driver_does_not_tell_links_are_not_known(nvml):
    nvml("nvmlDeviceGetP2PStatus")
    assert read_links(FakeNvml.UUIDS) == ()


def test_cards_are_read_by_their_names_whatever_this_process_sees(nvml, monkeypatch):
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [reading.name for reading in read_gpus(["2", "GPU-bbbb"])] == ["card 2", "card 1"]
    assert read_gpus(["7"]) == []
