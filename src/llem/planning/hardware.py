"""What an accelerator can do: as measured where it was, else the site's word, else a prior.

Peaks are vendors' dense figures (no sparsity) at bf16, or fp16 where bf16 is not had (V100);
MI250X is counted per die, as SLURM and ROCm count it. The CPU row is one core of a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llem.campaign import Site
from llem.errors import Fault, InputError, did_you_mean
from llem.planning.steptime import StepTime, fit_steps

# A well-kept training code reaches 25 to 50 % of the peak, far less at small sizes, and a board
# draws 70 to 100 % of its rated power in training: a prior, until the site has been measured.
PRIOR_UTILISATION_ERROR = 0.4
PRIOR_POWER_ERROR = 0.2
# What the site's operators say of their own machine.
SITE_ERROR = 0.15
# No fewer than this: another model and another node are never quite the one measured.
LEAST_ERROR = 0.03
# Where no meter is, power is a model of how busy the processors are: good to a factor.
MODEL_POWER_ERROR = 0.5
# How an energy was found (`llem.records`), of those that are measurements.
METERED_QUALITIES = frozenset({"counter", "integral"})


@dataclass(frozen=True)
class Accelerator:
    """One device: peak FLOP/s, memory in bytes, board power in watts, and a prior utilisation.

    `utilisation` is the share of the peak that training is expected to reach (MFU) and
    `step_overhead_s` what a micro-step costs however small the model is. The `_error` of each is
    one standard error of its logarithm, `time_error` that of the hours which follow from both.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    power_w: float
    utilisation: float = 0.35
    step_overhead_s: float = 0.02
    source: str = "prior: table of accelerators"
    utilisation_error: float = PRIOR_UTILISATION_ERROR
    power_error: float = PRIOR_POWER_ERROR
    power_source: str = "prior: board power"
    time_error: float = PRIOR_UTILISATION_ERROR

    @property
    def cpu(self) -> bool:
        """Whether ranks compute on the CPU, where memory is used otherwise."""
        return self.name == "cpu"


@dataclass(frozen=True)
class Measured:
    """What trainings on the site itself have shown: utilisation (MFU) and watts per device.

    `step_overhead_s` belongs to that utilisation; `startup_s` is from the start of an element to
    the first step. The `_error` of each is one standard error of its logarithm, `time_error` that
    of the hours. NaN where a quantity was not measured. The energy behind the power was metered
    where `power_metered`, else it is a model's.
    """

    kind: Literal["calibration", "records"]
    utilisation: float
    utilisation_error: float
    power_w: float = math.nan
    power_error: float = math.nan
    detail: str = ""
    step_overhead_s: float = math.nan
    startup_s: float = math.nan
    time_error: float = math.nan
    power_metered: bool = True


ACCELERATORS: dict[str, Accelerator] = {
    a.name: a
    for a in (
        Accelerator("V100", 125e12, 32e9, 300),
        Accelerator("A100-40GB", 312e12, 40e9, 400),
        # CINECA's own A100: its FP64 peak (309 PFLOP/s over 13824 boards) times the A100's 16.
        Accelerator("A100-64GB", 358e12, 64e9, 400),
        Accelerator("A100-80GB", 312e12, 80e9, 400),
        Accelerator("L40S", 362e12, 48e9, 350),
        Accelerator("H100", 989e12, 80e9, 700),
        Accelerator("H200", 989e12, 141e9, 700),
        Accelerator("GH200", 989e12, 96e9, 900),
        Accelerator("B200", 2250e12, 180e9, 1000),
        Accelerator("MI250X", 191.5e12, 64e9, 280),
        Accelerator("MI300X", 1307e12, 192e9, 750),
        Accelerator("cpu", 100e9, 4e9, 10, utilisation=0.35, step_overhead_s=0.004),
    )
}

