"""Runs of a study over their cycles: ratios of sums with intervals, and how deployments compare.

Cycles are the clusters: what is alike within one (a node's temperature, its neighbours) is not
counted as so much independent evidence. For R = sum J_c / sum t_c over n cycles

    se(R)^2 = n/(n-1) sum (J_c - R t_c)^2 / (sum t_c)^2        (`ratio.ratio_of_sums`)
    interval: R exp(-/+ t(n-1) se(R) / R)

and for the ratio of two deployments, on a log scale as well, by the linearised residuals of both.
Where they were measured in the same cycles these are paired, so that what a cycle did to both
cancels; else their variances add, with Welch's degrees of freedom (Welch 1947; Satterthwaite 1946).

A percentile is that of all raw samples. Its error is from how far those of the cycles lie from it
(sectioning: Asmussen and Glynn, Stochastic Simulation, 2007, chapter III.5):

    se(q)^2 = sum (q_c - q)^2 / (n (n-1))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.results.ranks.pool import Pool, pooled
from llem.results.ratio import ratio_of_sums
from llem.results.rows import engine as engine_rows
from llem.results.rows.served import PERCENTILES, POOLED
from llem.results.tables.where import is_known

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
Pools = Mapping[str, Mapping[str, Pool]]

LEVEL = 0.95
# Of two cycles far apart an interval may reach beyond all numbers.
MOST_LOG = 50.0

# Ratios of sums: name, what is summed above and below.
RATIOS: Mapping[str, tuple[Callable[[Row], float], Callable[[Row], float]]] = {
    "j_per_token": (lambda r: r["energy_j"], lambda r: r["tokens_out"]),
    "j_per_request": (lambda r: r["energy_j"], lambda r: r["requests_done"]),
    "prefill_j_per_token": (lambda r: r["prefill_j"], lambda r: r["tokens_in"]),
    "decode_j_per_token": (lambda r: r["decode_j"], lambda r: r["tokens_out"] - r["requests_done"]),
    "tokens_per_s": (lambda r: r["tokens_out"], lambda r: r["span_s"]),
    "mean_w": (lambda r: r["energy_j"], lambda r: r["duration_s"]),
}
SUMS = ("requests_done", "tokens_in", "tokens_out", "energy_j", "energy_net_j", "energy_total_j",
        "prefill_j", "decode_j", "host_j", "idle_j", "duration_s", "gpu_seconds", "flops",
        "flops_computed", "cost", "carbon_g")  # fmt: skip
MOST = ("peak_memory_bytes", "peak_memory_window_bytes")


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """A ratio of sums over cycles. `residuals` (n,) by cycle are (J_c - R t_c) / sum t_c."""

    value: float
    se: float
    cycles: tuple[int, ...]
    residuals: Floats

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """NaN of fewer than two cycles."""
        return _around(self.value, self.se, len(self.cycles) - 1, level)


def _around(value: float, se: float, freedom: float, level: float = LEVEL) -> tuple[float, float]:
    """An interval of a positive figure, on a log scale: a wide one stays positive."""
    if not value > 0:
        return math.nan, math.nan
    factor = math.exp(min(student(freedom, level) * se / value, MOST_LOG))
    return value / factor, value * factor


def student(freedom: float, level: float = LEVEL) -> float:
    """The quantile of Student's t that a two-sided interval at this level reaches to."""
    if not freedom >= 1:
        return math.nan
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def clustered(rows: Sequence[Row], above: Callable[[Row], float], below: Callable[[Row], float]
              ) -> Clustered:  # fmt: skip
    """A ratio of sums over the cycles of these rows; rows that lack either are left out."""
    sums: dict[int, list[float]] = {}
    for row in rows:
        a, b = above(row), below(row)
        if is_known(a) and is_known(b) and b > 0:
            of_cycle = sums.setdefault(row["cycle"], [0.0, 0.0])
            of_cycle[0] += a
            of_cycle[1] += b
    cycles = tuple(sorted(sums))
    tops, bottoms = (np.array([sums[c][k] for c in cycles]) for k in (0, 1))
    ratio = ratio_of_sums(tops, bottoms)
    total = float(bottoms.sum()) if len(cycles) else math.nan
    return Clustered(
        value=ratio.value,
        se=ratio.se,
        cycles=cycles,
        residuals=(tops - ratio.value * bottoms) / total if len(cycles) else np.array([]),
    )


