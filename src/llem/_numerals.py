"""Numbers as people read them: the one spelling of every amount in all that llem says.

    12.3 G parameters      counts: SI prefixes
    4.3e19 FLOP            compute, scientific; rates of it have prefixes (312 TFLOP/s)
    2.01 kJ, 4.56 kWh      energy: J below a kilowatt-hour, Wh with prefixes from there
    125 GPUh               device time, as budgets are written; "GPU-hours" is the word in prose
    48 s, 3 h 20 min       durations
    5,000 EUR              money, and other great numbers that are not measured: commas
    95 %                   shares, with a space
    –                      what is not known

Three significant digits, their zeros kept (1.00 MJ), but for what is exact with fewer: 10 M, 20 ms.
None and NaN both mean "not known". Everything takes numbers and returns text; `campaign.quantities`
is the other way, from what a user wrote to a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

UNKNOWN = "–"
JOULES_PER_WH = 3600.0
SI = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"),
      (1e3, "k"), (1.0, ""))  # fmt: skip
SI_SMALL = ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
# An end of an interval this many times away from its value bounds nothing.
NO_BOUND = 1e4


def number(value: Any) -> float:
    """A float, NaN for None and for what is not a number."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return math.isfinite(number(value))


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent from 1e-4 to 1e7, with one beyond."""
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -4 <= size < 7:
        return _scientific(value, digits)
    return f"{value:.{max(digits - 1 - size, 0)}f}"


def brief(value: Any, digits: int = 4) -> str:
    """As `significant`, without the zeros that end it: `0.5`, `128`, what a user has set."""
    text = significant(number(value), digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def _scaled(value: float, steps: Sequence[tuple[float, str]], digits: int) -> tuple[float, str]:
    """Mantissa and prefix of a finite value; rounding up to 1000 takes the next prefix."""
    if value == 0:
        return 0.0, ""
    for factor, prefix in steps:
        if abs(value) >= factor * (1 - 0.5 * 10**-digits):
            return value / factor, prefix
    factor, prefix = steps[-1]
    return value / factor, prefix


def _padded(mantissa: float, value: float, digits: int) -> str:
    """The mantissa of a value, without zeros at its end where the value is exactly that: such are
    what a person has set, and what was measured or computed shows its digits."""
    exact = value == float(f"{value:.{digits - 1}e}")
    return brief(mantissa, digits) if exact else significant(mantissa, digits)


def format_si(value: Any, unit: str = "", *, digits: int = 3) -> str:
    """`1.23 MJ`: an SI prefix and `digits` significant digits."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    mantissa, prefix = _scaled(v, (*SI, *SI_SMALL), digits)
    return f"{_padded(mantissa, v, digits)} {prefix}{unit}".strip()


