"""SLURM's words about its limits, as captured from real clusters."""

import pytest

from llem.campaign import site_of
from llem.planning import ClusterLimits
from llem.planning.limits import (
    narrowed,
    parse_config,
    parse_limit_s,
    parse_partition,
    parse_table,
)

from .sites import campaign_at

CONFIG = """\
Configuration data as of 2025-11-23T00:32:22
AccountingStorageEnforce = none
MaxArraySize            = 1001
MaxJobCount             = 50000
"""
PARTITION = (
    "PartitionName=gpu AllowGroups=ALL AllowQos=ALL Default=YES QoS=N/A MaxNodes={nodes} "
    "MaxTime={time} MinNodes=0 Nodes=n[1-4] State=UP TotalCPUs=16 TotalNodes=4 "
    "TRES=cpu=16,mem=32000M,node=4,billing=16,gres/gpu=8\n"
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("UNLIMITED", None), ("infinite", None), ("", None), ("N/A", None), ("soon", None),
        ("30", 1800), ("30:15", 1815), ("06:00:00", 21600), ("1-00:00:00", 86400),
        ("2-12", 216000), ("2-12:30", 217800),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_writes_them(text, seconds):
    assert parse_limit_s(text) == seconds


@pytest.mark.parametrize(("text", "size"), [(CONFIG, 1001), ("", None), ("MaxArraySize = 0\n", 1)])
def test_the_largest_index_of_an_array(text, size):
    assert parse_config(text).array_size == size


@pytest.mark.parametrize(
    ("nodes", "time", "expected"),
    [("UNLIMITED", "UNLIMITED", (4, None)), ("2", "1-00:00:00", (2, 86400)),
     ("64", "06:00:00", (4, 21600))],
)  # fmt: skip
def test_a_partition_says_its_time_and_nodes(nodes, time, expected):
    limits = parse_partition(PARTITION.format(nodes=nodes, time=time))
    assert (limits.nodes, limits.time_s) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MaxSubmit|GrpSubmit|MaxWall|MaxTRES\n|||\n", (None, None, None)),
        ("MaxSubmit|GrpSubmit|MaxWall|MaxTRES\n500|2000|1-00:00:00|cpu=512,node=8\n",
         (500, 86400, 8)),
        # An account without a limit among those with one: which is used is not known here.
        ("MaxSubmit|GrpSubmit|MaxWall|MaxTRES\n500|||\n|||\n", (None, None, None)),
        ("MaxSubmit|GrpSubmit|MaxWall|MaxTRES\n500|||\n800|||\n", (800, None, None)),
        ("", (None, None, None)),
    ],
)  # fmt: skip
def test_associations_say_what_a_user_may_submit(text, expected):
    limits = parse_table(text)
    assert (limits.submit, limits.time_s, limits.nodes) == expected


def test_a_site_keeps_the_narrower_limit_and_takes_the_clusters_array_size():
    site = site_of(campaign_at("small-cluster"))
    told = ClusterLimits(array_size=50001, time_s=7200, nodes=64, submit=300)
    new = narrowed(site, told)
    assert (new.limits.time, new.nodes) == (7200, 16)
    assert (new.limits.array_size, new.limits.submit) == (50001, 300)


def test_short_runs_share_elements_until_a_user_may_submit_them():
    from llem.campaign import Budget
    from llem.planning import make_plan

    from .sites import DATA

    plan = make_plan(
        campaign_at("small-cluster"), budget=Budget(300, "GPUh"), data=DATA, runs=2000,
        limits=ClusterLimits(submit=400),
    )  # fmt: skip
    assert sum(len(a.elements) for a in plan.arrays) <= 400
    assert plan.to_dict()["limits"]["submit"] == 400
