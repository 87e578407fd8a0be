"""HPE Cray's counters of a node, its parts, and what is wrong with them."""

from __future__ import annotations

import pytest

from llem.energy import MeterError, PmCountersMeter
from llem.energy.meters.pm_counters import parse_counter

BOOT = "c0ffee00-1111-2222-3333-444455556666"
T_S = 1_750_000_000.0


class Moving:
    def __init__(self, tree, sysfs):
        self.tree, self.sysfs, self.t_s = tree, sysfs, T_S
        self.root = tree.build(sysfs, t_s=T_S)
        self.stopped = False

    def to(self, t_s):
        self.t_s = t_s
        if not self.stopped:
            self.tree.write(self.sysfs, t_s)

    def meter(self):
        return PmCountersMeter(root=self.root, boot_id=BOOT, monotonic=lambda: self.t_s,
                               sleep=lambda s: self.to(self.t_s + s))  # fmt: skip


@pytest.fixture
def moving(tmp_path, fake_pm_counters):
    return lambda **settings: Moving(fake_pm_counters(**settings), tmp_path / "sys")


@pytest.mark.parametrize(("text", "value"), [
    ("212 W", 212), ("98765 J 1616161616161616 us", 98765), ("0 J", 0),
])  # fmt: skip
def test_a_counter_is_read_with_and_without_its_time(text, value):
    assert parse_counter(text, unit=text.split()[1]) == value


@pytest.mark.parametrize("text", ["", "12", "x J", "12 W", "12 J 5", "-3 J"])
def test_what_is_no_counter_is_refused(text):
    with pytest.raises(ValueError, match="expected a number and J"):
        parse_counter(text, unit="J")


def test_the_node_contains_its_parts(moving):
    probe = moving(accelerators=2).meter().probe()
    found = {d.uuid.removeprefix("pm-c0ffee00-1111-2222-"): d for d in probe.devices}
    assert {name: d.domain for name, d in found.items()} == {
        "node": "node", "accel0": "gpu", "accel1": "gpu", "cpu": "package", "memory": "dram",
    }  # fmt: skip
    assert set(found["node"].contains) >= {"gpu", "package", "dram"}
    assert all(d.node_wide and d.power == "average" for d in probe.devices)


def test_energy_is_the_truth_to_a_joule_and_a_scan(moving):
    at = moving(amp_w=100.0)
    meter = at.meter()
    devices = meter.probe().devices
    first = {d.uuid: meter.read(d).energy_mj for d in devices}
    t0_s = at.t_s
    for i in range(1, 201):
        at.to(t0_s + i * 0.1)
        now = {d.uuid: meter.read(d) for d in devices}
    for device in devices:
        part = device.uuid.rpartition("-")[2]
        truth = at.tree.energy_j(t0_s, at.t_s, part="" if part == "node" else f"{part}_")
        seen = (now[device.uuid].energy_mj - first[device.uuid]) / 1e3
        assert seen == pytest.approx(truth, abs=1.0 + 0.1 * 2000, rel=0)
        assert seen == pytest.approx(truth, rel=0.006)


def test_numbers_of_a_daemon_that_has_died_are_no_samples(moving):
    at = moving()
    meter = at.meter()
    node = next(d for d in meter.probe().devices if d.domain == "node")
    meter.read(node)
    at.stopped = True
    at.to(at.t_s + 1.0)
    meter.read(node)
    at.to(at.t_s + 1.5)
    with pytest.raises(MeterError, match=r"freshness stands still at \d+: old numbers"):
        meter.read(node)


def test_counters_that_were_dead_before_are_a_reason(moving):
    at = moving()
    at.stopped = True
    probe = at.meter().probe()
    assert probe.devices == () and "freshness stands still" in probe.reasons[0]


def test_another_generation_is_said_once(moving):
    at = moving()
    meter = at.meter()
    node = next(d for d in meter.probe().devices if d.domain == "node")
    (at.root / "generation").write_text("2\n")
    with pytest.raises(MeterError, match="generation 1 -> 2"):
        meter.read(node)
    assert meter.read(node).energy_mj > 0


def test_another_machine_is_a_reason(tmp_path):
    [reason] = PmCountersMeter(root=tmp_path / "none").probe().reasons
    assert "not an HPE Cray node" in reason