# Bytes a second to and from the device's memory, by the vendors' data sheets; a CPU core's share.
BANDWIDTHS: Mapping[str, float] = {
    "V100": 900e9,
    "A100-40GB": 1555e9,
    "A100-64GB": 1638e9,
    "A100-80GB": 2039e9,
    "L40S": 864e9,
    "H100": 3350e9,
    "H200": 4800e9,
    "GH200": 4000e9,
    "B200": 8000e9,
    "MI250X": 1638e9,
    "MI300X": 5300e9,
    "cpu": 10e9,
}
# FLOP/s in fp32 without tensor cores, as torch multiplies by default, by the same data sheets.
FP32_FLOPS: Mapping[str, float] = {
    "V100": 15.7e12,
    "A100-40GB": 19.5e12,
    "A100-64GB": 22.4e12,
    "A100-80GB": 19.5e12,
    "L40S": 91.6e12,
    "H100": 67e12,
    "H200": 67e12,
    "GH200": 67e12,
    "B200": 75e12,
    "MI250X": 23.95e12,
    "MI300X": 163.4e12,
}
# The same as a part of the peak, of a device that is not in the table.
FP32_SHARE = 1 / 16
# FLOPs of the peak for a byte of bandwidth, of a device that is not in the table: a usual balance.
FLOPS_PER_BYTE = 250.0


def bandwidth_of(device: Accelerator) -> float:
    """Bytes a second between the device and its memory."""
    return BANDWIDTHS.get(device.name, device.peak_flops / FLOPS_PER_BYTE)


def fp32_flops_of(device: Accelerator) -> float:
    """FLOP/s in fp32 without tensor cores."""
    return FP32_FLOPS.get(device.name, device.peak_flops * FP32_SHARE)


def accelerator_of(site: Site, measured: Sequence[Measured] = ()) -> Accelerator:
    """The site's device: measured, then the site's own figures, then the table's.

    A calibration counts before the records of earlier waves. Raises InputError where the name is
    unknown and the site does not say enough.
    """
    gpu = site.gpu
    known = ACCELERATORS.get(gpu.name)
    own = (gpu.peak_flops, gpu.memory, gpu.power_w)
    if known is None:
        missing = [
            k for k, v in zip(("peak_flops", "memory", "power_w"), own, strict=True) if not v
        ]
        if missing:
            hint = did_you_mean(gpu.name, list(ACCELERATORS)) or "or give all three figures"
            text = f"{gpu.name!r} is not in llem's table, and the site lacks {', '.join(missing)}"
            raise InputError(f"site {site.name}", [Fault("gpu.name", text, hint)])
        known = Accelerator(gpu.name, 0.0, 0.0, 0.0)
    given = [k for k, v in zip(("peak", "memory", "power"), own, strict=True) if v]
    if site.utilisation:
        given.append("utilisation")
    device = Accelerator(
        name=gpu.name,
        peak_flops=gpu.peak_flops or known.peak_flops,
        memory_bytes=float(gpu.memory or known.memory_bytes),
        power_w=gpu.power_w or known.power_w,
        utilisation=site.utilisation or known.utilisation,
        step_overhead_s=known.step_overhead_s,
        source=known.source + (f"; from the site: {', '.join(given)}" if given else ""),
        utilisation_error=SITE_ERROR if site.utilisation else known.utilisation_error,
        power_error=SITE_ERROR if gpu.power_w else known.power_error,
        power_source="from the site" if gpu.power_w else known.power_source,
        time_error=SITE_ERROR if site.utilisation else known.time_error,
    )
    for kind in ("records", "calibration"):
        for item in measured:
            if item.kind == kind:
                device = _with(device, item, given_power=gpu.power_w is not None)
    return device


def site_as_measured(site: Site, measured: Sequence[Measured]) -> Site:
    """The site with the start of an element as it was measured, where it was."""
    known = [m.startup_s for m in measured if m.startup_s >= 0]
    return site.model_copy(update={"startup_s": known[-1]}) if known else site


def measured_from_observations(
    rows: Iterable[Mapping[str, Any]], *, peak_flops: float
) -> Measured | None:
    """Utilisation, overhead and power from rows of observations.csv: `flops`, `gpu_seconds`,
    `steps_seen`, `expected_ranks`, `energy_j` and `energy_quality` of each.

    The overhead is that of a whole step, evaluations and the start of a run included, since rows
    know no micro-steps. A row without energy still counts for time. None without a row that took
    any time; `peak_flops` is one device's.
    """
    known = [
        (flops, seconds, row)
        for row in rows
        if (flops := _number(row, "flops")) > 0
        and (seconds := _number(row, "gpu_seconds")) > 0
        # One that began from another's checkpoint did not compute all its FLOPs itself.
        and not _number(row, "tokens_trunk") > 0
    ]
    runs = [(f, s, _number(row, "energy_j")) for f, s, row in known]
    found = measured_from_runs(runs, peak_flops=peak_flops)
    if found is None:
        return None
    with_energy = {str(row.get("energy_quality", "none")) for _, _, row in known
                   if _number(row, "energy_j") > 0}  # fmt: skip
    found = replace(found, power_metered=with_energy <= METERED_QUALITIES)
    times = [
        StepTime(f / steps / ranks / peak_flops, 1.0, s / steps / ranks)
        for f, s, row in known
        if (steps := _number(row, "steps_seen")) > 0
        and (ranks := _number(row, "expected_ranks")) > 0
    ]
    if len(times) < len(known):
        return found
    law = fit_steps(times, utilisation=found.utilisation)
    if not law.utilisation > 0 or not law.step_overhead_s > 0:
        return found
    return replace(
        found, utilisation=law.utilisation, utilisation_error=law.utilisation_error,
        step_overhead_s=law.step_overhead_s, time_error=law.time_error,
    )  # fmt: skip


