"""Rows taken together by any of their fields.

Sums are sums of what is known, with the number of runs that they lack beside them; joules per token
is a ratio of such sums over the runs that have both. Only the loss, which no sum is made of, is a
mean, and its spread over the runs is given with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llem.results.tables.where import is_known

SUMS = ("tokens", "flops", "energy_j", "gpu_seconds", "cost", "carbon_g")


def group_rows(rows: Iterable[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each set of values of the fields `by`, in the order of these values.

    Columns: the fields, `runs`, `completed`, `loss`, `loss_sd` (over the runs), a sum for each of
    SUMS, `joules_per_token`, and `without_loss` and `without_energy`, the runs that lack these.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] if is_known(row[name]) else None for name in by)
        groups.setdefault(key, []).append(row)
    found = []
    for key in sorted(groups, key=lambda k: tuple((v is None, v) for v in k)):
        members = groups[key]
        losses = [row["loss"] for row in members if is_known(row["loss"])]
        both = [r for r in members if is_known(r["energy_j"]) and is_known(r["tokens"])]
        trained = sum(row["tokens"] for row in both)
        found.append(
            {
                **dict(zip(by, key, strict=True)),
                "runs": len(members),
                "completed": sum(row["status"] == "completed" for row in members),
                "loss": math.fsum(losses) / len(losses) if losses else math.nan,
                "loss_sd": _sd(losses),
                **{name: _sum(members, name) for name in SUMS},
                "joules_per_token": sum(r["energy_j"] for r in both) / trained
                if trained > 0
                else math.nan,
                "without_loss": len(members) - len(losses),
                "without_energy": sum(not is_known(row["energy_j"]) for row in members),
            }
        )
    return found


def _sum(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    known = [row[name] for row in rows if is_known(row[name])]
    return math.fsum(known) if known else math.nan


def _sd(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
