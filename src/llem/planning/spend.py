"""Between FLOPs, GPU-hours, node-hours, energy and money: through what the device can do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from llem._numerals import format_duration, format_si, percent
from llem.campaign import MONEY, Budget, Layout, Predicted, Run, Runs, Site
from llem.errors import Fault, InputError
from llem.planning.hardware import Accelerator

JOULES_PER_KWH = 3.6e6


def spend(runs: Iterable[Run], unit: str, site: Site) -> float:
    """What the runs are expected to cost, in a budget's unit. Raises InputError without a price."""
    return Runs.of(runs).total(
        lambda run: cost_of(run.flops_of_its_own, run.predicted, run.layout, unit=unit, site=site)
    )


def cost_of(flops: float, predicted: Predicted, layout: Layout, *, unit: str, site: Site) -> float:
    """What one run is expected to cost. Nodes are paid for whole, kWh at the meter (PUE).

    Raises InputError where money is asked for and the site has no price in that currency.
    """
    match unit:
        case "FLOP":
            return flops
        case "GPUh":
            return predicted.gpu_hours
        case "node-h":
            return predicted.gpu_hours / layout.gpus_per_node
    kwh = predicted.energy_j * site.pue / JOULES_PER_KWH
    if unit == "kWh":
        return kwh
    return money(unit, site, gpu_hours=predicted.gpu_hours, kwh=kwh)


def money(unit: str, site: Site, *, gpu_hours: float, kwh: float) -> float:
    """The price of device-hours and of energy, both where the site prices both.

    Raises InputError where it prices neither, or in another currency.
    """
    assert unit in MONEY
    prices = site.prices
    faults = []
    if prices.currency != unit:
        faults.append(Fault("prices.currency", f"is {prices.currency}, the budget is in {unit}"))
    if prices.per_gpu_hour is None and prices.per_kwh is None:
        text = "money needs a price: per_gpu_hour or per_kwh"
        hint = f"site: {{base: {site.name}, prices: {{currency: {unit}, per_kwh: 0.3}}}}"
        faults.append(Fault("prices", text, f"as {hint}, with your price"))
    if faults:
        raise InputError(f"site {site.name}", faults)
    return gpu_hours * (prices.per_gpu_hour or 0.0) + kwh * (prices.per_kwh or 0.0)


def target_flops(target: Budget, site: Site, device: Accelerator) -> float:
    """An amount in FLOPs, through the device's stated utilisation, power and prices."""
    rate = device.peak_flops * device.utilisation * 3600
    kwh_per_gpu_hour = device.power_w * site.pue / 1e3
    match target.unit:
        case "FLOP":
            return target.value
        case "GPUh":
            return target.value * rate
        case "node-h":
            return target.value * site.gpus_per_node * rate
        case "kWh":
            return target.value / kwh_per_gpu_hour * rate
    return target.value / money(target.unit, site, gpu_hours=1.0, kwh=kwh_per_gpu_hour) * rate


def uncertainty(device: Accelerator) -> dict[str, Any]:
    """How far what is spent may be off: one standard error of each logarithm, and the sources.

    FLOPs are exact by construction; hours rest on utilisation and overhead, energy on power too.
    """
    return {
        "uncertainty": {
            "flops": 0.0,
            "gpu_hours": device.time_error,
            "energy_j": math.hypot(device.time_error, device.power_error),
        },
        "source": {
            "utilisation": (
                f"{device.utilisation:.3g} +- "
                f"{percent(device.utilisation_error, places=0)} of the peak and "
                f"{format_duration(device.step_overhead_s)} a micro-step: {device.source}"
            ),
            "power": (
                f"{format_si(device.power_w, 'W')} +- "
                f"{percent(device.power_error, places=0)} a device: "
                f"{device.power_source}"
            ),
        },
    }