def format_count(value: Any, *, digits: int = 3) -> str:
    """`12.3 G` parameters, tokens or samples; `512` as it is."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    if abs(v) >= 1e16:
        return significant(v, digits)
    mantissa, prefix = _scaled(v, SI, digits)
    return f"{_padded(mantissa, v, digits)} {prefix}".strip()


def format_flops(value: Any) -> str:
    """`1e24` or `2.5e20`: FLOP in scientific form, without the unit."""
    v = number(value)
    return _scientific(v, 3) if math.isfinite(v) else UNKNOWN


def format_energy(joules: Any) -> str:
    """`4.56 kWh` from J; below a kilowatt-hour `2.01 kJ`, which is what small runs are told in."""
    j = number(joules)
    # What would be rounded up to a kilowatt-hour is one.
    if abs(j) >= 1e3 * JOULES_PER_WH * (1 - 0.5e-3):
        return format_si(j / JOULES_PER_WH, "Wh")
    return format_si(j, "J")


def format_gpu_hours(hours: Any) -> str:
    """`1,230 GPUh`."""
    text = format_hours(hours)
    return text if text == UNKNOWN else f"{text} GPUh"


def format_hours(hours: Any) -> str:
    """`1,230`: GPU-hours below a head that names them."""
    v = number(hours)
    if not math.isfinite(v):
        return UNKNOWN
    return grouped(v) if v >= 1000 else _padded(v, v, 3)


def format_duration(seconds: Any) -> str:
    """`80 ms`, `48 s`, `12.5 min`, `3 h 20 min`, `2 d 4 h`, `15.7 d`."""
    v = number(seconds)
    if not math.isfinite(v):
        return UNKNOWN
    if v <= 0:
        return "0 s"
    if v < 0.9995:
        mantissa, prefix = _scaled(v, SI_SMALL, 3)
        return f"{brief(mantissa, 3)} {prefix}s"
    if v < 120:
        return f"{brief(v, 3)} s"
    if v < 7200:
        return f"{brief(v / 60, 3)} min"
    hours, minutes = divmod(round(v / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(v / 3600), 24)
    return f"{days} d {hours} h" if days < 10 else f"{grouped(v / 86400)} d"


def grouped(value: float, digits: int = 3) -> str:
    """`12,345`: significant digits below a thousand, whole numbers with commas from there."""
    text = significant(value, digits)
    return f"{float(text):,.0f}" if 1000 <= abs(value) < 1e7 else text


def format_times(ratio: Any) -> str:
    """How many times something is: `1.45`, `641`, `3,930`; with an exponent from a million on."""
    v = number(ratio)
    if abs(v) >= 1e6:
        return format_flops(v)
    return grouped(v) if abs(v) >= 100 else brief(v, 3)


def format_money(value: Any, currency: Any = "") -> str:
    """`5,000 EUR`."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    return f"{grouped(v) if abs(v) >= 1 else significant(v, 2)} {currency or ''}".rstrip()


def format_amount(value: Any, unit: str, *, digits: int = 4) -> str:
    """A budget or a target as a campaign file may have it: `1e24 FLOP`, `500 GPUh`, `5000 EUR`."""
    v = number(value)
    if not math.isfinite(v):
        return UNKNOWN
    return f"{_scientific(v, digits) if unit == 'FLOP' else brief(v, digits)} {unit}".strip()


def percent(share: Any, *, digits: int = 3, places: int | None = None, signed: bool = False) -> str:
    """`95 %` from .95: `digits` significant digits, or always `places` behind the point."""
    v = 100 * number(share)
    if not math.isfinite(v):
        return UNKNOWN
    text = brief(v, digits) if places is None else f"{v:.{places}f}"
    return f"{'+' * (signed and v >= 0)}{text} %"


def far_apart(interval: Sequence[Any] | None, value: Any) -> tuple[bool, bool]:
    """Whether the low and the high end lie more than `NO_BOUND` times away from a positive value:
    so far out an end is where the resamples went astray, and no bound."""
    middle = number(value)
    low, high = (number(end) for end in interval or (math.nan, math.nan))
    if not middle > 0:
        return False, False
    return low < middle / NO_BOUND, high > middle * NO_BOUND


def format_interval_of(
    value: Any, interval: Sequence[Any] | None, form: Callable[[Any], str] = significant
) -> str:
    """`format_interval` of a positive value, in words where it has no bound that says anything."""
    below, above = far_apart(interval, value)
    if not (below or above):
        return format_interval(interval, form)
    if interval is None or not all(known(end) for end in interval):
        return UNKNOWN
    low, high = (form(number(end)) for end in interval)
    if below and above:
        return "no bound"
    return f"up to {high}, no lower bound" if below else f"{low} or more, no upper bound"


def format_interval(
    interval: Sequence[Any] | None, form: Callable[[Any], str] = significant
) -> str:
    """`1.2 to 3.4 G`; a dash where an end is not known."""
    if interval is None or not all(known(v) for v in interval):
        return UNKNOWN
    low, high = (form(number(v)) for v in interval)
    # "1.2 to 3.4 G": the unit once, where both ends have the same.
    number_low, _, unit_low = low.partition(" ")
    if unit_low and high.endswith(f" {unit_low}"):
        low = number_low
    return f"{low} to {high}"