def measured_from_runs(
    runs: Iterable[tuple[float, float, float]], *, peak_flops: float
) -> Measured | None:
    """Utilisation and power from runs that were made: (FLOPs, device-seconds, joules) of each.

    The mean is weighted by device-seconds, since that is what a plan sums up; its error is that
    of a weighted mean. It holds what steps cost whatever their size, so that no overhead is left.
    Joules may be NaN. None without a run that took any time.
    """
    rows = [(f, s, j) for f, s, j in runs if f > 0 and s > 0]
    if not rows:
        return None
    rate, rate_error = weighted_mean([(f / s, s) for f, s, _ in rows])
    power, power_error = weighted_mean([(j / s, s) for _, s, j in rows if j > 0])
    text = f"{len(rows)} run{'s' if len(rows) > 1 else ''} of earlier waves"
    return Measured(
        "records", rate / peak_flops, rate_error, power, power_error, text,
        step_overhead_s=0.0, time_error=rate_error,
    )  # fmt: skip


def weighted_mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of (value, weight) pairs and its relative standard error; NaN without a value."""
    total = sum(w for _, w in pairs)
    if not total:
        return math.nan, math.nan
    mean = sum(x * w for x, w in pairs) / total
    if len(pairs) == 1:
        return mean, SITE_ERROR
    square = sum((w * (x - mean)) ** 2 for x, w in pairs) / total**2
    return mean, max(LEAST_ERROR, math.sqrt(square * len(pairs) / (len(pairs) - 1)) / mean)


def device_since(device: Accelerator, measured: Sequence[Measured], *, site: Site) -> Accelerator:
    """A plan's device with what its runs have shown since; a calibration stands above records."""
    if device.source.startswith("measured: calibration"):
        return device
    for item in measured:
        device = _with(device, item, given_power=site.gpu.power_w is not None)
    return device


def _with(device: Accelerator, measured: Measured, *, given_power: bool) -> Accelerator:
    of = f"{measured.kind} of {measured.detail}" if measured.detail else measured.kind
    if measured.utilisation > 0:
        error = max(LEAST_ERROR, measured.utilisation_error)
        device = replace(
            device,
            utilisation=measured.utilisation,
            utilisation_error=error,
            time_error=_at_least(LEAST_ERROR, measured.time_error, error),
            source=f"measured: {of}",
        )
    if measured.step_overhead_s >= 0:
        device = replace(device, step_overhead_s=measured.step_overhead_s)
        if not measured.utilisation > 0:
            # Overhead hid the work, and is what the hours rest on.
            device = replace(
                device,
                time_error=_at_least(LEAST_ERROR, measured.time_error, device.time_error),
                source=f"{device.source}; overhead measured: {of}",
            )
    if not measured.power_w > 0:
        return device
    if measured.power_metered:
        return replace(
            device,
            power_w=measured.power_w,
            power_error=max(LEAST_ERROR, measured.power_error),
            power_source=f"measured: {of}",
        )
    # An estimate is no measurement: what the site says of its own boards stands above it.
    if given_power:
        return device
    return replace(
        device,
        power_w=measured.power_w,
        power_error=max(MODEL_POWER_ERROR, measured.power_error),
        power_source=f"estimated by a model, not measured: {of}",
    )


def _at_least(least: float, value: float, otherwise: float) -> float:
    return max(least, value) if math.isfinite(value) else otherwise


def _number(row: Mapping[str, Any], name: str) -> float:
    """A cell as a number, NaN where there is none."""
    value = row.get(name)
    try:
        return math.nan if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return math.nan