def group_served(
    rows: Sequence[Row], by: Sequence[str], pools: Pools | None = None
) -> list[dict[str, Any]]:
    """One row for each set of values of the fields `by`, in the order of these values.

    Columns: the fields, `runs`, `completed`, `cycles`, the RATIOS with `_se`, `_low` and `_high`
    (95 % intervals over cycles), SUMS of what is known, percentiles of pooled raw samples with
    their intervals (where `pools` of the runs are given), the MOST memory, `mfu` as a ratio of sums
    and `without_energy`, the runs that lack it; where any run has them, `engine.*`, with intervals
    of means and shares. A run that did not complete is counted, no more.
    """
    found = []
    engine = any(is_known(row.get(engine_rows.STEPS)) for row in rows)
    for key, members in grouped(rows, by).items():
        done = [row for row in members if row["status"] == "completed"]
        line: dict[str, Any] = {
            **dict(zip(by, key, strict=True)),
            "runs": len(members),
            "completed": len(done),
            "cycles": len({row["cycle"] for row in done}),
        }
        for name, (above, below) in RATIOS.items():
            line |= _with_interval(name, clustered(done, above, below))
        line |= {name: _sum(done, name) for name in SUMS}
        line |= _percentiles(done, pools or {})
        line |= {name: _most(done, name) for name in MOST}
        line["mfu"] = _mfu(done)
        if engine:
            line |= _engine(done)
        line["without_energy"] = sum(not is_known(row["energy_j"]) for row in done)
        found.append(line)
    return found


