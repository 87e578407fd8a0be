"""Which law: several fitted to the same data, judged by what they predict of unseen runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llem.scaling.errors import OptionError
from llem.scaling.fit import fit_law
from llem.scaling.laws.law import Law
from llem.scaling.laws.registry import get_law


def compare_laws(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    laws: Sequence[str | Law],
    **options: Any,
) -> dict[str, Any]:
    """Fit each of `laws` and rank them by the error of the largest compute, held out.

    options: as for `fit_law`. Returns {laws: [{law, formula, parameters, objective, held_out,
    leave_one_out, params, identified, exponents}], best, note}, errors as mean absolute relative
    errors; `best` has the least held-out error, or where none could be held out the least
    leave-one-budget-out error. Raises as `fit_law`, and OptionError for fewer than two laws.
    """
    chosen = [get_law(law) for law in laws]
    if len({law.name for law in chosen}) < 2:
        raise OptionError("laws", [law.name for law in chosen], "two laws or more")
    rows = []
    for law in chosen:
        fit = fit_law(params, tokens, loss, law=law, **{**options, "bootstrap": 0})
        rows.append(
            {
                "law": fit.law,
                "formula": fit.formula,
                "parameters": len(fit.params),
                "objective": fit.objective,
                "held_out": fit.held_out["mean_abs_relative_error"],
                "leave_one_out": fit.leave_one_out["mean_abs_relative_error"],
                "params": fit.params,
                "identified": fit.identified,
                "exponents": fit.exponents,
            }
        )
    best = min(rows, key=_rank)
    return {
        "laws": rows,
        "best": best["law"] if np.isfinite(_rank(best)).any() else None,
        "note": "the fewer runs are held out, the more of this ranking is chance",
    }


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    errors = (row["held_out"], row["leave_one_out"])
    first, second = (float(e) if e is not None and np.isfinite(e) else np.inf for e in errors)
    return first, second
