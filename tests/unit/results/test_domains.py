"""What is summed where the same joules are measured more than once, or are not the job's alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem.results import aggregate
from llem.results.energy.claim import Claim
from llem.results.energy.domains import domains_of, select

ALL = ("gpu", "module", "package", "dram")
NAN = math.nan


def claim(
    uuid: str,
    domain: str,
    joules: float = 100.0,
    *,
    source: str,
    host: str = "a",
    contains: tuple[str, ...] = (),
    quality: str = "counter",
    **more: Any,
) -> Claim:
    return Claim(
        owner="run/attempt-0", path=Path("n.h5"), boot_id=host, uuid=uuid, name=uuid,
        domain=domain, contains=contains, source=source, quality=quality, t0_ns=0,
        t1_ns=10 * 10**9, energy_j=joules, seen_j=0.0 if math.isnan(joules) else joules,
        covered_s=10.0, attributed_s=10.0, idle_w=NAN,
        node_wide=domain not in ("gpu", "module"), **more,
    )  # fmt: skip


def gpu(uuid: str = "GPU-0", joules: float = 1000.0, **more: Any) -> Claim:
    return claim(uuid, "gpu", joules, source="nvml", **more)


def package(socket: int = 0, joules: float = 200.0, **more: Any) -> Claim:
    return claim(f"package-{socket}", "package", joules, **{"source": "rapl", **more})


def dram(socket: int = 0, joules: float = 20.0, **more: Any) -> Claim:
    return claim(f"dram-{socket}", "dram", joules, **{"source": "rapl", **more})


def module(joules: float = 1500.0, **more: Any) -> Claim:
    return claim("GH200-0", "module", joules, source="nvml", contains=ALL[:1] + ALL[2:], **more)


def pm_node(joules: float = 2000.0, **more: Any) -> Claim:
    return claim("pm-node", "node", joules, source="pm_counters", contains=ALL, **more)


def pm_part(name: str, domain: str, joules: float) -> Claim:
    return replace(claim(name, domain, joules, source="pm_counters"), node_wide=True)


def shared(claims: list[Claim], *, share: float = 0.25, gpus: int = -1) -> list[Claim]:
    return [
        replace(c, exclusive="no", held="2 of 8 CPUs", cpu_share=share, gpus_held=gpus)
        for c in claims
    ]


CRAY_PARTS = [
    pm_part("pm-accel0", "gpu", 1000.0), pm_part("pm-cpu", "package", 300.0),
    pm_part("pm-memory", "dram", 80.0),
]  # fmt: skip


@pytest.mark.parametrize(("claims", "joules", "domains"), [
    ([gpu()], 1000, "gpu"),
    ([gpu(), gpu("GPU-1"), package(), package(1), dram(), dram(1)], 2440, "gpu+package+dram"),
    ([gpu(), package(), package(1)], 1400, "gpu+package"),
    # One socket of two counts its memory: what there is is counted, by the packages' meter.
    ([gpu(), package(), package(1), dram()], 1420, "gpu+package+dram"),
    ([package(), dram()], 220, "package+dram"),
    ([module(), package(), dram()], 1500, "module"),
    ([module(), pm_part("pm-accel0", "gpu", 900.0)], 1500, "module"),
    ([pm_node(), gpu(), package(), dram()], 2000, "node"),
    ([pm_node(), module(), package()], 2000, "node"),
    ([pm_node(), *CRAY_PARTS], 2000, "node"),
    # Without the node's own counter: GPUs by NVML, the rest by RAPL, and none of it twice.
    ([gpu(), package(), *CRAY_PARTS], 1000 + 200 + 80, "gpu+package+dram"),
    # Nobody knows whether the platform's counter holds a GPU in a slot.
    ([claim("psys", "node", 400.0, source="rapl", contains=("package", "dram")),
      gpu(), package(), dram()], 1220, "gpu+package+dram"),
    ([claim("psys", "node", 400.0, source="rapl", contains=("package", "dram")),
      package(), dram()], 400, "node"),
    # A slow meter of power is a check of counters, and better than nothing.
    ([claim("ipmi", "node", 1900.0, source="ipmi", quality="integral", contains=ALL),
      gpu(), package()], 1200, "gpu+package"),
    ([claim("ipmi", "node", 1900.0, source="ipmi", quality="integral", contains=ALL)], 1900,
     "node"),
    # Grace counts its memory with its processor.
    ([claim("grace", "package", 300.0, source="hwmon", contains=("dram",)), dram()], 300,
     "package"),
])  # fmt: skip
def test_domains_that_do_not_overlap_are_summed(claims, joules, domains):
    found = select(claims)
    assert sum(c.energy_j for c in found.counted) == pytest.approx(joules)
    assert domains_of(found.counted) == domains
    assert {c.uuid for c in claims} == {c.uuid for c in found.counted} | {
        c.uuid for c, _ in found.left_out
    }
    assert all(why for _, why in found.left_out)


@pytest.mark.parametrize("unknown", [package(joules=NAN), dram(joules=NAN)])
def test_what_is_beside_the_gpus_and_unknown_is_left_out_and_said(unknown):
    other = dram() if unknown.domain == "package" else package()
    found = select([gpu(), unknown, other])
    assert domains_of(found.counted) == f"gpu+{other.domain}"
    assert found.notes[0].startswith(f"{unknown.domain} not counted")


def test_an_accelerator_is_never_left_out_for_being_unknown():
    found = select([gpu(joules=NAN), package()])
    assert math.isnan(sum(c.energy_j for c in found.counted))


def test_a_module_that_is_unknown_is_not_replaced_by_its_processor():
    found = select([module(NAN), package()])
    assert [c.domain for c in found.counted] == ["module"]


def test_the_only_thing_measured_stays_where_it_is_unknown():
    assert math.isnan(select([package(joules=NAN)]).counted[0].energy_j)


def test_an_unknown_node_is_known_by_its_parts():
    found = select([pm_node(NAN), gpu(), package()])
    assert domains_of(found.counted) == "gpu+package"


def test_processors_count_only_where_every_node_has_them():
    found = select([gpu(), package(), gpu("GPU-9", host="b")])
    assert sum(c.energy_j for c in found.counted) == 2000.0
    assert found.notes == ("package not counted: not measured on every node",)


def test_a_nodes_counter_counts_only_where_every_node_has_one():
    found = select([pm_node(), gpu(), gpu("GPU-9", host="b")])
    assert domains_of(found.counted) == "gpu"


def test_on_a_shared_node_the_processors_are_left_out_beside_the_jobs_gpus():
    found = select(shared([gpu(), package(), dram(), pm_node()], gpus=1))
    assert domains_of(found.counted) == "gpu" and len(found.left_out) == 3
    assert "package not counted, the node is not held alone: 2 of 8 CPUs" in found.notes


def test_on_a_shared_node_a_job_without_gpus_has_its_cpus_share_as_an_estimate():
    [counted] = select(shared([package(joules=400.0)], gpus=0)).counted
    assert counted.energy_j == pytest.approx(100.0) and counted.quality == "model"
    assert "node not held alone: the share of 2 of 8 CPUs" in counted.reason


def test_on_a_shared_node_gpus_without_a_meter_of_their_own_are_unknown():
    [counted] = select(shared([pm_node(), *CRAY_PARTS], gpus=2)).counted
    assert math.isnan(counted.energy_j) and "GPUs are not shared as CPUs are" in counted.reason


def test_a_share_that_is_not_known_makes_the_energy_unknown():
    [counted] = select(shared([package()], share=NAN)).counted
    assert math.isnan(counted.energy_j)


RAPL = {"domain": "package", "source": "rapl", "node_wide": True}


def test_two_jobs_on_one_node_each_have_their_cpus_share(planted):
    """1 and 2 of 8 CPUs at one time, 100 W: their parts stay what they are, and the rest is
    nobody's of ours."""
    for run_id, share in (("aaaa", 0.125), ("bbbb", 0.25)):
        planted.run(run_id)
        planted.rank(run_id)
        planted.node(run_id, devices=["rapl-0"], attrs=RAPL, node_exclusive="no",
                     node_share=share, node_exclusive_reason="of 8 CPUs", gpus_held=0)  # fmt: skip
        planted.end(run_id)
    found = aggregate(planted.folder)
    first, second = found.observations
    assert first.energy_j == pytest.approx(125.0) and second.energy_j == pytest.approx(250.0)
    assert sum(phase.energy_j for phase in found.phases) == pytest.approx(375.0)
    assert first.energy_quality == "model" and first.energy_domains == "package"


