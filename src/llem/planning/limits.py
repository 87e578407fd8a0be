"""What the scheduler allows, read from its own words: pure functions of captured text.

Asking is the work of `llem.cluster.scheduler.slurm`; what was answered here narrows the site's
limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llem.campaign import Site

_NO_LIMIT = frozenset({"", "UNLIMITED", "INFINITE", "N/A", "(NULL)", "NONE", "PARTITION_LIMIT"})


@dataclass(frozen=True)
class ClusterLimits:
    """Limits as a cluster states them; None where it states none. `source` names the commands."""

    array_size: int | None = None
    time_s: int | None = None
    nodes: int | None = None
    submit: int | None = None
    source: str = ""

    def within(self, other: ClusterLimits) -> ClusterLimits:
        """Both together: the narrower of each."""
        sources = [s for s in (self.source, other.source) if s]
        return ClusterLimits(
            array_size=_least(self.array_size, other.array_size),
            time_s=_least(self.time_s, other.time_s),
            nodes=_least(self.nodes, other.nodes),
            submit=_least(self.submit, other.submit),
            source=", ".join(dict.fromkeys(sources)),
        )


def parse_config(text: str) -> ClusterLimits:
    """`scontrol show config`: MaxArraySize caps an array's INDEX, so 1001 allows 0 to 1000."""
    found = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    # 0 says that there are no arrays here: an array of one element is still a job.
    size = max(1, int(found[1])) if found else None
    return ClusterLimits(array_size=size, source="scontrol show config")


def parse_partition(text: str) -> ClusterLimits:
    """`scontrol show partition NAME`: MaxTime, and the nodes that one job may take."""
    values = dict(re.findall(r"(\w+)=(\S*)", text))
    limits = ClusterLimits(
        time_s=parse_limit_s(values.get("MaxTime", "")),
        nodes=_least(_count(values.get("MaxNodes")), _count(values.get("TotalNodes"))),
    )
    return replace(limits, source="scontrol show partition")


def parse_table(text: str) -> ClusterLimits:
    """`sacctmgr --parsable2 show assoc` or `show qos` with its header: submitted jobs, nodes, time.

    Of several rows the widest counts, since which of them a job will use is not known here.
    """
    lines = [line.split("|") for line in text.strip().splitlines() if "|" in line]
    if not lines:
        return ClusterLimits()
    rows = [dict(zip(lines[0], row, strict=False)) for row in lines[1:]]
    return ClusterLimits(
        time_s=_widest([parse_limit_s(r.get("MaxWall", "")) for r in rows]),
        nodes=_widest([_tres_nodes(r) for r in rows]),
        submit=_widest(
            [
                _least(*(_count(r.get(k)) for k in ("MaxSubmit", "MaxSubmitPU", "GrpSubmit")))
                for r in rows
            ]
        ),
        source="sacctmgr",
    )


def parse_limit_s(text: str) -> int | None:
    """Seconds of SLURM's `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours[:..]`.

    None where there is no limit, or none that can be read.
    """
    text = text.strip()
    if text.upper() in _NO_LIMIT:
        return None
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def narrowed(site: Site, limits: ClusterLimits) -> Site:
    """The site with the cluster's limits where they are narrower than its own.

    MaxArraySize is the cluster's to say: it also widens what the site has by default.
    """
    own = site.limits
    changes: Mapping[str, int | None] = {
        "time": _least(own.time, limits.time_s),
        "array_size": limits.array_size or own.array_size,
        "submit": _least(own.submit, limits.submit),
    }
    nodes = _least(site.nodes, limits.nodes)
    return site.model_copy(update={"nodes": nodes, "limits": own.model_copy(update=changes)})


def _tres_nodes(row: Mapping[str, str]) -> int | None:
    """Nodes of a `MaxTRES` such as `cpu=512,node=8`."""
    found = re.search(r"\bnode=(\d+)", row.get("MaxTRES", "") or row.get("MaxTRESPerJob", ""))
    return int(found[1]) if found else None


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _least(*values: int | None) -> int | None:
    known = [v for v in values if v is not None]
    return min(known, default=None)


def _widest(values: list[int | None]) -> int | None:
    if not values or any(v is None for v in values):
        return None
    return max(v for v in values if v is not None)
