"""The front door: fit a law to observations and answer at the targets."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem.scaling.bootstrap import (
    Resamples,
    draw_weights,
    percentile_interval,
    refit,
)
from llem.scaling.cost import fit_cost, fit_cost_many
from llem.scaling.errors import OptionError
from llem.scaling.estimator import Estimator
from llem.scaling.isoflop import fit_power_law, isoflop_levels
from llem.scaling.judgement import held_out_error, identify, residual_summary, sensitivity
from llem.scaling.laws import Law, get_law
from llem.scaling.newton import Problem
from llem.scaling.observations import Observations, check_observations
from llem.scaling.optimum import Ensemble, Optimum, Target
from llem.scaling.result import Fit
from llem.scaling.solve import Solution, solve

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

# With fewer runs, drawing them with replacement gives no interval worth the name.
MIN_RUNS_FOR_INTERVALS = 6
FEW_RUNS = 12
FRONTIER_POINTS = 25
# A bootstrap that threw away more than this share of its draws is too narrow.
REDRAWN_SHARE = 0.05
NAN = float("nan")


def fit_law(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    law: str = "chinchilla",
    weight: ArrayLike | None = None,
    run_id: Sequence[str] | ArrayLike | None = None,
    flops: ArrayLike | None = None,
    energy_j: ArrayLike | None = None,
    duration_s: ArrayLike | None = None,
    gpu_seconds: ArrayLike | None = None,
    estimator: Estimator | None = None,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    targets_flops: Iterable[Target | float] = (),
    excluded: Iterable[Mapping[str, Any]] = (),
) -> Fit:
    """Fit a scaling law, its cost laws, intervals and optima.

    params, tokens, loss: (n,) counts, counts, nats per token. weight: (n,) counts of equal rows.
    run_id: (n,) names; rows of one run are drawn together in the bootstrap (default: each row is
    a run). flops: (n,) exact FLOP of each run, NaN where not known (default: 6ND). energy_j (J),
    duration_s (s), gpu_seconds (s, duration x devices): (n,), NaN where not measured; without
    gpu_seconds, duration_s is taken for it (one device a run) and a warning says so.
    estimator: default Huber on log loss, delta 1e-3, sum. bootstrap: resamples (0: none).
    level: of the intervals. seed: of the bootstrap; the same call gives the same answer.
    targets_flops: numbers (FLOP) or Target(value, unit). excluded: {run_id, reason} of runs that
    were left out, passed through to fit.json.

    Raises ScalingDataError with every fault of the data, UnknownLawError, OptionError.
    Sources: Huber on log-sum-exp, arXiv 2203.15556; sum rather than mean, arXiv 2404.10102;
    variable projection for the starts and exact Newton are this package's own.
    """
    chosen = get_law(law)
    judge = Estimator() if estimator is None else estimator
    if bootstrap < 0:
        raise OptionError("bootstrap", bootstrap, "0 or more resamples")
    if not 0 < level < 1:
        raise OptionError("level", level, "a number between 0 and 1")
    targets = [t if isinstance(t, Target) else Target(float(t)) for t in targets_flops]
    data = check_observations(
        params,
        tokens,
        loss,
        weight=weight,
        run_id=run_id,
        flops=flops,
        energy_j=energy_j,
        duration_s=duration_s,
        gpu_seconds=gpu_seconds,
    )
    warnings: list[str] = []
    problem = Problem.of(data.params, data.tokens, data.loss)
    solution = solve(problem, data.weight, judge)
    natural = problem.natural(solution.theta)
    parameters = chosen.parameters(natural)
    if not solution.converged:
        warnings.append("the minimiser stopped before it converged")

    cost_columns = _cost_columns(data, warnings)
    costs = {
        name: fit_cost(
            column, data.tokens, data.flops, weight=data.weight, quantity=name, unit=unit
        )
        for name, (column, unit) in cost_columns.items()
    }
    resamples = _bootstrap(data, problem, judge, solution, bootstrap, seed, warnings)
    samples = np.empty((0, 5)) if resamples is None else problem.natural(resamples.theta)
    cost_samples = {
        name: fit_cost_many(column, data.tokens, data.flops, weight=resamples.weight)
        for name, (column, _) in cost_columns.items()
        if column is not None and costs[name].fitted and resamples is not None
    }
    ensemble = Ensemble(
        law=chosen,
        natural=natural,
        flops_model=data.flops_model,
        costs=costs,
        largest_flops=float(np.max(data.flops)),
        level=level,
        samples=samples,
        cost_samples=cost_samples,
    )
    intervals = _parameter_intervals(chosen, samples, level)
    reasons = identify(
        problem,
        data.weight,
        judge,
        solution,
        runs=data.runs,
        intervals=intervals if samples.size else {},
        parameters=parameters,
    )
    warnings += [f"{name} is not identified: {why}" for name, why in reasons.items() if why]
    a, b = chosen.exponents(natural, data.flops_model)
    optima = tuple(ensemble.at(target) for target in targets)
    for optimum in optima:
        label = f"{optimum.target.value:g} {optimum.target.unit}".replace("e+", "e")
        warnings += [f"at {label}: {text}" for text in optimum.warnings if "times the" in text]
    return Fit(
        law=chosen.name,
        formula=chosen.formula,
        source=chosen.source,
        estimator=judge,
        n_observations=data.rows,
        n_runs=data.runs,
        params=parameters,
        objective=solution.objective,
        gradient_norm=solution.gradient_norm,
        smallest_eigenvalue=solution.smallest_eigenvalue,
        starts={"tried": solution.tried, "agreeing": solution.agreeing},
        identified={name: not why for name, why in reasons.items()},
        identification={name: why for name, why in reasons.items() if why},
        ci=_ci(chosen, data, samples, intervals, resamples, bootstrap, level, seed),
        exponents={"a": float(a), "b": float(b)},
        flops_model=data.flops_model,
        costs=costs,
        optima=optima,
        frontier=_frontier(ensemble, data, optima),
        range=_ranges(data),
        excluded=[dict(entry) for entry in excluded],
        held_out=held_out_error(data, chosen, judge),
        sensitivity=sensitivity(problem, data.weight, chosen, data),
        isoflop=_isoflop(data),
        residuals=residual_summary(data, problem.residuals(solution.theta)[0]),
        warnings=tuple(warnings),
        provenance={
            "observations_sha256": data.digest(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        ensemble=ensemble,
    )


def _cost_columns(
    data: Observations, warnings: list[str]
) -> dict[str, tuple[FloatArray | None, str]]:
    seconds = data.gpu_seconds
    if seconds is None and data.duration_s is not None:
        seconds = data.duration_s
        warnings.append(
            "gpu_seconds was not given: GPU hours are computed as if every run used one device"
        )
    return {"energy_j": (data.energy_j, "J"), "gpu_seconds": (seconds, "s")}


def _bootstrap(
    data: Observations,
    problem: Problem,
    estimator: Estimator,
    solution: Solution,
    count: int,
    seed: int,
    warnings: list[str],
) -> Resamples | None:
    """Fit the resamples; None where there are none, with a warning that says why."""
    if count == 0:
        return None
    if data.runs < MIN_RUNS_FOR_INTERVALS:
        warnings.append(
            f"no intervals: {data.runs} runs are too few to draw from "
            f"({MIN_RUNS_FOR_INTERVALS} are needed)"
        )
        return None
    drawn, redrawn = draw_weights(
        data.params, data.tokens, data.weight, data.run, resamples=count, seed=seed
    )
    if drawn.shape[0] == 0:
        warnings.append("no intervals: no resample held five distinct points")
        return None
    out = refit(problem, drawn, estimator, solution.ends, seed=seed, redrawn=redrawn)
    if data.runs < FEW_RUNS or redrawn > REDRAWN_SHARE * count:
        warnings.append(f"the intervals rest on {data.runs} runs and are likely too narrow")
    return out


def _parameter_intervals(law: Law, samples: FloatArray, level: float) -> dict[str, Interval]:
    table = law.parameter_table(samples)
    return {
        name: percentile_interval(table[:, i], level) for i, name in enumerate(law.parameter_names)
    }


def _ci(
    law: Law,
    data: Observations,
    samples: FloatArray,
    intervals: dict[str, Interval],
    resamples: Resamples | None,
    asked: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    a, b = law.exponents(samples, data.flops_model)
    table = law.parameter_table(samples)
    many = samples.shape[0] > 1
    errors = {
        name: float(np.std(table[:, i], ddof=1)) if many else NAN
        for i, name in enumerate(law.parameter_names)
    }
    check: dict[str, Any] = {"redrawn": 0, "checked": 0, "missed": 0, "rescued": False}
    if resamples is not None:
        check = {
            "redrawn": resamples.redrawn,
            "checked": resamples.checked,
            "missed": resamples.missed,
            "rescued": resamples.rescued,
        }
    return {
        "level": level,
        "method": "cluster bootstrap by run, percentile" if samples.size else "none",
        "resamples": int(samples.shape[0]),
        "asked": asked,
        "seed": seed,
        "params": {name: list(interval) for name, interval in intervals.items()},
        "standard_errors": errors,
        "exponents": {
            "a": list(percentile_interval(a, level)),
            "b": list(percentile_interval(b, level)),
        },
        **check,
    }


def _frontier(
    ensemble: Ensemble, data: Observations, optima: tuple[Optimum, ...]
) -> tuple[Optimum, ...]:
    wanted = [o.flops for o in optima if np.isfinite(o.flops)]
    low = min([float(np.min(data.flops)), *wanted])
    high = max([float(np.max(data.flops)) * 1.0001, *wanted])
    return tuple(ensemble.at(float(c)) for c in np.geomspace(low, high, FRONTIER_POINTS))


def _ranges(data: Observations) -> dict[str, list[float]]:
    columns = {
        "flops": data.flops,
        "params": data.params,
        "tokens": data.tokens,
        "loss": data.loss,
    }
    return {name: [float(v.min()), float(v.max())] for name, v in columns.items()}


def _isoflop(data: Observations) -> dict[str, Any]:
    """The cross-check that needs no law: N* per compute level and the power law through them."""
    levels = isoflop_levels(data.params, data.loss, data.flops, weight=data.weight)
    found = [v for v in levels if not v.refusal]
    law = fit_power_law(np.array([v.flops for v in found]), np.array([v.params for v in found]))
    return {
        "levels": [v.to_dict() for v in levels],
        "exponent": law.exponent,
        "coefficient": law.coefficient,
        "minima": len(found),
        "note": "a cross-check only: parabolas are biased even without noise (arXiv 2603.22339)",
    }
