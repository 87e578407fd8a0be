"""What the scheduler says of itself, held against what the site says of it."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llem._numerals import format_duration
from llem.campaign import Site
from llem.cluster.check import FAIL, OK, WARN, Check
from llem.cluster.scheduler.gate import run_program
from llem.errors import ClusterError, LlemError, UnavailableError, did_you_mean
from llem.planning.limits import parse_config, parse_limit_s, parse_table

PARTITIONS = "%P|%l|%D|%G|%f|%c|%m|%a"
ASSOCIATIONS = "Account,Partition,QOS,MaxSubmit,GrpSubmit,MaxWall,MaxTRES"
QOS = "Name,MaxWall,MaxSubmitPU,GrpSubmit,MaxTRES"


@dataclass(frozen=True)
class SchedulerFacts:
    """The scheduler's own words; None where a command was refused."""

    version: str
    partitions: str
    config: str
    associations: str | None
    qos: str | None
    accounting: bool


@dataclass(frozen=True)
class Partition:
    """A line of sinfo: nodes of one kind in a partition."""

    name: str
    default: bool
    time_s: int | None
    nodes: int
    gpus: Mapping[str, int]
    features: frozenset[str]
    cpus: int
    up: bool


def ask_scheduler() -> SchedulerFacts:
    """Six short questions. Raises UnavailableError, ClusterError where there is no scheduler."""
    from llem.cluster.scheduler.slurm import has_accounting

    def table(*words: str) -> str | None:
        try:
            return run_program(["sacctmgr", "--parsable2", "show", *words])
        except (ClusterError, UnavailableError):
            return None

    return SchedulerFacts(
        version=run_program(["sinfo", "--version"]).strip(),
        partitions=run_program(["sinfo", "--noheader", f"--format={PARTITIONS}"]),
        config=run_program(["scontrol", "show", "config"]),
        associations=table("assoc", f"user={getpass.getuser()}", f"format={ASSOCIATIONS}"),
        qos=table("qos", f"format={QOS}"),
        accounting=has_accounting(),
    )


def examine_scheduler(site: Site) -> list[Check]:
    """Ask, and tell."""
    try:
        facts = ask_scheduler()
    except LlemError as error:
        return [Check("scheduler", FAIL, error.message, error.remedy or "is slurmctld up?")]
    return scheduler_rows(site, facts, environ=os.environ)


def scheduler_rows(site: Site, facts: SchedulerFacts, *, environ: Mapping[str, str]) -> list[Check]:
    """All that can be told of a site from its scheduler's words."""
    lines = parse_partitions(facts.partitions)
    names = sorted({line.name for line in lines})
    rows = [Check("scheduler", OK, f"{facts.version}; partitions: {', '.join(names[:8])}")]
    rows += partition_rows(site, lines)
    rows += array_rows(site, facts.config)
    rows += account_rows(site, facts.associations, environ=environ)
    rows += submit_rows(site, facts)
    if facts.accounting:
        rows.append(Check("accounting", OK, "sacct answers"))
    else:
        rows.append(
            Check("accounting", WARN, "no accounting", "llem works without; causes say less")
        )
    return rows


