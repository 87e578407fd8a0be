"""Power of a node by slow sources: each at its own rate, and nobody waits for it."""

from __future__ import annotations

import math
import stat
import threading
import time

import pytest

from llem.energy import HwmonMeter, IpmiMeter, MeterError
from llem.energy.meters.choose import Chosen
from llem.energy.meters.node_power import Poller, parse_dcmi
from llem.energy.recorder import Recorder
from llem.records import read_node

# As ipmitool 1.8.18 prints it.
DCMI = """
    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                 18 Watts
    Maximum during sampling period:                438 Watts
    Average power reading over sample period:      233 Watts
    IPMI timestamp:                           Thu Jan  1 00:00:00 1970
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated

"""


def hwmon(root, number, *, name="power_meter", oem="", average=None, value=None):
    folder = root / f"hwmon{number}"
    (folder / "device").mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    if oem:
        (folder / "device" / "power1_oem_info").write_text(f"{oem}\n")
    if average is not None:
        (folder / "power1_average").write_text(f"{average}\n")
    if value is not None:
        (folder / "power1_input").write_text(f"{value}\n")


def test_an_acpi_power_meter_is_the_nodes_power_in_watts(tmp_path):
    hwmon(tmp_path, 0, name="coretemp", value=1)
    hwmon(tmp_path, 1, average=412_000_000)
    meter = HwmonMeter(root=tmp_path, boot_id="b")
    [device] = meter.probe().devices
    assert (device.domain, device.quality, device.counter) == ("node", "integral", False)
    assert meter.read(device).power_mw == pytest.approx(412_000)
    meter.close()


def test_grace_tells_its_module_and_its_processor(tmp_path):
    for number, (oem, watts) in enumerate([
        ("Module Power Socket 0", 500), ("Grace Power Socket 0", 120),
        ("CPU Power Socket 0", 80), ("SysIO Power Socket 0", 20),
    ]):  # fmt: skip
        hwmon(tmp_path, number, oem=oem, average=watts * 1_000_000)
    meter = HwmonMeter(root=tmp_path, boot_id="b")
    found = {d.domain: d for d in meter.probe().devices}
    assert set(found) == {"module", "package"}
    assert found["module"].contains == ("gpu", "package", "dram")
    meter.close()


def test_a_meter_that_reads_nothing_is_a_reason(tmp_path):
    hwmon(tmp_path, 0, average=0)
    hwmon(tmp_path, 1)
    probe = HwmonMeter(root=tmp_path, boot_id="b").probe()
    assert probe.devices == ()
    assert probe.reasons == ("hwmon: hwmon0: reads 0 W", "hwmon: hwmon1: shows no power")


def test_the_controllers_answer_is_read():
    assert parse_dcmi(DCMI) == 220.0


@pytest.mark.parametrize("text", ["", "DCMI request failed because: Invalid command",
                                  DCMI.replace("  activated", "  deactivated")])  # fmt: skip
def test_an_answer_without_power_is_refused(text):
    with pytest.raises(ValueError, match="power reading"):
        parse_dcmi(text)


def program(tmp_path, text):
    path = tmp_path / "ipmitool"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_program_that_may_be_used_is(tmp_path):
    (tmp_path / "ipmi0").write_text("")
    (tmp_path / "answer").write_text(DCMI)
    tool = program(tmp_path, f'[ "$*" = "dcmi power reading" ] && cat {tmp_path}/answer')
    meter = IpmiMeter(program=tool, devices=(str(tmp_path / "ipmi0"),), boot_id="b")
    [device] = meter.probe().devices
    assert (device.domain, device.quality) == ("node", "integral")
    assert meter.read(device).power_mw == 220_000
    meter.close()


def test_why_the_controller_cannot_be_asked_is_said(tmp_path):
    (tmp_path / "ipmi0").write_text("")
    devices = (str(tmp_path / "ipmi0"),)
    failing = program(tmp_path, "echo 'Could not open device' >&2; exit 1")
    assert IpmiMeter(program="no-such-tool").probe().reasons == ("ipmi: no program no-such-tool",)
    assert IpmiMeter(program=failing, devices=(f"{tmp_path}/none",)).probe().reasons == (
        f"ipmi: no {tmp_path}/none",
    )
    assert IpmiMeter(program=failing, devices=devices).probe().reasons == (
        "ipmi: ipmitool: Could not open device",
    )


def test_a_source_that_hangs_holds_nobody_up():
    """The first reading answers; the next never comes. A sample costs nothing meanwhile."""
    hang = threading.Event()
    asked = threading.Event()

    def read_w():
        if asked.is_set():
            hang.wait()
        asked.set()
        return 100.0

    poller = Poller(read_w, interval_s=0.01)
    poller.start()
    began = time.process_time()
    deadline = time.monotonic() + 5
    with pytest.raises(MeterError, match="no answer for"):  # noqa: PT012
        while time.monotonic() < deadline:
            assert poller.last().power_w == 100.0
            hang.wait(0.005)
    assert time.process_time() - began < 1.0
    hang.set()
    poller.stop()


def test_a_slow_source_has_its_own_rows_with_their_own_times(tmp_path):
    """Sampled every .1 s, a source of 1 s gives one row a second, each reading once."""
    from llem.energy import Device, Reading

    device = Device(uuid="slow", name="s", domain="node", source="ipmi", counter=False,
                    quality="integral", interval_s=1.0)  # fmt: skip
    now_ns = [10**12]

    class Slow:
        name = "ipmi"

        def read(self, _device):
            taken_ns = now_ns[0] - now_ns[0] % 10**9 - 1_000
            return Reading(power_mw=float(taken_ns), t_ns=taken_ns, read_ns=7 << 10)

    recorder = Recorder(
        Chosen(((Slow(), device),), (), (), -1, 0), interval_s=0.1, monotonic_ns=lambda: now_ns[0]
    )
    recorder.begin(str(tmp_path / "node-a.h5"), {})
    for _ in range(50):
        now_ns[0] += 10**8
        recorder.sample()
    recorder.end()
    [series] = read_node(tmp_path / "node-a.h5").devices
    assert series.samples["t_ns"].tolist() == [10**12 + i * 10**9 - 1_000 for i in range(6)]
    assert (series.samples["power_mw"] == series.samples["t_ns"]).all()
    assert (series.samples["read_ns"] == 7 << 10).all() and math.isnan(
        series.samples["energy_mj"][0]
    )
