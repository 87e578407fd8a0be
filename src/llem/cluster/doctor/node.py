"""What a node told from inside the image, as rows. Pure functions of the facts of `probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llem._numerals import format_si
from llem._version import __version__
from llem.campaign import Site
from llem.cluster.check import FAIL, OK, WARN, Check, at
from llem.cluster.doctor.login import kernel_rows, meter_rows, training_rows
from llem.cluster.doctor.place import LITTLE_HOME_BYTES, place_rows, room_rows

# llem puts nodes in order by each other's records, not by clocks; people read wall times.
CLOCK_S = 1.0


def parse_host(text: str) -> dict[str, str]:
    """`key=value` lines that the batch script wrote outside of the image."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def host_rows(site: Site, host: Mapping[str, str]) -> list[Check]:
    """The node outside of the image: the runtime, and what it needs of the kernel."""
    if site.image is None:
        return []
    runtime = host.get("runtime", "")
    rows = []
    if runtime and "not found" not in runtime:
        rows.append(Check("container", OK, runtime))
    else:
        rows.append(Check("container", FAIL, runtime or "no answer", "modules: [the runtime's]"))
    namespaces = host.get("namespaces", "")
    count = int(namespaces) if namespaces.isdigit() else None
    return rows + kernel_rows(fuse=host.get("fuse") == "yes", namespaces=count)


def node_rows(site: Site, facts: Mapping[str, Any]) -> list[Check]:
    """Everything that a node's sampler told."""
    inside = facts["image"] or "no image"
    rows = [
        Check("image", OK, f"started: {inside}, Python {facts['python']}, llem {facts['llem']}")
    ]
    if site.image and not facts["image"]:
        rows = [
            Check("image", FAIL, "the probe ran outside of an image", "see the site's template")
        ]
    if facts["llem"] != __version__:
        text = f"{facts['llem']} there, {__version__} here"
        rows.append(Check("llem", FAIL, text, "llem image build"))
    packages = facts["packages"]
    rows += training_rows(*(packages[name] for name in ("torch", "accelerate", "deepspeed")))
    missing = [n for n in ("h5py", "numpy", "submitit") if not packages[n]]
    if missing:
        rows.append(Check("python", FAIL, f"missing: {', '.join(missing)}", "llem image build"))
    rows += device_rows(site, facts["meters"], facts["torch"])
    place = facts["place"]
    if set(place) == {"error"}:
        rows.append(Check("filesystem", FAIL, place["error"], "bind it: container: {binds: [...]}"))
    else:
        rows += place_rows(place)
    rows.append(lock_row(facts["lock"]))
    rows += room_rows("home", facts["home"], little=LITTLE_HOME_BYTES, none=0)
    rows += room_rows("temporary files", facts["temporary"], little=LITTLE_HOME_BYTES, none=0)
    rows.append(clock_row(facts["clock"]))
    return at(facts["node"], rows)


def device_rows(
    site: Site, meters: Mapping[str, Any], torch: Mapping[str, Any] | None
) -> list[Check]:
    """Energy counters as the sampler sees them, and GPUs as torch does."""
    rows = []
    if "error" in meters:
        rows.append(Check("energy", FAIL, meters["error"], "llem image build"))
    else:
        rows += meter_rows(meters["devices"], meters["reasons"])
        counted = [d for d in meters["devices"] if d["source"] == "nvml"]
        if torch is not None and 0 < len(counted) < site.gpus_per_node:
            text = f"the sampler sees {len(counted)} of {site.gpus_per_node} GPUs"
            rows.append(Check("energy", FAIL, text, "its step must see all: gpu_bind, gpu_request"))
    if torch is None:
        return rows
    if "error" in torch:
        rows.append(Check("GPUs", FAIL, torch["error"], "llem image verify IMAGE"))
    elif torch["count"] < site.gpus_per_node:
        text = f"torch ({torch['runtime']}) sees {torch['count']} of {site.gpus_per_node} GPUs"
        rows.append(
            Check("GPUs", FAIL, text, "container: {gpu: nv} or {gpu: rocm}; an image of that kind")
        )
    else:
        text = f"{torch['count']} x {', '.join(torch['names'])}, {torch['runtime']}"
        rows.append(Check("GPUs", OK, text))
    return rows


