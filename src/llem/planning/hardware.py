"""What an accelerator can do, by name: the prior where a site gives no measurement of its own.

Peaks are vendors' dense figures (no sparsity) at bf16, or fp16 where bf16 is not had (V100);
MI250X is counted per die, as SLURM and ROCm count it. The CPU row is one core of a server.
"""

from __future__ import annotations

from dataclasses import dataclass

from llem.campaign import Site
from llem.errors import Fault, InputError, did_you_mean


@dataclass(frozen=True)
class Accelerator:
    """One device: peak FLOP/s, memory in bytes, board power in watts, and a prior utilisation.

    `utilisation` is the share of the peak that training is expected to reach (MFU) and
    `step_overhead_s` what an optimiser step costs however small the model is.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    power_w: float
    utilisation: float = 0.35
    step_overhead_s: float = 0.02
    source: str = "prior: table of accelerators"


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


def accelerator_of(site: Site) -> Accelerator:
    """The site's device: its own figures first, the table's where it gives none.

    Raises InputError where the name is unknown and the site does not say enough.
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
    return Accelerator(
        name=gpu.name,
        peak_flops=gpu.peak_flops or known.peak_flops,
        memory_bytes=float(gpu.memory or known.memory_bytes),
        power_w=gpu.power_w or known.power_w,
        utilisation=site.utilisation or known.utilisation,
        step_overhead_s=known.step_overhead_s,
        source=known.source + (f"; from the site: {', '.join(given)}" if given else ""),
    )