def grouped(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of these fields, numbers before texts before what is not known."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] if is_known(row[name]) else None for name in by)
        groups.setdefault(key, []).append(row)

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple((v is None, isinstance(v, str), v) for v in key)

    return {key: groups[key] for key in sorted(groups, key=order)}


@dataclass(frozen=True, kw_only=True)
class PairRatio:
    """One group's joules per token over another's, with its interval.

    `how`: paired (in the same cycles), independent, or none where a cycle is too few.
    """

    first: tuple[Any, ...]
    second: tuple[Any, ...]
    ratio: float
    low: float
    high: float
    how: str

    def turned(self) -> PairRatio:
        """The first's over the second's."""
        return replace(self, first=self.second, second=self.first, ratio=1 / self.ratio,
                       low=1 / self.high, high=1 / self.low)  # fmt: skip


def group_name(values: tuple[Any, ...]) -> str:
    """A group by its values; None is the backend's own default."""
    return ", ".join("(default)" if value is None else str(value) for value in values)


def pair_ratios(
    rows: Sequence[Row], by: Sequence[str], *, of: str = "j_per_token", level: float = LEVEL
) -> list[PairRatio]:
    """The second's over the first's, for each two groups in their order."""
    above, below = RATIOS[of]
    ratios = {
        key: clustered([r for r in members if r["status"] == "completed"], above, below)
        for key, members in grouped(rows, by).items()
    }
    found = []
    for (a, one), (b, other) in combinations(ratios.items(), 2):
        value, low, high, how = _over(other, one, level)
        found.append(PairRatio(first=a, second=b, ratio=value, low=low, high=high, how=how))
    return found


def _over(top: Clustered, bottom: Clustered, level: float) -> tuple[float, float, float, str]:
    value = top.value / bottom.value if bottom.value else math.nan
    if not value > 0 or min(len(top.cycles), len(bottom.cycles)) < 2:
        return value, math.nan, math.nan, "none"
    if top.cycles == bottom.cycles:
        n = len(top.cycles)
        both = top.residuals / top.value - bottom.residuals / bottom.value
        se = math.sqrt(n / (n - 1) * float((both**2).sum()))
        freedom, how = float(n - 1), "paired"
    else:
        parts = [((c.se / c.value) ** 2, len(c.cycles) - 1) for c in (top, bottom)]
        total = sum(v for v, _ in parts)
        se, how = math.sqrt(total), "independent"
        freedom = total**2 / sum(v**2 / n for v, n in parts) if total > 0 else 1.0
    factor = math.exp(min(student(freedom, level) * se, MOST_LOG))
    return value, value / factor, value * factor, how


def _percentiles(rows: Sequence[Row], pools: Pools) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in POOLED:
        by_cycle: dict[int, list[Pool]] = {}
        for row in rows:
            pool = pools.get(row["run_id"], {}).get(name)
            if pool is not None and len(pool.ns):
                by_cycle.setdefault(row["cycle"], []).append(pool)
        cycles = [pooled(parts) for parts in by_cycle.values()]
        every = pooled(cycles)
        n = len(cycles)
        for percent in PERCENTILES:
            value, low, high = every.percentile_s(percent), math.nan, math.nan
            if n > 1:
                off = [(pool.percentile_s(percent) - value) ** 2 for pool in cycles]
                low, high = _around(value, math.sqrt(sum(off) / (n * (n - 1))), n - 1)
            column = f"{name}_p{percent}"
            found |= {f"{column}_s": value, f"{column}_low_s": low, f"{column}_high_s": high}
    return found


def _engine(rows: Sequence[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in (*engine_rows.MEANS, *engine_rows.SHARES):
        above, below = (partial(engine_rows.engine_part, name, k) for k in (0, 1))
        found |= _with_interval(_in_engine(name), clustered(rows, above, below))
    found |= {name: _sum(rows, name) for name in map(_in_engine, engine_rows.SUMS)}
    return found | {name: _most(rows, name) for name in map(_in_engine, engine_rows.MOST)}


def _in_engine(name: str) -> str:
    return engine_rows.PREFIX + name


def _with_interval(name: str, ratio: Clustered) -> dict[str, float]:
    low, high = ratio.interval()
    return {name: ratio.value, f"{name}_se": ratio.se, f"{name}_low": low, f"{name}_high": high}


def _most(rows: Sequence[Row], name: str) -> float:
    return max((row[name] for row in rows if is_known(row.get(name))), default=math.nan)


def _mfu(rows: Sequence[Row]) -> float:
    both = [r for r in rows if is_known(r["mfu"]) and is_known(r["flops"]) and r["mfu"] > 0]
    possible = sum(r["flops"] / r["mfu"] for r in both)
    return sum(r["flops"] for r in both) / possible if possible > 0 else math.nan


def _sum(rows: Sequence[Row], name: str) -> float:
    known = [row[name] for row in rows if is_known(row.get(name))]
    return math.fsum(known) if known else math.nan


INTEGERS = ("runs", "completed", "cycles", "without_energy")
BY_DEPLOYMENT = ("deployment_id",)
NAMED = ("model", "backend", "params")


def deployment_table(
    kinds: Mapping[str, str], rows: Sequence[Row], pools: Pools
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """`group_served` by deployment, with what each was asked to be; columns and rows."""
    settings = [
        name for name in kinds
        if name in NAMED or ("." in name and not name.startswith(engine_rows.PREFIX))
    ]  # fmt: skip
    of = grouped(rows, BY_DEPLOYMENT)
    found = []
    for line, members in zip(group_served(rows, BY_DEPLOYMENT, pools), of.values(), strict=True):
        one = {name: members[0][name] for name in settings if _alike(members, name)}
        missing = {name: "" if kinds[name] == "str" else math.nan for name in settings}
        found.append({"deployment_id": line["deployment_id"], **missing, **one, **line})
    columns = found[0] if found else {}
    return {name: kind_of(name, kinds) for name in columns}, found


def kind_of(name: str, kinds: Mapping[str, str]) -> str:
    """What a column of `group_served` holds: int, float or str."""
    return "int" if name in INTEGERS else kinds.get(name, "float")


def _alike(rows: Sequence[Row], name: str) -> bool:
    first = rows[0][name]
    return is_known(first) and all(row[name] == first for row in rows)
