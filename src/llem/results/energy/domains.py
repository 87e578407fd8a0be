"""Which of a job's measurements are summed: maximal domains that do not overlap, each once.

What is counted on a host, from the widest to the narrowest:

    node       its own counter, where it holds whatever accelerators are measured there
    module     Grace Hopper: GPU, processor and memory in one counter
    gpu, package, dram

A slow meter of a node's power is a check, and counts only where nothing else is measured. One
quantity that several meters read (NVML and pm_counters' `accel0`, RAPL and `cpu_energy`) is taken
from the first of them: known before unknown, counter before integral, then in the order of
SOURCES. Accelerators are never given up: without them energy is unknown.

Processors and memory are counted where every node of the attempt has them, whole and known;
otherwise the sum is that of the accelerators, and a note says so. A node-wide measurement is a
job's own only where it holds the node. Where it does not:

    beside the job's accelerators    left out, with a note: others' work is in it
    alone, the job holds no GPU      the share of the node's CPUs that the job has, quality `model`
    alone, the job holds GPUs        unknown: CPUs say nothing of GPUs

So `energy_j` of a row is the energy of `energy_domains`, nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llem.records import QUALITIES
from llem.results.energy.claim import Claim, DeviceKey
from llem.results.energy.claims import partly

ACCELERATORS = ("gpu", "module")
DOMAINS = ("gpu", "module", "package", "dram", "node")
# Of what can be left out for the sake of comparison, and is beside an accelerator.
BESIDE = ("package", "dram")
EVERYTHING = frozenset({"gpu", "module", "package", "dram"})
# Of two that measure the same thing equally well, the earlier.
SOURCES = ("nvml", "zeus", "rapl", "pm_counters", "hwmon", "ipmi", "cpu-model", "codecarbon")


@dataclass(frozen=True)
class Selection:
    """What is summed; what is not, with the reason; and of that what a reader must know."""

    counted: tuple[Claim, ...]
    left_out: tuple[tuple[Claim, str], ...] = ()
    notes: tuple[str, ...] = ()


def select(claims: Iterable[Claim]) -> Selection:
    """Choose among one attempt's claims, of all its nodes."""
    hosts: dict[str, list[Claim]] = defaultdict(list)
    for claim in _once(claims):
        hosts[claim.boot_id].append(claim)
    left_out: list[tuple[Claim, str]] = []
    notes: list[str] = []
    chosen = {boot_id: _owned(of_host, left_out, notes) for boot_id, of_host in hosts.items()}
    chosen = {boot_id: _one_source(of_host, left_out) for boot_id, of_host in chosen.items()}
    # A node's counter on some hosts only would make the sum of unlike things.
    whole = all(_node_counts(of_host) for of_host in chosen.values())
    for boot_id, of_host in chosen.items():
        chosen[boot_id] = _widest(of_host, whole, left_out)
    for domain in BESIDE:
        _everywhere(domain, chosen, left_out, notes)
    counted = [_own_part(claim) for of_host in chosen.values() for claim in of_host]
    unlike = {domains_of(of_host) for of_host in chosen.values() if of_host}
    if len(unlike) > 1:
        notes.append(f"nodes differ in what is counted: {', '.join(sorted(unlike))}")
    return Selection(tuple(counted), tuple(left_out), tuple(dict.fromkeys(notes)))


def domains_of(claims: Iterable[Claim]) -> str:
    """The domains in a sum, as `gpu+package+dram`."""
    found = {claim.domain for claim in claims}
    return "+".join([d for d in DOMAINS if d in found] + sorted(found - set(DOMAINS)))


def _once(claims: Iterable[Claim]) -> list[Claim]:
    best: dict[DeviceKey, Claim] = {}
    for claim in claims:
        known = best.get(claim.key)
        if known is None or claim.covered_s > known.covered_s:
            best[claim.key] = claim
    return list(best.values())


def _contains(claim: Claim) -> frozenset[str]:
    """What a claim's energy holds besides its own domain; a node that says nothing holds all."""
    if claim.domain == "node" and not claim.contains:
        return EVERYTHING
    return frozenset(claim.contains)


def _owned(
    of_host: Sequence[Claim], left_out: list[tuple[Claim, str]], notes: list[str]
) -> list[Claim]:
    """Without what others have used as well, where the job has accelerators of its own."""
    own = any(c.domain in ACCELERATORS and not c.node_wide for c in of_host)
    kept: list[Claim] = []
    for claim in of_host:
        if not claim.node_wide or claim.exclusive == "yes":
            kept.append(claim)
        elif own:
            left_out.append((claim, f"node not held alone: {claim.held}"))
            notes.append(f"{claim.domain} not counted, the node is not held alone: {claim.held}")
        else:
            kept.append(claim)
    return kept


