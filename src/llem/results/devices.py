"""The energy in single node records, without a campaign around them: `llem energy`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llem.errors import InputError
from llem.records import RecordError, read_node
from llem.results.claims import Claim, claim_devices, divide_shared, read_series
from llem.results.domains import domains_of, select


@dataclass(frozen=True, kw_only=True)
class DeviceEnergy:
    """One device's energy over its samples; NaN with a reason where it is not known.

    `counted`: it is in the sum. What is not was measured as well, and `reason` says why not.
    """

    uuid: str
    name: str
    domain: str
    source: str
    quality: str
    energy_j: float
    duration_s: float
    coverage: float
    reason: str
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class NodeEnergy:
    """All devices of one or several node records; no device and no moment is counted twice.

    `domains` is what `energy_j` is the energy of: gpu+package+dram.
    """

    energy_j: float
    domains: str
    duration_s: float
    devices: tuple[DeviceEnergy, ...]
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `llem energy --json` prints it."""
        return asdict(self)


def device_energies(path: str | Path) -> NodeEnergy:
    """The energy in a node record, or in all node records below a folder.

    Raises InputError where no record can be read at all.
    """
    path = Path(path)
    files = sorted(path.rglob("node-*.h5")) if path.is_dir() else [path]
    claims: list[Claim] = []
    left_out: list[tuple[Claim, str]] = []
    problems: list[str] = []
    for file in files:
        try:
            record = read_node(file)
        except RecordError as error:
            problems.append(error.message)
            continue
        selection = select(claim_devices(record, owner=str(file), window=None))
        claims += selection.counted
        left_out += selection.left_out
    if len(problems) == len(files):
        raise InputError(str(path), problems or ["holds no node record (node-*.h5)"])
    divided = divide_shared(claims, read_series)
    # One machine has one monotonic clock; of several, the longest time is given.
    spans: dict[str, tuple[int, int]] = {}
    for claim in divided:
        t0_ns, t1_ns = spans.get(claim.boot_id, (claim.t0_ns, claim.t1_ns))
        spans[claim.boot_id] = min(t0_ns, claim.t0_ns), max(t1_ns, claim.t1_ns)
    duration_s = max(((t1 - t0) / 1e9 for t0, t1 in spans.values()), default=math.nan)
    return NodeEnergy(
        energy_j=sum(c.energy_j for c in divided) if divided else math.nan,
        domains=domains_of(divided),
        duration_s=duration_s,
        devices=(
            *(_device(claim) for claim in divided),
            *(_device(claim, left_out=why) for claim, why in left_out),
        ),
        problems=tuple(problems),
    )


def _device(claim: Claim, *, left_out: str = "") -> DeviceEnergy:
    return DeviceEnergy(
        uuid=claim.uuid,
        name=claim.name,
        domain=claim.domain,
        source=claim.source,
        quality=claim.quality,
        energy_j=claim.energy_j,
        duration_s=claim.duration_s,
        coverage=claim.covered_s / claim.duration_s if claim.duration_s > 0 else 0.0,
        reason="; ".join(r for r in (left_out and f"not added: {left_out}", claim.reason) if r),
        counted=not left_out,
    )
