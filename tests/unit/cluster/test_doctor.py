"""The rows of `llem doctor`: each a function of facts, and the probes that gather them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import llem
from llem._version import __version__
from llem.campaign import campaign_from
from llem.cluster.doctor import FAIL, OK, WARN
from llem.cluster.doctor.login import examine, image_rows, kernel_rows, meter_rows, site_rows
from llem.cluster.doctor.node import clock_interval, clock_row, job_rows, parse_host
from llem.cluster.doctor.place import file_system, place_rows, probe, room_rows
from llem.cluster.doctor.probe import PACKAGES
from llem.cluster.doctor.scheduler import (
    SchedulerFacts,
    parse_gres,
    parse_partitions,
    scheduler_rows,
)
from llem.cluster.image import digest

# As the test cluster (SLURM 22.05) answers.
FARM = SchedulerFacts(
    version="slurm-wlm 22.05.8",
    partitions="gpu*|infinite|4|gpu:2|(null)|4|8000|up\n",
    config="Configuration data as of 2026-11-27T00:10:00\nMaxArraySize            = 1001\n",
    associations="Account|Partition|QOS|MaxSubmit|GrpSubmit|MaxWall|MaxTRES\nllem||normal||||\n",
    qos="Name|MaxWall|MaxSubmitPU|GrpSubmit|MaxTRES\nnormal||||\n",
    accounting=True,
)
# In the shape of a large cluster: typed GPUs, features, a QOS with limits.
LARGE = SchedulerFacts(
    version="slurm 25.05.1",
    partitions=(
        "gpu*|2-00:00:00|63|gpu:a100:4(S:0-1)|a100,nvme|72|491520|up\n"
        "gpu*|2-00:00:00|88|gpu:h100:4(S:0,1)|h100|64|737280+|up\n"
        "cpu|5-00:00:00|500|(null)|rome|128|229376|up\n"
        "old|1:00:00|4|gpu:v100:2|(null)|40|1|down\n"
        "a line of another kind\n"
    ),
    config="MaxArraySize = 10001\n",
    associations=(
        "Account|Partition|QOS|MaxSubmit|GrpSubmit|MaxWall|MaxTRES\n"
        "proj_a||normal,long|200|||\nproj_b||normal|400|||\n"
    ),
    qos="Name|MaxWall|MaxSubmitPU|GrpSubmit|MaxTRES\nnormal|1-00:00:00|100||\nlong|||| \n",
    accounting=False,
)


def site_of(**values):
    site = {"name": "s", "gpu": {"name": "cpu"}, "gpu_request": "gres", **values}
    return campaign_from({"name": "x", "target": "1e20", "site": site}).site


def by_name(rows):
    return {row.name: row for row in rows}


def scheduler(facts, environ=None, **site):
    return by_name(scheduler_rows(site_of(**site), facts, environ=environ or {}))


def test_a_site_that_says_what_its_scheduler_says_is_in_order():
    rows = scheduler(FARM, partition="gpu", nodes=4, gpus_per_node=2, account="LLEM")
    assert {row.state for row in rows.values()} == {OK}, rows
    assert rows["GPUs"].seen == "2 x gpu to a node"
    assert rows["partition"].seen == "gpu: 4 nodes, time no limit"


@pytest.mark.parametrize(
    ("site", "name", "state", "remedy"),
    [
        ({"partition": "gppu"}, "partition", FAIL, "did you mean 'gpu'?"),
        ({"nodes": 200}, "partition", FAIL, "nodes: 151"),
        ({"limits": {"time": "3-00:00:00"}}, "partition", FAIL, "limits: {time: 172800s}"),
        ({"partition": "old", "limits": {"time": "1h"}}, "partition", FAIL, "wait, or ask"),
        ({"partition": "cpu"}, "GPUs", FAIL, "gpu_request: none"),
        ({"gpus_per_node": 8}, "GPUs", FAIL, "gpus_per_node: 4"),
        ({"gpu_type": "a10"}, "GPUs", FAIL, "did you mean 'a100'?"),
        ({"gpu_type": "h100", "gpus_per_node": 4}, "GPUs", OK, ""),
        ({"gpus_per_node": 4, "cpus_per_rank": 20}, "CPUs", FAIL, "cpus_per_rank: 18"),
        ({"gpus_per_node": 4, "gpu": {"name": "H100"}}, "CPUs", WARN, "cpus_per_rank: 16"),
        ({"constraint": "h100&nvme"}, "constraint", OK, ""),
        ({"constraint": "gpu&hbm80g"}, "constraint", FAIL, "features: a100, h100, nvme"),
        ({"limits": {"array_size": 20000}}, "MaxArraySize", FAIL, "limits: {array_size: 10001}"),
        ({"account": "proj_c"}, "account", FAIL, "one of: proj_a, proj_b"),
        ({"needs_account": True}, "account", FAIL, "one of: proj_a, proj_b"),
        ({"qos": "norml"}, "QOS", FAIL, "did you mean 'normal'?"),
        ({"qos": "normal", "limits": {"time": "2-00:00:00"}}, "QOS", FAIL, "{time: 86400s}"),
        ({"qos": "long"}, "QOS", OK, ""),
        ({}, "MaxSubmitJobs", WARN, "limits: {submit: 100}"),
        ({"limits": {"submit": 90}}, "MaxSubmitJobs", OK, ""),
        ({"account": "proj_b", "qos": "long"}, "MaxSubmitJobs", WARN, "limits: {submit: 400}"),
        ({}, "accounting", WARN, "llem works without"),
    ],
)
def test_what_differs_from_the_scheduler_is_told_with_the_key_to_change(site, name, state, remedy):
    row = scheduler(LARGE, **site)[name]
    assert row.state == state, row
    assert remedy in row.remedy, row


@pytest.mark.parametrize(
    ("site", "names"),
    [
        ({}, set()),
        ({"gpu": {"name": "H100"}}, {"CPUs"}),
        ({"gpu": {"name": "H100"}, "cpus_per_rank": 2}, set()),
        ({"gpu": {"name": "H100"}, "executor": "local"}, set()),
        ({"limits": {"time": "90s"}}, {"time limit"}),
        ({"limits": {"time": "20s"}}, {"time limit"}),
    ],
)
def test_what_a_job_will_not_get_as_it_was_meant_is_told(site, names):
    rows = by_name(site_rows(site_of(**site)))
    assert set(rows) == names and all(row.remedy for row in rows.values())
    # What the scheduler's own figures said is not said again.
    assert site_rows(site_of(**site), told=names) == []


def test_the_account_may_come_from_slurms_own_variable():
    row = scheduler(LARGE, {"SBATCH_ACCOUNT": "proj_a"}, needs_account=True)["account"]
    assert (row.state, row.seen) == (OK, "proj_a")


def test_what_accounting_does_not_tell_is_no_fault():
    from dataclasses import replace

    silent = replace(LARGE, associations=None, qos=None)
    rows = scheduler(silent, account="proj_z", qos="any")
    assert rows["account"].state == WARN
    assert "QOS" not in rows and "MaxSubmitJobs" not in rows


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gpu:2", {"": 2}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:h100:4(S:0,1),shard:16", {"h100": 4}),
        ("gpu:a100:1,gpu:v100:2,nvme:1", {"a100": 1, "v100": 2}),
        ("gpu:2g.10gb:3", {"2g.10gb": 3}),
        ("craynetwork:4", {}),
        ("(null)", {}),
        ("gpu", {}),
    ],
)
def test_gpus_of_a_node_are_read_from_its_gres(text, gpus):
    assert parse_gres(text) == gpus


def test_lines_that_are_no_partition_are_left_out():
    lines = parse_partitions(LARGE.partitions)
    assert [line.name for line in lines] == ["gpu", "gpu", "cpu", "old"]
    assert lines[0].features == {"a100", "nvme"} and not lines[3].up


MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /tmp tmpfs rw 0 0
10.0.0.1@o2ib:/scratch /pfs/lustre\\040one lustre rw,flock 0 0
home:/home /home nfs4 rw 0 0
/dev/sda1 /home/me/local ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/pfs/lustre one/c", "lustre"),
        ("/home/me", "nfs4"),
        ("/home/me/local/x", "ext4"),
        ("/home/me/locally", "nfs4"),
        ("/tmp", "tmpfs"),
        ("/", "overlay"),
        ("/opt", "overlay"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_longest_mount(path, kind):
    assert file_system(path, MOUNTS) == kind


def test_a_real_folder_keeps_what_llem_relies_on_and_stays_clean(tmp_path):
    facts = probe(tmp_path / "not" / "there" / "yet")
    assert facts["path"] == str(tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    rows = by_name(place_rows(facts))
    assert {"write, fsync, rename", "locks", "HDF5 records", "free space"} == set(rows)
    assert rows["locks"].state == rows["HDF5 records"].state == OK
    assert list(tmp_path.iterdir()) == []


GOOD = {
    "path": "/p", "type": "lustre", "fsync_s": 0.002, "torn_renames": 0, "lock": "ok",
    "hdf5": "ok", "free_bytes": 1e12, "free_inodes": 10**6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "state"),
    [
        ({"fsync_s": 0.6}, "write, fsync, rename", WARN),
        ({"torn_renames": 2}, "rename", FAIL),
        ({"lock": "flock is refused: [Errno 38]"}, "locks", FAIL),
        ({"hdf5": "unable to lock file"}, "HDF5 records", FAIL),
        ({"hdf5": "warn: a live record"}, "HDF5 records", WARN),
        ({"free_bytes": 1e9}, "free space", WARN),
        ({"free_bytes": 1e6}, "free space", FAIL),
        ({"free_inodes": 12}, "free space", WARN),
        ({"error": "Read-only file system"}, "filesystem", FAIL),
    ],
)
def test_a_folder_that_lacks_something_is_told(changes, name, state):
    row = by_name(place_rows({**GOOD, **changes}))[name]
    assert row.state == state
    assert row.remedy or state != FAIL


def test_a_file_system_without_inodes_to_count_is_no_fault():
    (row,) = room_rows("home", {"path": "/h", "free_bytes": 1e12, "free_inodes": None})
    assert (row.state, row.seen) == (OK, "1 TB in /h")


def test_an_image_is_held_against_the_plans_digest(tmp_path):
    image = tmp_path / "x.sif"
    assert image_rows(image, "")[0].state == FAIL
    image.write_bytes(b"one")
    planned = f"sha256:{digest(image)}"
    assert image_rows(image, planned)[0].seen.endswith("as planned")
    image.write_bytes(b"two")
    (row,) = image_rows(image, planned)
    assert row.state == FAIL and "the plan has" in row.seen


def test_what_the_kernel_lacks_for_images_is_a_warning():
    rows = by_name(kernel_rows(fuse=False, namespaces=0))
    assert {row.state for row in rows.values()} == {WARN}
    assert {row.state for row in kernel_rows(fuse=True, namespaces=None)} == {OK}


def test_a_model_of_energy_is_told_as_no_counter():
    counter = {"name": "H100", "domain": "gpu", "source": "nvml", "quality": "counter"}
    model = {"name": "cpu", "domain": "package", "source": "cpu-model", "quality": "model"}
    assert [row.state for row in meter_rows([counter], [])] == [OK]
    assert [row.remedy for row in meter_rows([model], ["no NVML"])] == ["no NVML"]
    assert meter_rows([], [])[0].seen == "no meter"


def test_processors_have_a_row_where_they_are_counted_or_closed_to_users():
    gpu = {"name": "H100", "domain": "gpu", "source": "nvml", "quality": "counter"}
    package = {"name": "p", "domain": "package", "source": "rapl", "quality": "counter"}
    closed = "rapl: package-0: permission denied; ask your site"
    energy, processors = meter_rows([gpu, package], [])
    assert (processors.state, processors.seen) == (OK, "package, by rapl")
    energy, processors = meter_rows([gpu], [closed])
    assert energy.state == OK and processors.state == WARN
    assert (processors.seen, processors.remedy) == (
        "rapl: package-0: permission denied", "ask your site"
    )  # fmt: skip
    [energy, _] = meter_rows([package], ["the job holds 4 GPUs here, 0 are measured"])
    assert energy.state == WARN


def test_this_machine_is_examined_for_a_site_that_runs_here(tmp_path):
    site = site_of(executor="local", gpu_request="none")
    rows = by_name(examine(site, folder=tmp_path))
    assert {"python", "training", "locks", "home", "temporary files", "energy"} <= set(rows)
    assert "scheduler" not in rows


@pytest.mark.parametrize(
    ("offset", "there", "back"), [(0.0, 0.05, 0.02), (5.0, 0.5, 0.1), (-3.0, 0.01, 2.0)]
)
def test_the_clocks_difference_lies_within_its_bounds(offset, there, back):
    # The node's clock is ahead by `offset`; files take `there` and `back` to be seen.
    ping = 100.0
    seen = ping - offset + there
    sent = seen + 0.001
    stamps = {"ping": ping, "seen": seen, "sent": sent, "got": sent + back + offset}
    low, high = clock_interval(stamps)
    assert low <= offset <= high
    assert high - low == pytest.approx(there + back)
    assert clock_row(stamps).state == (OK if low <= 1 and high >= -1 else WARN)


HOST = "node=n1\nfuse=yes\nnamespaces=1000\nruntime=apptainer version 1.4.5\n"
NODE = {
    "node": "n1", "llem": __version__, "python": "3.11.2", "image": "llem.sif",
    "packages": dict.fromkeys(PACKAGES, "1"),
    "place": GOOD, "home": {"path": "/h", "free_bytes": 1e12, "free_inodes": None},
    "temporary": {"path": "/tmp", "free_bytes": 1e12, "free_inodes": None}, "lock": "shared",
    "clock": {"ping": 1.0, "seen": 1.1, "sent": 1.1, "got": 1.2},
    "meters": {"devices": [{"name": "H100", "domain": "gpu", "source": "nvml",
                            "quality": "counter"}] * 2,
               "reasons": []},
    "torch": {"count": 2, "names": ["H100"], "runtime": "CUDA 12.8"},
}  # fmt: skip
RANKS = [
    {"node": "n1", "task": 0, "cpus": [0, 1], "omp_threads": "2",
     "meeting": {"host": "n1", "port": 20001, "met": 1}},
    {"node": "n1", "task": 1, "cpus": [2, 3], "omp_threads": "2",
     "meeting": {"host": "n1", "port": 20001, "address": "10.0.0.1", "rtt_s": 2e-5}},
]  # fmt: skip
NODE_SITE = {
    "gpus_per_node": 2, "cpus_per_rank": 2, "gpu": {"name": "H100"},
    "container": {"image": "/llem.sif"},
}  # fmt: skip


def told(host=HOST, node=None, ranks=RANKS):
    nodes = [{**NODE, **(node or {})}]
    return job_rows(site_of(**NODE_SITE), host=parse_host(host), nodes=nodes, ranks=ranks)


def test_a_node_in_order_has_no_row_that_is_not():
    rows = told()
    assert {row.state for row in rows} == {OK}, [row for row in rows if row.state != OK]
    assert [row.where for row in rows] == ["n1"] * (len(rows) - 1) + ["between ranks"]
    assert rows[-1].seen == (
        "2 ranks on 1 node(s) met at n1:20001 (10.0.0.1), 20 µs there and back"
    )


@pytest.mark.parametrize(
    ("node", "name", "state", "words"),
    [
        ({"image": ""}, "image", FAIL, "outside of an image"),
        ({"llem": "0.0.1"}, "llem", FAIL, "0.0.1 there"),
        ({"packages": {**NODE["packages"], "torch": None}}, "training", FAIL, "torch"),
        ({"packages": {**NODE["packages"], "h5py": None}}, "python", FAIL, "h5py"),
        ({"torch": {"count": 0, "names": [], "runtime": "CUDA 12.8"}}, "GPUs", FAIL, "0 of 2"),
        ({"torch": {"error": "ImportError: x"}}, "GPUs", FAIL, "ImportError"),
        ({"meters": {"error": "OSError: x"}}, "energy", FAIL, "OSError"),
        ({"meters": {**NODE["meters"], "devices": NODE["meters"]["devices"][:1]}}, "energy", FAIL,
         "1 of 2 GPUs"),
        ({"meters": {"devices": [], "reasons": ["no NVML"]}}, "energy", WARN, "no meter"),
        ({"place": {"error": "OSError: read-only"}}, "filesystem", FAIL, "read-only"),
        ({"lock": "local"}, "locks across nodes", WARN, "its own node"),
        ({"lock": "refused: [Errno 38]"}, "locks across nodes", WARN, "refused"),
        ({"clock": {"error": "TimeoutError: 15 s"}}, "clock", WARN, "15 s"),
        ({"clock": {"ping": 9.0, "seen": 1.1, "sent": 1.1, "got": 9.2}}, "clock", WARN, "+8"),
    ],
)  # fmt: skip
def test_what_a_node_lacks_is_told(node, name, state, words):
    rows = [row for row in told(node=node) if row.name == name]
    assert (rows[-1].state, words in rows[-1].seen) == (state, True), rows


@pytest.mark.parametrize(
    ("ranks", "name", "state", "words"),
    [
        ([RANKS[0], {**RANKS[1], "cpus": [1, 2]}], "CPUs", WARN, "share"),
        ([RANKS[0], {**RANKS[1], "cpus": [2]}], "CPUs", WARN, "the site says 2"),
        ([RANKS[0], {**RANKS[1], "meeting": {"error": "TimeoutError: n1:20001: refused"}}],
         "rendezvous", FAIL, "rank 1 on n1"),
        ([{**RANKS[0], "meeting": {**RANKS[0]["meeting"], "met": 0}}, RANKS[1]], "rendezvous", FAIL,
         "0 of 1 ranks"),
        ([RANKS[1], {**RANKS[1], "task": 2}], "rendezvous", FAIL, "0 of 1"),
    ],
)  # fmt: skip
def test_ranks_that_share_cpus_or_do_not_meet_are_told(ranks, name, state, words):
    row = by_name(told(ranks=ranks))[name]
    assert (row.state, words in row.seen) == (state, True), row


@pytest.mark.parametrize(
    "host",
    [HOST.replace("apptainer version 1.4.5", "bash: apptainer: command not found"), "node=n1\n"],
)
def test_a_runtime_that_is_not_on_the_node_is_told_though_nothing_else_was(host):
    rows = by_name(job_rows(site_of(**NODE_SITE), host=parse_host(host), nodes=[], ranks=[]))
    assert rows["container"].state == FAIL


def test_three_ranks_meet_as_those_of_a_training_do(tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    (tmp_path / "site.json").write_text('{"environment": {}, "overlap": true, "gpus": false}')
    base = {
        **os.environ,
        "PYTHONPATH": str(Path(llem.__file__).parents[1]),
        "MASTER_PORT": str(port),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "3",
        "SLURMD_NODENAME": "n1",
        "OMP_NUM_THREADS": "1",
    }
    call = [sys.executable, "-m", "llem.cluster.doctor.probe", "--manifest", "site.json"]
    running = [
        subprocess.Popen(call, cwd=tmp_path, env={**base, "SLURM_PROCID": str(rank)})
        for rank in (2, 1, 0)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    ranks = [json.loads((tmp_path / f"rank-{n}.json").read_text()) for n in range(3)]
    assert [rank["meeting"].get("met") for rank in ranks] == [2, None, None]
    row = by_name(job_rows(site_of(), host={}, nodes=[], ranks=ranks))["rendezvous"]
    assert row.state == OK, row
