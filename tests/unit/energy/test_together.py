"""Several meters at once in the real sampler: all is recorded, no joule is summed twice."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from llem.records import read_node
from llem.results import device_energies
from llem.results.energy.claims import claim_devices, divide_shared, read_series
from llem.results.energy.domains import select

pytestmark = pytest.mark.slow


@pytest.fixture
def counting(tmp_path, powercap_program):
    """A stand-in /sys whose counters move while the test runs."""
    started = []

    def start(*options):
        sysfs = tmp_path / "sys"
        process = subprocess.Popen(
            [sys.executable, str(powercap_program), str(sysfs), "--seconds", "120", *options],
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return {"LLEM_SYSFS": str(sysfs)}

    yield start
    for process in started:
        process.terminate()
        process.wait()


def measured(link, path, *, seconds=2.0):
    answer = link.begin(path, {})
    assert answer.ok
    time.sleep(seconds)
    assert link.end().ok
    return device_energies(path)


def test_a_grace_hopper_module_is_not_added_to_its_processor(
    tmp_path, sampler, counting, nvml_library, fake_gpus
):
    gpus = fake_gpus(gpus=1, base_w=600.0)
    environ = {
        **gpus.environ(nvml_library, name="NVIDIA GH200 480GB"),
        **counting("--sockets", "1", "--dram"),
    }
    with sampler(environ).link() as link:
        found = measured(link, tmp_path / "node-a.h5")
    by_domain = {d.domain: d for d in found.devices}
    assert set(by_domain) == {"module", "package", "dram"} and found.domains == "module"
    assert found.energy_j == by_domain["module"].energy_j
    assert found.energy_j / found.duration_s == pytest.approx(600.0, rel=0.02)
    assert by_domain["package"].energy_j > 0 and not by_domain["package"].counted
    assert by_domain["package"].reason.startswith("not added: part of GPU-")


def test_a_cray_node_is_counted_by_its_own_counter(
    tmp_path, sampler, counting, nvml_library, fake_gpus
):
    environ = {
        **fake_gpus(gpus=2).environ(nvml_library),
        **counting("--sockets", "1", "--dram", "--cray", "2"),
    }
    with sampler(environ).link() as link:
        found = measured(link, tmp_path / "node-a.h5")
    assert found.domains == "node" and sum(d.counted for d in found.devices) == 1
    assert len(found.devices) == 2 + 2 + 5


def test_only_the_meters_that_were_asked_for_are(tmp_path, sampler, counting):
    environ = counting("--sockets", "1", "--dram", "--cray", "2")
    with sampler(environ, options=("--meters", "rapl")).link() as link:
        answer = link.begin(tmp_path / "node-a.h5", {})
        link.end()
    assert {d["source"] for d in answer.devices} == {"rapl"} and answer.reasons == ()


def test_two_samplers_on_one_node_read_the_same_devices_and_share_them_late(
    tmp_path, sampler, counting
):
    """Two jobs: each reads the node's counters, and neither's joules are counted for both."""
    environ = counting("--sockets", "1")
    paths = [tmp_path / "node-a.h5", tmp_path / "node-b.h5"]
    with sampler(environ).link() as one, sampler(environ).link() as two:
        for link, path in zip((one, two), paths, strict=True):
            assert link.begin(path, {}).ok
        time.sleep(2.0)
        assert one.end().ok and two.end().ok
    claims = [
        claim
        for path in paths
        for claim in select(claim_devices(read_node(path), owner=str(path), window=None)).counted
    ]
    assert len({claim.key for claim in claims}) == 1
    divided = divide_shared(claims, read_series)
    span_s = (max(c.t1_ns for c in claims) - min(c.t0_ns for c in claims)) / 1e9
    assert sum(c.energy_j for c in divided) == pytest.approx(100.0 * span_s, rel=0.02)