def parse_partitions(text: str) -> list[Partition]:
    """Lines of `sinfo --format=PARTITIONS`; what cannot be read is left out."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 8 or not parts[2].isdigit():
            continue
        features = frozenset(parts[4].split(",")) - {"(null)", ""}
        found.append(
            Partition(
                name=parts[0].rstrip("*"),
                default=parts[0].endswith("*"),
                time_s=parse_limit_s(parts[1]),
                nodes=int(parts[2]),
                gpus=parse_gres(parts[3]),
                features=features,
                cpus=int(parts[5].rstrip("+")) if parts[5].rstrip("+").isdigit() else 0,
                up=parts[7] == "up",
            )
        )
    return found


def parse_gres(text: str) -> dict[str, int]:
    """GPUs of a node by type: `gpu:a100:4(S:0-1),gpu:1` gives {"a100": 4, "": 1}."""
    found: dict[str, int] = {}
    # Sockets stand in brackets, and may hold commas.
    for entry in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *kind, count = entry.strip().split(":") if ":" in entry else (entry, "")
        if name == "gpu" and count.isdigit():
            found[":".join(kind)] = found.get(":".join(kind), 0) + int(count)
    return found


def partition_rows(site: Site, lines: list[Partition]) -> list[Check]:
    """The partition: is it there, and as large, long and equipped as the site says?"""
    names = sorted({line.name for line in lines})
    if site.partition:
        mine = [line for name in site.partition.split(",") for line in lines if line.name == name]
    else:
        mine = [line for line in lines if line.default] or lines
    if not mine:
        hint = did_you_mean(site.partition or "", names) or f"one of: {', '.join(names)}"
        return [Check("partition", FAIL, f"no partition {site.partition!r}", hint)]
    name, nodes = mine[0].name, sum(line.nodes for line in mine)
    times = [line.time_s for line in mine]
    longest = None if None in times else max(t for t in times if t is not None)
    limit = "no limit" if longest is None else format_duration(longest)
    seen = f"{name}: {nodes} node{'s' if nodes > 1 else ''}, time {limit}"
    rows = []
    if not any(line.up for line in mine):
        rows.append(Check("partition", FAIL, f"{seen}, and it is down", "wait, or ask your site"))
    elif nodes < site.nodes:
        rows.append(
            Check("partition", FAIL, f"{seen}; the site says {site.nodes} nodes to a job",
                  f"nodes: {nodes}")
        )  # fmt: skip
    elif longest is not None and longest < site.limits.time:
        text = f"{seen}; the site says {format_duration(site.limits.time)}"
        rows.append(Check("partition", FAIL, text, f"limits: {{time: {longest}s}}"))
    else:
        rows.append(Check("partition", OK, seen))
    if site.gpu_request != "none":
        rows.append(_gpu_row(site, mine))
    most = max(line.cpus for line in mine)
    wanted = site.gpus_per_node * site.cpus_per_rank
    if most and wanted > most:
        text = f"{most} to a node; the site asks for {site.gpus_per_node} x {site.cpus_per_rank}"
        rows.append(
            Check("CPUs", FAIL, text, f"cpus_per_rank: {max(1, most // site.gpus_per_node)}")
        )
    # Of nodes of several kinds, what any of them can give.
    least = min((line.cpus for line in mine if line.cpus), default=0)
    if least >= 2 * wanted:
        rows += [
            Check("CPUs", WARN, f"{text}; a node has {least} for {site.gpus_per_node} rank(s)",
                  f"cpus_per_rank: {least // site.gpus_per_node}")
            for key, text, _ in site.doubts() if key == "cpus_per_rank"
        ]  # fmt: skip
    if site.constraint:
        known = set().union(*(line.features for line in mine))
        words = set(re.findall(r"[A-Za-z0-9_.-]+", site.constraint))
        missing = sorted(word for word in words - known if not word.isdigit())
        if missing:
            text = f"no node has the feature {', '.join(missing)}"
            rows.append(
                Check("constraint", FAIL, text, f"features: {', '.join(sorted(known)) or 'none'}")
            )
        else:
            rows.append(Check("constraint", OK, site.constraint))
    return rows


def _gpu_row(site: Site, mine: list[Partition]) -> Check:
    kinds = {kind: count for line in mine for kind, count in line.gpus.items()}
    seen = ", ".join(f"{count} x {kind or 'gpu'}" for kind, count in kinds.items())
    if not kinds:
        remedy = "another partition; or gpu_request: none, where whole nodes are given out"
        return Check("GPUs", FAIL, "no gres of kind gpu in this partition", remedy)
    if site.gpu_type and site.gpu_type not in kinds:
        near = did_you_mean(site.gpu_type, list(kinds)) or "leave `gpu_type` out"
        return Check("GPUs", FAIL, f"{seen}; no type {site.gpu_type!r}", near)
    most = (
        kinds[site.gpu_type]
        if site.gpu_type
        else max(max(kinds.values()), sum(mine[0].gpus.values()))
    )
    if most < site.gpus_per_node:
        text = f"{seen}; the site says {site.gpus_per_node} to a node"
        return Check("GPUs", FAIL, text, f"gpus_per_node: {most}")
    return Check("GPUs", OK, f"{seen} to a node")


def array_rows(site: Site, config: str) -> list[Check]:
    """MaxArraySize against the site's."""
    largest = parse_config(config).array_size
    if largest is None:
        return []
    if largest < site.limits.array_size:
        text = f"{largest}, the site says {site.limits.array_size}"
        return [Check("MaxArraySize", FAIL, text, f"limits: {{array_size: {largest}}}")]
    more = "" if largest == site.limits.array_size else f" (the site uses {site.limits.array_size})"
    return [Check("MaxArraySize", OK, f"{largest}{more}")]


