"""SLURM's own word on a campaign's energy, beside the records': a cross-check, never a measurement.

`ConsumedEnergyRaw` is the energy of whole nodes from a job's start to its end, where the site has
an acct_gather_energy plugin, and is the job's own only where it had the nodes alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llem._numerals import format_times
from llem.errors import ClusterError, UnavailableError

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder
    from llem.results import DeviceRow

# Nodes use more than their GPUs, and are held for longer than a run; they never use less. Outside
# of these one of the two is wrong, or the node was shared.
LEAST, MOST = 0.8, 5.0


def check_against_slurm(folder: CampaignFolder, devices: Iterable[DeviceRow]) -> tuple[str, ...]:
    """Ask sacct once about all jobs of the campaign; what disagrees, or why there is no answer."""
    from llem.cluster import Ledger
    from llem.cluster.scheduler import slurm

    jobs = [job for job in Ledger.read(folder).jobs if job.elements is not None]
    if not jobs:
        return ("SLURM's energy: no job of this campaign was submitted",)
    since_s = min(job.submitted_ns for job in jobs) / 1e9
    try:
        told = slurm.ask_energy([job.job_id for job in jobs], since_s=since_s)
    except (ClusterError, UnavailableError) as error:
        return (f"SLURM's energy is not known: {error.message}",)
    if not told:
        return ("SLURM's energy is not known: sacct tells none (no plugin for it on this cluster)",)
    return disagreements(told, devices)


def disagreements(told: Mapping[str, float], devices: Iterable[DeviceRow]) -> tuple[str, ...]:
    """A line for each job whose energy by SLURM (`told`, joules) cannot be that of its records."""
    measured: dict[str, float] = defaultdict(float)
    for device in devices:
        measured[device.job] += device.energy_j
    lines = []
    for job, joules in sorted(measured.items()):
        if job not in told or not math.isfinite(joules) or joules <= 0:
            continue
        ratio = told[job] / joules
        if not LEAST <= ratio <= MOST:
            lines.append(
                f"job {job}: SLURM tells of {told[job]:.0f} J, its records of {joules:.0f} J "
                f"({format_times(ratio)} times as much; {LEAST:g} to {MOST:g} are expected)"
            )
    return tuple(lines)
