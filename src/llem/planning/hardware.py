"""What an accelerator can do: as measured where it was, else the site's word, else a prior.

Peaks are vendors' dense figures (no sparsity) at bf16, or fp16 where bf16 is not had (V100);
MI250X is counted per die, as SLURM and ROCm count it. The CPU row is one core of a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llem.campaign import Site
from llem.errors import Fault, InputError, did_you_mean

# A well-kept training code reaches 25 to 50 % of the peak, far less at small sizes, and a board
# draws 70 to 100 % of its rated power in training: a prior, until the site has been measured.
PRIOR_UTILISATION_ERROR = 0.4
PRIOR_POWER_ERROR = 0.2
# What the site's operators say of their own machine.
SITE_ERROR = 0.15
# No fewer than this: another model and another node are never quite the one measured.
LEAST_ERROR = 0.03


@dataclass(frozen=True)
class Accelerator:
    """One device: peak FLOP/s, memory in bytes, board power in watts, and a prior utilisation.

    `utilisation` is the share of the peak that training is expected to reach (MFU) and
    `step_overhead_s` what an optimiser step costs however small the model is. The `_error` of
    each is one standard error of its logarithm.
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

    @property
    def cpu(self) -> bool:
        """Whether ranks compute on the CPU, where memory is used otherwise."""
        return self.name == "cpu"


@dataclass(frozen=True)
class Measured:
    """What trainings on the site itself have shown: utilisation (MFU) and watts per device.

    `error` is one standard error of each logarithm; NaN where a quantity was not measured.
    """

    kind: Literal["calibration", "records"]
    utilisation: float
    utilisation_error: float
    power_w: float = math.nan
    power_error: float = math.nan
    detail: str = ""


ACCELERATORS: dict[str, Accelerator] = {
    a.name: a
    for a in (
        Accelerator("V100", 125e12, 32e9, 300),
        Accelerator("A100-40GB", 312e12, 40e9, 400),
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
    )
    for kind in ("records", "calibration"):
        for item in measured:
            if item.kind == kind:
                device = _with(device, item)
    return device


def measured_from_runs(
    runs: Iterable[tuple[float, float, float]], *, peak_flops: float
) -> Measured | None:
    """Utilisation and power from runs that were made: (FLOPs, device-seconds, joules) of each.

    The mean is weighted by device-seconds, since that is what a plan sums up; its error is that
    of a weighted mean. Joules may be NaN. None without a run that took any time.
    """
    rows = [(f, s, j) for f, s, j in runs if f > 0 and s > 0]
    if not rows:
        return None
    rate, rate_error = _weighted([(f / s, s) for f, s, _ in rows])
    power, power_error = _weighted([(j / s, s) for _, s, j in rows if j > 0])
    text = f"{len(rows)} run{'s' if len(rows) > 1 else ''} of earlier waves"
    return Measured("records", rate / peak_flops, rate_error, power, power_error, text)


def _weighted(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Weighted mean and the relative standard error of it; NaN without a value."""
    total = sum(w for _, w in pairs)
    if not total:
        return math.nan, math.nan
    mean = sum(x * w for x, w in pairs) / total
    if len(pairs) == 1:
        return mean, SITE_ERROR
    square = sum((w * (x - mean)) ** 2 for x, w in pairs) / total**2
    return mean, max(LEAST_ERROR, math.sqrt(square * len(pairs) / (len(pairs) - 1)) / mean)


def _with(device: Accelerator, measured: Measured) -> Accelerator:
    text = f"measured: {measured.kind}" + (f", {measured.detail}" if measured.detail else "")
    if measured.utilisation > 0:
        device = replace(
            device,
            utilisation=measured.utilisation,
            utilisation_error=max(LEAST_ERROR, measured.utilisation_error),
            source=text,
        )
    if measured.power_w > 0:
        device = replace(
            device,
            power_w=measured.power_w,
            power_error=max(LEAST_ERROR, measured.power_error),
            power_source=text,
        )
    return device
