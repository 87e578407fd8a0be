"""RAPL by the powercap tree, against counters that are exact functions of time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llem.energy import MeterError
from llem.energy.meters.choose import Chosen
from llem.energy.meters.rapl import RaplMeter
from llem.energy.recorder import Recorder
from llem.results import device_energies

BOOT = "c0ffee00-1111-2222-3333-444455556666"
T_S = 1_750_000_000.0


class Moving:
    """A tree whose counters move by a pretended clock, whenever somebody waits."""

    def __init__(self, tree, sysfs):
        self.tree, self.sysfs, self.t_s = tree, sysfs, T_S
        self.root = tree.build(sysfs, t_s=T_S)

    def to(self, t_s):
        self.t_s = t_s
        self.tree.write(self.sysfs, t_s)

    def meter(self):
        return RaplMeter(
            root=self.root, boot_id=BOOT, monotonic=lambda: self.t_s,
            sleep=lambda s: self.to(self.t_s + s),
        )  # fmt: skip


@pytest.fixture
def moving(tmp_path, fake_powercap):
    return lambda **settings: Moving(fake_powercap(**settings), tmp_path / "sys")


def record(moving, meter, path, *, seconds, step_s=0.1):
    """What the real recorder writes while the counters move; then the devices by name."""
    now_ns = int(moving.t_s * 1e9)
    probe = meter.probe()
    chosen = Chosen(tuple((meter, d) for d in probe.devices), probe.reasons, (), -1, 0)
    recorder = Recorder(chosen, interval_s=step_s, monotonic_ns=lambda: now_ns)
    start_s = moving.t_s
    recorder.begin(str(path), {})
    for i in range(1, round(seconds / step_s) + 1):
        moving.to(start_s + i * step_s)
        now_ns = int(moving.t_s * 1e9)
        recorder.sample()
    recorder.end()
    return start_s, moving.t_s


def test_packages_and_memory_are_devices_and_cores_are_not(moving):
    probe = moving(sockets=2, dram=(0, 1)).meter().probe()
    assert [(d.uuid, d.name, d.domain, d.contains) for d in probe.devices] == [
        ("rapl-c0ffee00-1111-2222-intel-rapl:0", "RAPL package-0", "package", ()),
        ("rapl-c0ffee00-1111-2222-intel-rapl:0:1", "RAPL dram of package-0", "dram", ()),
        ("rapl-c0ffee00-1111-2222-intel-rapl:1", "RAPL package-1", "package", ()),
        ("rapl-c0ffee00-1111-2222-intel-rapl:1:1", "RAPL dram of package-1", "dram", ()),
    ]
    assert all(d.counter_range_mj == 262_143_328.850 and d.node_wide for d in probe.devices)
    assert probe.reasons == ()


def test_the_platform_is_a_node_of_which_the_gpus_are_not_known_to_be_a_part(moving):
    [*_, psys] = moving(psys=True).meter().probe().devices
    assert (psys.domain, psys.contains) == ("node", ("package", "dram"))


@pytest.mark.parametrize("amp_w", [0.0, 150.0])
def test_the_energy_of_two_sockets_is_the_truth(moving, tmp_path, amp_w):
    at = moving(sockets=2, dram=(0, 1), amp_w=amp_w, period_s=0.7)
    begun, ended = record(at, at.meter(), tmp_path / "node-a.h5", seconds=12)
    found = device_energies(tmp_path / "node-a.h5")
    truth = at.tree.energy_j(begun, ended, names=("package", "dram"))
    assert found.energy_j == pytest.approx(truth, rel=1e-6)
    assert found.domains == "package+dram"


def test_counters_that_wrap_again_and_again_are_unwrapped(moving, tmp_path):
    """A range of 30 J at 100 W: forty times in 12 s."""
    at = moving(range_uj=30_000_000)
    begun, ended = record(at, at.meter(), tmp_path / "node-a.h5", seconds=12)
    found = device_energies(tmp_path / "node-a.h5")
    truth = at.tree.energy_j(begun, ended, names=("package",))
    assert found.energy_j == pytest.approx(truth, rel=1e-6)


def test_a_zone_that_vanishes_is_an_event_and_its_energy_is_unknown(moving, tmp_path):
    at = moving(sockets=2)
    meter = at.meter()
    first, second = meter.probe().devices
    shutil.rmtree(at.root / "intel-rapl" / "intel-rapl:1")
    assert meter.read(first).energy_mj > 0
    with pytest.raises(MeterError, match="intel-rapl:1/energy_uj: No such file"):
        meter.read(second)


def test_one_that_vanishes_and_comes_back_is_bridged_by_its_counter(moving, tmp_path):
    at = moving()
    meter, path = at.meter(), tmp_path / "node-a.h5"
    now = [0]
    probe = meter.probe()
    recorder = Recorder(
        Chosen(tuple((meter, d) for d in probe.devices), (), (), -1, 0),
        interval_s=0.1, monotonic_ns=lambda: now[0],
    )  # fmt: skip
    start_s = at.t_s
    recorder.begin(str(path), {})
    zone = at.root / "intel-rapl" / "intel-rapl:0" / "energy_uj"
    for i in range(1, 101):
        at.to(start_s + i * 0.1)
        now[0] = round(i * 1e8)
        hidden = zone.with_name("hidden")
        if 30 <= i < 50:
            zone.rename(hidden)
        recorder.sample()
        if hidden.exists():
            hidden.rename(zone)
    recorder.end()
    found = device_energies(path)
    assert found.energy_j == pytest.approx(at.tree.energy_j(start_s, at.t_s, names=("package",)))
    assert "20 of 102 samples failed" in found.devices[0].reason


def test_a_counter_that_stands_still_is_a_reason_and_no_zero(moving):
    at = moving()
    meter = RaplMeter(root=at.root, boot_id=BOOT, monotonic=iter([0.0, 1.0]).__next__)
    probe = meter.probe()
    assert probe.devices == ()
    assert probe.reasons[0].startswith("rapl: package-0: counter stands still at ")


def test_no_tree_is_a_reason(tmp_path):
    [reason] = RaplMeter(root=tmp_path / "none").probe().reasons
    assert reason == f"rapl: no {tmp_path / 'none'}: no RAPL in this kernel or machine"


def test_another_place_of_sysfs_is_taken_from_the_environment(moving, tmp_path):
    at = moving()
    meter = RaplMeter(environ={"LLEM_SYSFS": str(tmp_path / "sys")}, monotonic=lambda: at.t_s,
                      sleep=lambda s: at.to(at.t_s + s))  # fmt: skip
    assert len(meter.probe().devices) == 1


def test_the_second_way_to_the_same_counters_is_not_a_second_device(moving):
    at = moving(sockets=2)
    shutil.copytree(at.root / "intel-rapl" / "intel-rapl:0", at.root / "intel-rapl-mmio:0")
    names = [d.uuid.rpartition("-")[2] for d in at.meter().probe().devices]
    assert names == ["rapl:0", "rapl:1"]


def test_what_only_root_may_read_is_a_reason_with_the_remedy(fake_powercap):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = fake_powercap(sockets=2, dram=(0,)).build(Path(folder) / "sys")
        for energy in root.glob("intel-rapl/**/energy_uj"):
            energy.chmod(0o400)
        os.seteuid(65534)
        try:
            probe = RaplMeter(root=root, boot_id=BOOT).probe()
        finally:
            os.seteuid(0)
    assert probe.devices == ()
    [reason] = probe.reasons
    assert reason.startswith("rapl: package-0, dram of package-0, package-1: permission denied; ")
    assert "ask your site for read access" in reason and "zeusd" in reason


@pytest.mark.slow
def test_the_sampler_process_reads_the_truth(tmp_path, sampler, fake_powercap, powercap_program):
    """The whole chain, by the wall clock. A busy machine holds up the program that moves the
    counters, and the sampler: the bracket of wall times says what of it is the measurement's."""
    sysfs, path = tmp_path / "sys", tmp_path / "node-a.h5"
    ticker = subprocess.Popen(
        [sys.executable, str(powercap_program), str(sysfs), "--sockets", "2", "--dram",
         "--range-uj", "150000000", "--seconds", "60"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert ticker.stdout is not None and ticker.stdout.readline() == b"ready\n"
        with sampler({"LLEM_SYSFS": str(sysfs)}).link() as link:
            answer = link.begin(path, {})
            begun = time.time()
            time.sleep(4.0)
            ended = time.time()
            assert link.end().ok
    finally:
        ticker.terminate()
        ticker.wait()
    assert {d["domain"] for d in answer.devices} == {"package", "dram"}
    from llem.records import read_node
    from llem.results.energy.counter import energy_series

    tree = fake_powercap(sockets=2, dram=(0, 1))
    record = read_node(path)
    offset_ns = int(record.clock["t_wall_ns"][0] - record.clock["t_mono_ns"][0])
    window_ns = [int(t * 1e9) - offset_ns for t in (begun, ended)]
    found = sum(energy_series(device).between(*window_ns) for device in record.devices)
    truth = tree.energy_j(begun, ended, names=("package", "dram"))
    assert found == pytest.approx(truth, rel=0.005)
    assert record.meta["node_exclusive"] == "yes" and "rapl" in record.meta["meters"]