def test_two_jobs_that_hold_more_than_a_node_share_it_in_proportion(planted):
    """OverSubscribe: .75 of the CPUs each."""
    for run_id in ("aaaa", "bbbb"):
        planted.run(run_id)
        planted.rank(run_id)
        planted.node(run_id, devices=["rapl-0"], attrs=RAPL, node_exclusive="no",
                     node_share=0.75, node_exclusive_reason="6 of 8 CPUs", gpus_held=0)  # fmt: skip
        planted.end(run_id)
    found = aggregate(planted.folder)
    for row in found.observations:
        assert row.energy_j == pytest.approx(500.0)
        phases = [phase.energy_j for phase in found.phases if phase.run_id == row.run_id]
        assert sum(phases) == pytest.approx(500.0)


def test_a_row_says_what_is_in_its_energy(planted):
    planted.run()
    planted.rank()
    planted.node(name="n0-gpu", idle_w=40.0)
    planted.node(name="n0-cpu", devices=["rapl-0"], attrs=RAPL)
    planted.end()
    [row] = aggregate(planted.folder).observations
    assert row.energy_j == pytest.approx(2000.0) and row.energy_domains == "gpu+package"
    assert (row.devices, row.energy_quality, row.coverage) == (2, "counter", 1.0)


def test_rows_whose_energies_are_of_different_things_are_a_problem(planted):
    for run_id in ("aaaa", "bbbb", "cccc"):
        planted.complete(run_id)
    planted.node("cccc", name="n0-cpu", devices=["rapl-0"], attrs=RAPL)
    assert aggregate(planted.folder).problems == (
        "energy_j is not of the same domains in all rows: 2 of gpu, 1 of gpu+package",
    )


def test_idle_power_given_for_gpus_is_not_taken_off_their_processors(planted):
    planted.run()
    planted.rank()
    planted.node(name="n0-gpu")
    planted.node(name="n0-cpu", devices=["rapl-0"], attrs=RAPL, idle_w=30.0)
    planted.end()
    [row] = aggregate(planted.folder, idle_power_w=40.0).observations
    assert row.energy_net_j == pytest.approx(2000.0 - 400.0 - 300.0)
