"""The estimate from /proc/stat."""

from __future__ import annotations

import pytest

from llem.energy import CpuModel, MeterError
from llem.energy.meters.cpu_model import parse_stat

STAT = """cpu  1000 20 300 9000 500 6 7 8 400 40
cpu0 500 10 150 4500 250 3 3 4 200 20
cpu1 500 10 150 4500 250 3 4 4 200 20
intr 1
"""


def test_guests_are_not_counted_twice_and_iowait_is_idle():
    busy = parse_stat(STAT, ticks_per_s=100)
    assert (busy.busy_s, busy.threads) == ((1000 + 20 + 300 + 6 + 7 + 8) / 100, 2)


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu  1 2 3 4\nintr 0\n", "cpu  a b c d\n"])
def test_what_is_no_stat_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_stat(text, ticks_per_s=100)


def test_power_lies_between_idle_and_maximum_by_the_busy_share(tmp_path):
    """Two threads, 10 s, one of them busy for 8 s: share 0.4."""
    stat = tmp_path / "stat"
    now = [100.0]
    model = CpuModel(idle_w_per_thread=1.0, maximum_w_per_thread=6.0, stat=stat,
                     monotonic=lambda: now[0])  # fmt: skip
    stat.write_text("cpu  0 0 0 0\ncpu0 0\ncpu1 0\n")
    [device] = model.probe().devices
    first = model.read(device)
    now[0] += 10
    stat.write_text("cpu  800 0 0 0\ncpu0 0\ncpu1 0\n")
    second = model.read(device)
    assert second.energy_mj - first.energy_mj == pytest.approx((2 + 10 * 0.4) * 10 * 1e3)
    assert second.power_mw == pytest.approx(6000.0)
    assert second.utilization == pytest.approx(40.0)


def test_two_processes_read_one_counter():
    """The counter has no state of its own: samples of any two processes can be subtracted."""
    a, b = CpuModel(), CpuModel()
    [device] = a.probe().devices
    assert abs(a.read(device).energy_mj - b.read(device).energy_mj) < 100


def test_it_is_labelled_as_an_estimate_and_never_as_a_gpu():
    [device] = CpuModel().probe().devices
    assert (device.quality, device.domain, device.source) == ("model", "package", "cpu-model")
    assert device.contains == () and "estimated" in device.reason


def test_a_machine_without_proc_gives_a_reason_and_no_device(tmp_path):
    model = CpuModel(stat=tmp_path / "gone")
    probe = model.probe()
    assert probe.devices == () and "cpu-model" in probe.reasons[0]
    with pytest.raises(MeterError):
        model.read(CpuModel().probe().devices[0])
