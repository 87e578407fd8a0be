"""The front door: fit a law to observations and answer at the targets."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llem._numerals import format_amount, format_times
from llem.scaling.answers.allowance import EXPONENT_ERROR
from llem.scaling.answers.cost import CostLaw, cost_design, draw_costs, fit_cost
from llem.scaling.answers.features import Layout, Layouts
from llem.scaling.answers.optimum import Ensemble, Optimum
from llem.scaling.answers.targets import Prices, Target
from llem.scaling.errors import DataFault, OptionError, ScalingDataError
from llem.scaling.fitting.bootstrap import (
    LEAST_SPARE,
    Draws,
    Resamples,
    Resampling,
    percentile_interval,
    refit,
    weight_variance,
)
from llem.scaling.fitting.estimator import Estimator
from llem.scaling.fitting.problem import Problem
from llem.scaling.fitting.profiles import identification, natural_jacobian, profile
from llem.scaling.fitting.sandwich import covariance
from llem.scaling.fitting.solve import Solution, solve
from llem.scaling.judging.definitions import other_definitions
from llem.scaling.judging.isoflop import isoflop_check
from llem.scaling.judging.judgement import exponents, judge, residual_summary
from llem.scaling.laws.law import Law
from llem.scaling.laws.registry import get_law
from llem.scaling.native import compiled
from llem.scaling.observations import Observations, check_observations
from llem.scaling.result import Fit

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

# With fewer runs beyond the parameters of the law, intervals are rough (coverage was measured from
# 20 runs on).
FEW_SPARE_RUNS = 10
FRONTIER_POINTS = 25
NAN = float("nan")


def fit_law(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    law: str | Law = "chinchilla",
    weight: ArrayLike | None = None,
    run_id: Sequence[str] | ArrayLike | None = None,
    flops: ArrayLike | None = None,
    params_nonembedding: ArrayLike | None = None,
    unique_tokens: ArrayLike | None = None,
    energy_j: ArrayLike | None = None,
    duration_s: ArrayLike | None = None,
    gpu_seconds: ArrayLike | None = None,
    ranks: ArrayLike | None = None,
    nodes: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    estimator: Estimator | None = None,
    bootstrap: int = 1000,
    resampling: Resampling = "runs",
    level: float = 0.95,
    seed: int = 0,
    targets: Iterable[Target | float] = (),
    prices: Prices | None = None,
    layout: Layout | None = None,
    target_unique_tokens: float | None = None,
    exponent_error: float = EXPONENT_ERROR,
    excluded: Iterable[Mapping[str, Any]] = (),
    watch: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fit a scaling law, its cost laws, intervals and optima.

    params, tokens, loss: (n,) counts, counts, nats per token. law: a name, a `Law`, or a formula
    such as "E + A/N^alpha + B/D^beta". weight: (n,) counts of equal rows. run_id: (n,) names; rows
    of one run are drawn together in the bootstrap (default: each row is a run).

    Also (n,), NaN where not known: flops, exact FLOP of each run (default: 6ND);
    params_nonembedding; unique_tokens; energy_j (J); duration_s (s); gpu_seconds (s, duration x
    devices; default: duration_s x ranks); ranks (devices), nodes and steps of the run, from which
    the cost laws tell what a layout costs.

    estimator: default Huber on log loss, delta 1e-3, sum. bootstrap: resamples (0: none);
    resampling: "runs", or "rows" as in most papers (see `Draws`). level: of the intervals. seed:
    of the bootstrap; the same call gives the same answer. targets: numbers (FLOP) or
    Target(value, unit). prices: for targets in money, and the PUE. layout: of the training at the
    targets (default: the largest seen). target_unique_tokens: what there is at the targets
    (default: enough). exponent_error: the allowance for the law's own error, see `allowance`.
    excluded: {run_id, reason} of runs that were left out, passed through to fit.json. watch: told
    (done, all) as resamples are fitted.

    Raises ScalingDataError with every fault of the data, UnknownLawError, OptionError.
    Sources: Huber on log-sum-exp, arXiv 2203.15556; sum rather than mean, arXiv 2404.10102;
    variable projection for the starts and exact Newton are this package's own.
    """
    chosen = get_law(law)
    judged_by = Estimator() if estimator is None else estimator
    if bootstrap < 0:
        raise OptionError("bootstrap", bootstrap, "0 or more resamples")
    if not 0 < level < 1:
        raise OptionError("level", level, "a number between 0 and 1")
    wanted = [t if isinstance(t, Target) else Target(float(t)) for t in targets]
    data = check_observations(
        params,
        tokens,
        loss,
        weight=weight,
        run_id=run_id,
        flops=flops,
        params_nonembedding=params_nonembedding,
        unique_tokens=unique_tokens,
        energy_j=energy_j,
        duration_s=duration_s,
        gpu_seconds=gpu_seconds,
        ranks=ranks,
        nodes=nodes,
        steps=steps,
    )
    faults = chosen.shortage(data) + _missing(data, chosen)
    if faults:
        raise ScalingDataError(faults)
    warnings = _data_warnings(data, chosen)
    problem = chosen.bind(data, space=judged_by.space)
    solution = solve(problem, data.weight, judged_by)
    natural = problem.natural(solution.theta)
    if not solution.converged:
        warnings.append("the minimiser stopped before it converged")
    spread, bread = covariance(problem, solution.theta, data.weight, data.run, judged_by)
    profiles = profile(problem, chosen, data.weight, judged_by, solution, spread, bread)
    why = identification(chosen, problem, solution, profiles)
    warnings += [f"{name} is not identified: {text}" for name, text in why.items() if text]

    asked = _Asked(bootstrap, resampling, level, seed)
    resamples = _bootstrap(data, problem, judged_by, solution, asked, watch, warnings)
    costs, cost_samples = _costs(data, resamples, warnings)
    ensemble = Ensemble(
        law=chosen,
        natural=natural,
        flops_model=data.flops_model,
        costs=costs,
        largest_flops=float(np.max(data.flops)),
        level=level,
        samples=_samples(problem, resamples),
        cost_samples=cost_samples,
        prices=Prices() if prices is None else prices,
        unique_tokens=target_unique_tokens,
        layout=layout,
        exponent_error=exponent_error,
    )
    optima = tuple(ensemble.at(target) for target in wanted)
    for optimum in optima:
        label = format_amount(optimum.target.value, optimum.target.unit)
        warnings += [f"at {label}: {text}" for text in optimum.warnings if "times the" in text]
    judgement = judge(data, chosen, problem, solution, judged_by)
    return Fit(
        law=chosen.name,
        formula=chosen.formula,
        source=chosen.source,
        estimator=judged_by,
        n_observations=data.rows,
        n_runs=data.runs,
        params=chosen.named(natural),
        objective=solution.objective / judged_by.scale,
        gradient_norm=solution.gradient_norm / judged_by.scale,
        smallest_eigenvalue=solution.smallest_eigenvalue / judged_by.scale,
        starts={"tried": solution.tried, "agreeing": solution.agreeing},
        identified={name: not text for name, text in why.items()},
        identification={name: text for name, text in why.items() if text},
        ci=_ci(chosen, data, ensemble, resamples, asked),
        standard_errors=_errors(chosen, problem, solution, spread, ensemble.samples),
        profiles={name: p.to_dict() for name, p in profiles.items()},
        exponents=exponents(chosen, natural, data),
        flops_model=data.flops_model,
        costs=ensemble.costs,
        optima=optima,
        frontier=_frontier(ensemble, data, optima),
        range=_ranges(data),
        excluded=[dict(entry) for entry in excluded],
        held_out=judgement.held_out,
        leave_one_out=judgement.leave_one_out,
        sensitivity=judgement.sensitivity,
        definitions=other_definitions(data, chosen, solution, problem, judged_by, wanted),
        isoflop=isoflop_check(data.params, data.loss, data.flops, weight=data.weight),
        residuals=residual_summary(data, problem.residuals(solution.theta)[0]),
        warnings=tuple(warnings),
        provenance={
            "observations_sha256": data.digest(),
            "kernel": compiled.status().reason,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        ensemble=ensemble,
    )


@dataclass(frozen=True)
class _Asked:
    """The bootstrap that was asked for."""

    count: int
    resampling: Resampling
    level: float
    seed: int


def _missing(data: Observations, law: Law) -> list[DataFault]:
    if "U" in law.variables and data.unique_tokens is None:
        return [DataFault.of("unique_tokens", f"the law {law.name} needs this column")]
    return []


def _data_warnings(data: Observations, law: Law) -> list[str]:
    found = []
    repeated = data.duplicates()
    if repeated:
        rows = "1 row repeats" if repeated == 1 else f"{repeated} rows repeat"
        text = f"{rows} another in size, tokens and loss, and count as measurements of their own"
        found.append(text)
    if data.unique_tokens is not None and "U" not in law.variables:
        epochs = data.tokens / data.unique_tokens
        again = int(np.count_nonzero(epochs > 1 + 1e-6))
        if again:
            rows = "1 row has" if again == 1 else f"{again} of {data.rows} rows have"
            found.append(
                f"{rows} read tokens more than once, in up to "
                f"{format_times(np.nanmax(epochs))} epochs, and "
                f"the law {law.name} takes them as new: see repeated_tokens"
            )
    return found


def _bootstrap(
    data: Observations,
    problem: Problem,
    estimator: Estimator,
    solution: Solution,
    asked: _Asked,
    watch: Callable[[int, int], None] | None,
    warnings: list[str],
) -> Resamples | None:
    """Fit the resamples; None where there are none, with a warning that says why."""
    if asked.count == 0:
        return None
    p = problem.dimension
    spare = data.runs - p
    if spare < LEAST_SPARE:
        warnings.append(
            f"no intervals: {data.runs} runs are too few to draw from "
            f"({p + LEAST_SPARE} are needed)"
        )
        return None
    if spare < FEW_SPARE_RUNS:
        warnings.append(f"the intervals rest on {data.runs} runs and are rough")
    variance = weight_variance(
        problem.residuals(solution.theta)[0],
        data.weight,
        data.run,
        estimator,
        parameters=p,
        level=asked.level,
    )
    draws = Draws(asked.resampling, asked.count, asked.seed, data.run, data.weight, variance)
    return refit(problem, draws, estimator, solution.ends, watch=watch)


def _samples(problem: Problem, resamples: Resamples | None) -> FloatArray:
    if resamples is None:
        return np.empty((0, problem.dimension))
    return problem.natural(resamples.theta)


def _costs(
    data: Observations, resamples: Resamples | None, warnings: list[str]
) -> tuple[dict[str, CostLaw], dict[str, FloatArray]]:
    """The cost laws, and their coefficients under every resample."""
    layouts = Layouts(data.ranks, data.nodes, data.steps)
    costs: dict[str, CostLaw] = {}
    samples: dict[str, FloatArray] = {}
    for name, (column, unit) in _cost_columns(data, warnings).items():
        costs[name] = fit_cost(
            column,
            data.tokens,
            data.flops,
            weight=data.weight,
            quantity=name,
            unit=unit,
            params=data.params,
            layouts=layouts,
            run=data.run,
        )
        if column is None or not costs[name].fitted or resamples is None:
            continue
        design = cost_design(
            column,
            data.tokens,
            data.flops,
            params=data.params,
            layouts=layouts,
            names=costs[name].names,
            weight=data.weight,
        )
        samples[name] = draw_costs(
            design,
            costs[name].coefficients,
            weight=data.weight,
            size=None if data.params is None else np.unique(data.params, return_inverse=True)[1],
            run=data.run,
            count=resamples.draws.count,
            seed=resamples.draws.seed,
        )
    return costs, samples


def _cost_columns(
    data: Observations, warnings: list[str]
) -> dict[str, tuple[FloatArray | None, str]]:
    seconds = data.gpu_seconds
    if seconds is None and data.duration_s is not None:
        seconds = data.duration_s if data.ranks is None else data.duration_s * data.ranks
        if data.ranks is None:
            warnings.append(
                "neither gpu_seconds nor ranks was given: GPU hours are computed as if every run "
                "used one device"
            )
    return {"energy_j": (data.energy_j, "J"), "gpu_seconds": (seconds, "s")}


def _ci(
    law: Law,
    data: Observations,
    ensemble: Ensemble,
    resamples: Resamples | None,
    asked: _Asked,
) -> dict[str, Any]:
    samples = ensemble.samples
    table = law.values(samples)
    methods = {
        "runs": "cluster bootstrap by run (Gamma weights), percentile",
        "rows": "bootstrap by row (multinomial weights), percentile",
    }
    out: dict[str, Any] = {
        "level": asked.level,
        "method": methods[asked.resampling] if samples.size else "none",
        "resamples": int(samples.shape[0]),
        "asked": asked.count,
        "seed": asked.seed,
        "params": {
            name: list(percentile_interval(table[:, i], asked.level))
            for i, name in enumerate(law.parameter_names)
        },
        "exponents": None,
    }
    if law.has_optimum:
        largest = float(np.max(data.flops))
        a, b = law.exponents(samples, data.flops_model, flops=largest)
        out["exponents"] = {
            "a": list(percentile_interval(a, asked.level)),
            "b": list(percentile_interval(b, asked.level)),
        }
    found = resamples
    out["weight_variance"] = None if found is None else found.draws.variance
    out["checked"] = 0 if found is None else found.checked
    out["missed"] = 0 if found is None else found.missed
    out["rescued"] = False if found is None else found.rescued
    return out


def _errors(
    law: Law, problem: Problem, solution: Solution, spread: FloatArray, samples: FloatArray
) -> dict[str, dict[str, float]]:
    """Standard errors of the parameters, by the delta rule for amplitudes: dA = A d(log A)."""
    turn = natural_jacobian(problem, solution.theta)
    variance = np.diag(turn @ spread @ turn.T)
    values = law.values(problem.natural(solution.theta))
    logs = np.array([p.role == "amplitude" for p in law.parameters])
    sandwich = np.sqrt(np.maximum(variance, 0.0)) * np.where(logs, values, 1.0)
    drawn = np.full(values.size, NAN)
    if samples.shape[0] > 1:
        drawn = np.std(law.values(samples), axis=0, ddof=1)
    return {
        "sandwich": dict(zip(law.parameter_names, sandwich.tolist(), strict=True)),
        "bootstrap": dict(zip(law.parameter_names, drawn.tolist(), strict=True)),
    }


def _frontier(
    ensemble: Ensemble, data: Observations, optima: tuple[Optimum, ...]
) -> tuple[Optimum, ...]:
    if not ensemble.law.has_optimum:
        return ()
    wanted = [o.flops for o in optima if np.isfinite(o.flops)]
    low = min([float(np.min(data.flops)), *wanted])
    high = max([float(np.max(data.flops)) * 1.0001, *wanted])
    return tuple(
        ensemble.at(float(c), brief=True) for c in np.geomspace(low, high, FRONTIER_POINTS)
    )


def _ranges(data: Observations) -> dict[str, list[float]]:
    columns = {
        "flops": data.flops,
        "params": data.params,
        "tokens": data.tokens,
        "loss": data.loss,
    }
    return {name: [float(v.min()), float(v.max())] for name, v in columns.items()}