def lock_row(told: str) -> Check:
    """Whether a lock that the login node holds is one on this node, too."""
    if told == "shared":
        return Check("locks across nodes", OK, "the login node's lock is seen here")
    if told == "local":
        return Check(
            "locks across nodes", WARN, "a lock holds on its own node only",
            "type a campaign's commands on one login node at a time",
        )  # fmt: skip
    return Check("locks across nodes", WARN, told, "ask for the mount option flock")


def clock_interval(stamps: Mapping[str, float]) -> tuple[float, float]:
    """Bounds of the node's clock minus the login node's, seconds.

    What the node wrote at `ping` was not seen before, and what was `sent` not got before.
    """
    return stamps["ping"] - stamps["seen"], stamps["got"] - stamps["sent"]


def clock_row(stamps: Mapping[str, Any]) -> Check:
    """The clock of a node against the login node's; warned of where it is surely off."""
    if "error" in stamps:
        return Check("clock", WARN, stamps["error"], "the shared folder is slow to show new files")
    low, high = clock_interval(stamps)
    middle, half = (low + high) / 2, (high - low) / 2
    seen = f"{middle:+.2f} s of the login node's, within {half:.2f} s"
    # Bounds that cross each other mean that a clock was set in between.
    if low > CLOCK_S or high < -CLOCK_S or half < 0:
        return Check("clock", WARN, seen, "tell your site: its nodes need NTP")
    return Check("clock", OK, seen)


def job_rows(
    site: Site,
    *,
    host: Mapping[str, str],
    nodes: Sequence[Mapping[str, Any]],
    ranks: Sequence[Mapping[str, Any]],
) -> list[Check]:
    """All that was told, node by node; then whether the ranks met."""
    rows = []
    names = {facts["node"] for facts in (*nodes, *ranks)} | (
        {host["node"]} if "node" in host else set()
    )
    for name in sorted(names):
        if host.get("node") == name:
            rows += at(name, host_rows(site, host))
        for facts in nodes:
            if facts["node"] == name:
                rows += node_rows(site, facts)
        if mine := [rank for rank in ranks if rank["node"] == name]:
            rows += at(name, [affinity_row(site, mine)])
    if len(ranks) > 1:
        rows += at("between ranks", [meeting_row(ranks)])
    return rows


def affinity_row(site: Site, ranks: Sequence[Mapping[str, Any]]) -> Check:
    """The CPUs of a node's ranks: enough, and each rank its own."""
    fewest = min(len(rank["cpus"]) for rank in ranks)
    every = [cpu for rank in ranks for cpu in rank["cpus"]]
    threads = ", ".join(sorted({str(rank["omp_threads"]) for rank in ranks}))
    seen = f"{len(ranks)} rank(s) of {fewest} CPUs, OMP_NUM_THREADS {threads}"
    if len(set(every)) < len(every):
        text = f"{seen}; ranks share CPUs"
        return Check("CPUs", WARN, text, "cpu_bind: cores, or the masks of your site's manual")
    if fewest < site.cpus_per_rank:
        text = f"{seen}; the site says {site.cpus_per_rank}"
        return Check("CPUs", WARN, text, f"cpus_per_rank: {fewest}")
    return Check("CPUs", OK, f"{seen}, each its own")


def meeting_row(ranks: Sequence[Mapping[str, Any]]) -> Check:
    """Whether every rank reached rank 0 on the port that a training would take."""
    remedy = "which interface joins nodes? a firewall between them stops every training"
    nodes = len({rank["node"] for rank in ranks})
    failed = [r for r in ranks if "error" in (r["meeting"] or {})]
    if failed:
        told = failed[0]
        text = f"rank {told['task']} on {told['node']}: {told['meeting']['error']}"
        return Check("rendezvous", FAIL, text, remedy)
    first = next((r["meeting"] for r in ranks if r["task"] == 0), None)
    others = [r["meeting"] for r in ranks if r["task"] != 0 and r["meeting"]]
    if first is None or first["met"] < len(ranks) - 1 or not others:
        met = first["met"] if first else 0
        return Check("rendezvous", FAIL, f"{met} of {len(ranks) - 1} ranks met rank 0", remedy)
    slowest = max(meeting["rtt_s"] for meeting in others)
    text = (
        f"{len(ranks)} ranks on {nodes} node(s) met at {first['host']}:{first['port']} "
        f"({others[-1]['address']}), {format_si(slowest, 's')} there and back"
    )
    return Check("rendezvous", OK, text)
