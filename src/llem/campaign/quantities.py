"""Quantities as users write them: `1e20`, `3 EFLOP`, `500 GPUh`, `10M` tokens, `24:00:00`.

Inside llem everything is joules, seconds, tokens and FLOPs; only this module knows others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llem._numerals import format_amount

_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# The commas of 1,000 and 2,500,000, not that of 1,5.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:,\d{3})*(?!\d))")
_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
             "Z": 1e21, "Y": 1e24}  # fmt: skip

# What a budget or a target may be given in: spelling -> (canonical unit, factor).
_BUDGET_UNITS: dict[str, tuple[str, float]] = {
    "flop": ("FLOP", 1.0),
    "flops": ("FLOP", 1.0),
    "gpuh": ("GPUh", 1.0),
    "gpu-h": ("GPUh", 1.0),
    "gpu-hour": ("GPUh", 1.0),
    "gpu-hours": ("GPUh", 1.0),
    "gpuhours": ("GPUh", 1.0),
    "node-h": ("node-h", 1.0),
    "nodeh": ("node-h", 1.0),
    "node-hour": ("node-h", 1.0),
    "node-hours": ("node-h", 1.0),
    "wh": ("kWh", 1e-3),
    "j": ("kWh", 1.0 / 3.6e6),
    "eur": ("EUR", 1.0),
    "€": ("EUR", 1.0),
    "usd": ("USD", 1.0),
    "$": ("USD", 1.0),
    "gbp": ("GBP", 1.0),
    "chf": ("CHF", 1.0),
}
MONEY = frozenset({"EUR", "USD", "GBP", "CHF"})
BUDGET_HELP = "a number with FLOP, GPUh, node-h, kWh or a currency: 1e20, 3 EFLOP, 500 GPUh, 2 kWh"


@dataclass(frozen=True)
class Budget:
    """An amount to spend or to aim at, in one of FLOP, GPUh, node-h, kWh, EUR, USD, GBP, CHF."""

    value: float
    unit: str

    def __str__(self) -> str:
        return format_amount(self.value, self.unit, digits=6)


def parse_budget(text: str | float | int) -> Budget:
    """Read a budget: `1e20`, `3 EFLOP`, `500 GPUh`, `12 node-h`, `2 MWh`, `1,000 EUR`, `€200`.

    A bare number is FLOP; commas may part thousands. Raises ValueError with what is expected.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"expected {BUDGET_HELP}")
    raw = str(text).strip()
    plain = _THOUSANDS.sub("", re.sub(r"^([€$])\s*(.*)$", r"\2 \1", raw))
    match = re.fullmatch(rf"({_NUMBER})\s*((?:[A-Za-z]+ )?[A-Za-z€$\-]*)", plain)
    if match is None:
        raise ValueError(f"cannot read {raw!r}: expected {BUDGET_HELP}")
    value = float(match[1].replace("_", ""))
    unit, factor = _budget_unit(match[2])
    value *= factor
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{raw!r} is not a positive amount")
    return Budget(value, unit)


def _budget_unit(unit: str) -> tuple[str, float]:
    if not unit:
        return "FLOP", 1.0
    known = _BUDGET_UNITS.get(unit.lower().replace(" ", "-"))
    if known:
        return known
    prefix, rest = unit[:1], unit[1:].lower()
    if prefix in _PREFIXES and rest in ("flop", "flops", "wh", "j", "gpuh"):
        name, factor = _BUDGET_UNITS[rest]
        return name, factor * _PREFIXES[prefix]
    raise ValueError(f"unknown unit {unit!r}: expected {BUDGET_HELP}")


def parse_count(value: str | float | int) -> int:
    """Read a whole number of things: `10M`, `1.5e6`, `32_000`. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("expected a number, such as 10M")
    match = re.fullmatch(rf"({_NUMBER})\s*([kKMGTPB]?)", str(value).strip())
    if match is None:
        raise ValueError(f"cannot read {value!r}: expected a number, such as 10M")
    factor = 1e9 if match[2] == "B" else _PREFIXES[match[2]]
    number = float(match[1].replace("_", "")) * factor
    if number < 0:
        raise ValueError(f"{value!r} is below 0")
    if not math.isfinite(number) or abs(number - round(number)) > 1e-6 * number:
        raise ValueError(f"{value!r} is not a whole number")
    return round(number)


def parse_duration(value: str | float | int) -> int:
    """Seconds from `90`, `45m`, `24h`, `1:30:00`, `2-12:00:00` (SLURM's). Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip()
        if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{1,2}):(\d{1,2})", text):
            days, hours, minutes, rest = (int(part or 0) for part in match.groups())
            seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        elif match := re.fullmatch(rf"({_NUMBER})\s*(s|m|min|h|d)?", text):
            factor = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2]]
            seconds = float(match[1]) * factor
        else:
            raise ValueError(f"cannot read {text!r}: expected a duration: 90m, 24h, 1-00:00:00")
    if not (math.isfinite(seconds) and seconds >= 1):
        raise ValueError("a duration is at least one second")
    return math.ceil(seconds)


def parse_interval(value: str | float | int) -> float:
    """Seconds, also parts of one: `0.1`, `0.1 s`, `100 ms`. Raises ValueError."""
    match = re.fullmatch(rf"({_NUMBER})\s*(s|ms)?", str(value).strip())
    if match is None or isinstance(value, bool):
        raise ValueError(f"cannot read {value!r}: expected an interval, such as 0.1 s or 100 ms")
    return float(match[1]) * (1e-3 if match[2] == "ms" else 1.0)


def slurm_time(seconds: float) -> str:
    """A time limit as SLURM reads it, `D-HH:MM:SS` or `HH:MM:SS`, rounded up to a second."""
    whole = math.ceil(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    clock = f"{hours:02d}:{minutes:02d}:{secs:02d}"
    return f"{days}-{clock}" if days else clock


def parse_bytes(value: str | float | int) -> int:
    """Bytes from `80 GiB`, `80GB`, `512 MiB` or a plain number. Raises ValueError."""
    match = re.fullmatch(rf"({_NUMBER})\s*(?:([kKMGTP])(i?)B?|B)?", str(value).strip())
    if match is None or isinstance(value, bool):
        raise ValueError(f"cannot read {value!r}: expected a size, such as 80 GiB")
    factor = 1.0
    if match[2]:
        power = "KMGTP".index(match[2].upper()) + 1
        factor = float((1024 if match[3] else 1000) ** power)
    return round(float(match[1].replace("_", "")) * factor)
