"""The same question under other ways to count: what N and C mean moves the answer.

Counting parameters without embeddings and compute as 6ND moved the published exponent of N* from
.50 to .86 (arXiv 2406.19146, 2406.12907), so each fit tells its answer under the counts at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.scaling.answers.optimum import Target
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import Problem
from llem.scaling.fitting.solve import Solution, solve
from llem.scaling.flops import FlopsModel, fit_flops_model
from llem.scaling.laws.law import Law
from llem.scaling.observations import Observations

FloatArray = NDArray[np.float64]

STARTS = 6


def other_definitions(
    data: Observations,
    law: Law,
    solution: Solution,
    problem: Problem,
    estimator: Estimator,
    targets: Sequence[Target],
) -> list[dict[str, Any]]:
    """Exponents, and N* and D* at the first FLOP target, under each way to count that is known.

    One entry for each pair of a count of N ("total", "non-embedding") and of C ("as measured",
    "6ND"); the first is the one that the fit itself uses. Empty for a law without an optimum.
    """
    if not law.has_optimum:
        return []
    flops = next((t.value for t in targets if t.unit == "FLOP"), float(np.max(data.flops)))
    counts = [("total", data, problem.natural(solution.theta))]
    smaller = data.params_nonembedding
    if (
        smaller is not None
        and np.isfinite(smaller).all()
        and not np.array_equal(smaller, data.params)
    ):
        measured = data.flops if data.flops_model.source == "observations" else None
        model = fit_flops_model(smaller, data.tokens, measured, weight=data.weight)
        other = replace(data, params=smaller, flops_model=model)
        bound = law.bind(other, space=estimator.space)
        found = solve(bound, data.weight, estimator, starts=STARTS)
        counts.append(("non-embedding", other, bound.natural(found.theta)))
    out = []
    for name, observations, natural in counts:
        models = [("as measured", observations.flops_model), ("6ND", FlopsModel())]
        if observations.flops_model.source != "observations":
            models = models[1:]
        for counted, model in models:
            a, b = law.exponents(natural, model, flops=flops)
            log_n, log_d = law.optimum(natural, flops, model)
            out.append(
                {
                    "params": name,
                    "flops": counted,
                    "exponents": {"a": float(a), "b": float(b)},
                    "at_flops": flops,
                    "optimum": {"params": float(np.exp(log_n)), "tokens": float(np.exp(log_d))},
                    "law": law.named(natural),
                }
            )
    return out