def account_rows(
    site: Site, associations: str | None, *, environ: Mapping[str, str]
) -> list[Check]:
    """The account: given where it must be, and this user's."""
    mine = sorted({row["Account"] for row in table_rows(associations) if row.get("Account")})
    account = site.account or environ.get("SBATCH_ACCOUNT", "")
    remedy = f"account: {mine[0]}" if len(mine) == 1 else f"one of: {', '.join(mine)}"
    if not account:
        if site.needs_account:
            missing = remedy if mine else f"site: {{base: {site.name}, account: YOURS}}"
            return [Check("account", FAIL, "none given, and jobs are refused without", missing)]
        return []
    if mine and account.lower() not in {name.lower() for name in mine}:
        return [Check("account", FAIL, f"{account!r} is none of yours", remedy)]
    if not mine:
        return [Check("account", WARN, f"{account}: no list of accounts to hold it against")]
    return [Check("account", OK, account)]


def submit_rows(site: Site, facts: SchedulerFacts) -> list[Check]:
    """How many jobs may be submitted, and whether the QOS is there and allows the time."""
    rows = []
    known = table_rows(facts.qos)
    if site.qos and known:
        mine = [row for row in known if row.get("Name") == site.qos]
        if not mine:
            names = [row.get("Name", "") for row in known]
            hint = did_you_mean(site.qos, names) or f"one of: {', '.join(names)}"
            return [Check("QOS", FAIL, f"no QOS {site.qos!r}", hint)]
        longest = parse_limit_s(mine[0].get("MaxWall", ""))
        if longest is not None and longest < site.limits.time:
            text = f"{site.qos}: {format_duration(longest)} to a job"
            rows.append(Check("QOS", FAIL, text, f"limits: {{time: {longest}s}}"))
        else:
            limit = "no time limit of its own" if longest is None else format_duration(longest)
            rows.append(Check("QOS", OK, f"{site.qos}: {limit}"))
    account = _rows_of(facts.associations, site.account) or facts.associations
    allowed = [
        parse_table(text).submit
        for text in (account, _rows_of(facts.qos, site.qos or "normal"))
        if text
    ]
    least = min((n for n in allowed if n is not None), default=None)
    if least is None:
        return rows
    if site.limits.submit is None or site.limits.submit > least:
        own = "no limit" if site.limits.submit is None else str(site.limits.submit)
        text = f"{least} elements may be submitted, the site says {own}"
        rows.append(Check("MaxSubmitJobs", WARN, text, f"limits: {{submit: {least}}}"))
    else:
        rows.append(Check("MaxSubmitJobs", OK, str(least)))
    return rows


def table_rows(text: str | None) -> list[dict[str, str]]:
    """The rows of a `--parsable2` table with its header."""
    lines = [line.split("|") for line in (text or "").strip().splitlines() if "|" in line]
    return [dict(zip(lines[0], row, strict=False)) for row in lines[1:]] if lines else []


def _rows_of(text: str | None, name: str | None) -> str | None:
    """The header and the rows that begin with `name`; None without such a row."""
    lines = (text or "").strip().splitlines()
    mine = [line for line in lines[1:] if line.split("|")[0] == name]
    return "\n".join([lines[0], *mine]) if mine else None