def _own_part(claim: Claim) -> Claim:
    """A job's part of what others may have used as well."""
    if not claim.node_wide or claim.exclusive == "yes":
        return claim
    if claim.gpus_held > 0:
        why = f"node not held alone ({claim.held}), and GPUs are not shared as CPUs are"
        return partly(claim, math.nan, why)
    why = f"node not held alone: the share of {claim.held}"
    return partly(claim, claim.cpu_share, why)


def _one_source(of_host: Sequence[Claim], left_out: list[tuple[Claim, str]]) -> list[Claim]:
    """One meter for each domain; GPUs and modules are one, and the job's own come first."""
    groups: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in of_host:
        domain = "gpu" if claim.domain in ACCELERATORS else claim.domain
        # what nvml and zeus read of accelerators are different devices
        source = "own" if domain == "gpu" and not claim.node_wide else claim.source
        groups[domain, source].append(claim)
    kept: list[Claim] = []
    for domain in dict.fromkeys(domain for domain, _ in groups):
        rivals = [(source, group) for (d, source), group in groups.items() if d == domain]
        _, best = min(rivals, key=lambda rival: _rank(*rival))
        for _, group in rivals:
            if group is best:
                kept += group
            else:
                left_out += [(claim, f"measured by {best[0].source} as well") for claim in group]
    return kept


def _rank(source: str, group: Sequence[Claim]) -> tuple[bool, bool, int, int]:
    worst = max(
        QUALITIES.index(c.quality) if c.quality in QUALITIES else len(QUALITIES) for c in group
    )
    order = SOURCES.index(source) if source in SOURCES else len(SOURCES)
    return source != "own", not _known(group), worst, order


def _known(claims: Iterable[Claim]) -> bool:
    return all(math.isfinite(claim.energy_j) for claim in claims)


def _node_counts(of_host: Sequence[Claim]) -> bool:
    """Whether a host's node counter can stand for all that is measured there."""
    nodes = [c for c in of_host if c.domain == "node"]
    others = [c for c in of_host if c.domain != "node"]
    if not nodes:
        return False
    if not others:
        return True
    accelerators = any(c.domain in ACCELERATORS for c in others)
    return all(
        c.quality == "counter"
        and math.isfinite(c.energy_j)
        and (not accelerators or "gpu" in _contains(c))
        for c in nodes
    )


def _widest(
    of_host: Sequence[Claim], whole: bool, left_out: list[tuple[Claim, str]]
) -> list[Claim]:
    """No domain beside one that contains it."""
    others = [c for c in of_host if c.domain != "node"]
    kept: list[Claim] = []
    for claim in of_host:
        if claim.domain == "node" and others and not whole:
            left_out.append((claim, "its parts are counted: " + _why_not(claim, others)))
        else:
            kept.append(claim)
    contained = {domain for claim in kept for domain in _contains(claim)}
    left_out += [(c, f"part of {_holder(c, kept)}") for c in kept if c.domain in contained]
    return [c for c in kept if c.domain not in contained]


def _why_not(node: Claim, others: Sequence[Claim]) -> str:
    if node.quality != "counter":
        return "the node's power is read slowly"
    if not math.isfinite(node.energy_j):
        return "the node's energy is not known"
    if "gpu" not in _contains(node) and any(c.domain in ACCELERATORS for c in others):
        return "whether it holds the accelerators is not known"
    return "not every node has such a counter"


def _holder(claim: Claim, kept: Sequence[Claim]) -> str:
    return next(c.uuid for c in kept if claim.domain in _contains(c))


def _everywhere(
    domain: str,
    chosen: dict[str, list[Claim]],
    left_out: list[tuple[Claim, str]],
    notes: list[str],
) -> None:
    """Leave a domain beside accelerators out, where one host lacks it or does not know it."""
    beside = {
        boot_id: [c for c in of_host if c.domain == domain]
        for boot_id, of_host in chosen.items()
        if any(c.domain in ACCELERATORS for c in of_host)
    }
    if not any(beside.values()):
        return
    lacking: list[str] = []
    for of_host in chosen.values():
        here = [c for c in of_host if c.domain == domain]
        held = any(domain in _contains(c) for c in of_host)
        if not held and (not here or not _known(here)):
            reason = next((c.reason for c in here if not math.isfinite(c.energy_j)), "")
            lacking.append(reason or "not measured on every node")
    if not lacking:
        return
    notes.append(f"{domain} not counted: {lacking[0]}")
    for boot_id, here in beside.items():
        left_out += [(c, f"{domain}: {lacking[0]}") for c in here]
        chosen[boot_id] = [c for c in chosen[boot_id] if c.domain != domain]
