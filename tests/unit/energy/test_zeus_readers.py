"""What is taken from zeus, and what is refused of it. Its readers are pretended: none of what they
read is on a machine that tests run on. The real package is run by test_powercap_others."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from llem.energy import MeterError, ZeusMeter

BOOT = "c0ffee00-1111-2222-3333-444455556666"


class NotSupported(Exception):
    pass


class Gpu:
    def __init__(self, index, *, energy_mj=5000, power_mw=300_000, supported=True, odd=False):
        self.gpu_index = index
        self.energy_mj, self.power_mw, self.supported = energy_mj, power_mw, supported
        self._is_dual_die_odd_chiplet = odd

    def get_name(self):
        return "AMD Instinct MI250X"

    def supports_get_total_energy_consumption(self):
        return self.supported

    def get_total_energy_consumption(self):
        return self.energy_mj

    def get_instant_power_usage(self):
        raise NotSupported("no instant power\nand more lines")

    def get_average_power_usage(self):
        return self.power_mw


def managed(kind, *gpus):
    return type(kind, (), {"gpus": list(gpus)})()


@pytest.fixture
def zeus(monkeypatch):
    """Puts a pretended package in place: what its readers return, or raise."""

    class NoChip(Exception):
        pass

    def answer(value, error):
        def get():
            if value is None:
                raise error
            return value

        return get

    def install(*, gpus=None, cpus=None, chip=None):
        modules = {
            "zeus": {"__version__": "0.16.0"},
            "zeus.device": {"get_gpus": answer(gpus, NotSupported("no driver"))},
            "zeus.device.cpu": {"get_cpus": answer(cpus, NotSupported("no RAPL"))},
            "zeus.device.soc": {"get_soc": answer(chip, NoChip())},
            "zeus.device.soc.common": {"ZeusSoCInitError": NoChip},
        }
        for name, values in modules.items():
            module = ModuleType(name)
            module.__dict__.update(values)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules["zeus"].device = sys.modules["zeus.device"]
        monkeypatch.setitem(sys.modules, "amdsmi", None)
        return ZeusMeter(environ={}, boot_id=BOOT)

    return install


def test_without_the_package_there_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    [reason] = ZeusMeter(environ={}).probe().reasons
    assert reason.startswith("zeus: ")


def test_an_amd_gpu_has_its_counter_and_power(zeus):
    meter = zeus(gpus=managed("AMDGPUs", Gpu(3)))
    [device] = meter.probe().devices
    assert (device.uuid, device.domain, device.quality, device.power, device.node_wide) == (
        "zeus-c0ffee00-1111-2222-gpu3", "gpu", "counter", "average", False)  # fmt: skip
    reading = meter.read(device)
    assert (reading.energy_mj, reading.power_mw) == (5000.0, 300_000.0)
    assert meter.versions == {"zeus": "0.16.0"}


def test_a_counter_of_zero_is_none(zeus):
    """Zeus answers 0 where it sees nothing: here the power is integrated, and that is said."""
    meter = zeus(gpus=managed("AMDGPUs", Gpu(0, energy_mj=0)))
    [device] = meter.probe().devices
    assert (device.quality, device.counter) == ("integral", False)
    assert "its energy counter reads 0" in device.reason
    assert math.isnan(meter.read(device).energy_mj)


def test_a_gpu_that_reads_neither_is_unmeasured(zeus):
    meter = zeus(gpus=managed("AMDGPUs", Gpu(0, supported=False, power_mw=0)))
    [device] = meter.probe().devices
    assert device.quality == "none" and "average power reads 0" in device.reason


def test_an_empty_collection_is_a_reason(zeus):
    probe = zeus(gpus=managed("EmptyGPUs")).probe()
    assert probe.devices == () and "zeus: EmptyGPUs: no GPU" in probe.reasons


def test_nvidia_is_left_to_nvml(zeus):
    probe = zeus(gpus=managed("NVIDIAGPUs", Gpu(0))).probe()
    assert probe.devices == () and "zeus: NVIDIA GPUs are left to nvml" in probe.reasons


def test_the_second_die_of_a_card_is_counted_with_the_first(zeus):
    probe = zeus(gpus=managed("AMDGPUs", Gpu(0), Gpu(1, odd=True))).probe()
    assert len(probe.devices) == 1 and probe.paired == 1


def test_what_zeus_raises_is_a_reason_of_one_line(zeus):
    probe = zeus().probe()
    assert probe.devices == () and "zeus: GPUs: no driver" in probe.reasons


def cpu(package_mj=7000.0, dram_mj=700.0):
    return SimpleNamespace(
        cpu_index=0,
        supports_get_dram_energy_consumption=lambda: dram_mj is not None,
        get_total_energy_consumption=lambda: SimpleNamespace(cpu_mj=package_mj, dram_mj=dram_mj),
    )


def test_rapl_is_read_through_zeus_only_by_its_daemon(zeus):
    zeus(cpus=SimpleNamespace(cpus=[cpu()]))
    without = ZeusMeter(environ={}, boot_id=BOOT).probe()
    assert without.devices == () and any("left to rapl" in r for r in without.reasons)
    meter = ZeusMeter(environ={"ZEUSD_SOCK_PATH": "/run/zeusd.sock"}, boot_id=BOOT)
    devices = meter.probe().devices
    assert [(d.domain, d.node_wide, meter.read(d).energy_mj) for d in devices] == [
        ("package", True, 7000.0), ("dram", True, 700.0)]  # fmt: skip


def test_a_processor_of_zero_is_a_reason(zeus):
    zeus(cpus=SimpleNamespace(cpus=[cpu(package_mj=0.0, dram_mj=None)]))
    probe = ZeusMeter(environ={"ZEUSD_SOCK_PATH": "s"}, boot_id=BOOT).probe()
    assert probe.devices == () and "zeus: cpu 0: cpu_mj is 0.0" in probe.reasons


def test_a_chip_has_what_it_measures_and_says_what_it_does_not(zeus):
    values = {"cpu_total_mj": 5, "dram_mj": None, "gpu_mj": 9}
    measurement = type("AppleSiliconMeasurement", (), values)()
    chip = SimpleNamespace(get_total_energy_consumption=lambda: measurement)
    meter = zeus(chip=chip)
    probe = meter.probe()
    assert [(d.domain, meter.read(d).energy_mj) for d in probe.devices] == [
        ("package", 5.0), ("gpu", 9.0)]  # fmt: skip
    assert "zeus: AppleSiliconMeasurement: dram_mj is not measured" in probe.reasons
    measurement.gpu_mj = None
    with pytest.raises(MeterError, match="gpu_mj is gone"):
        meter.read(probe.devices[1])
