"""Waves: what a plan promises before it is run, and which runs come next after what was learnt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.campaign import Run, Runs
from llem.planning.cells import Bench, Cell
from llem.planning.design import (
    Cells,
    Design,
    Expected,
    Question,
    choose_runs,
    expected_error,
    prior_laws,
    spread_of_laws,
)
from llem.planning.recipe import MIN_STEPS
from llem.planning.scatter import Scatter
from llem.planning.trust import CONTRADICTED, lack_of_fit, near_optimum
from llem.scaling import CHINCHILLA, FlopsModel

FloatArray = NDArray[np.float64]

# Candidates of a later wave: so many amounts of compute from the smallest run to the largest, and
# so many ratios of tokens to parameters. With fewer, a design errs more where exponents drift.
COMPUTE_STEPS = 21
RATIO_STEPS = 34
TOKENS_PER_PARAM = (0.2, 1e5)
# No run far below the smallest so far, none that alone takes more than this share of what is left,
# and no ratio of tokens to parameters this many times beyond those seen.
SMALLEST_SHARE = 0.3
LARGEST_SHARE = 1 / 8
RATIO_MARGIN = 3.0
RESAMPLES = 300
# Seeds of later waves do not meet those of earlier ones.
SEED_STRIDE = 1000
# Of a budget for several waves the first, which has only a prior to go by, gets this share; every
# other one gets half as much again as the one before it.
FIRST_SHARE = 0.25
GROWTH = 1.5
BUDGETS = (0.5, 2.0)
# What `promise_of` tells, as keys of plan.json's `design`.
PROMISED = (
    "predicted_se_log_params",
    "predicted_se_loss",
    "law_error_log_params",
    "law_error_loss",
    "noise",
    "noise_degrees",
    "laws",
    "for_budget",
)


@dataclass(frozen=True)
class Learnt:
    """What earlier waves have shown, one entry a completed run: counts, FLOP, nats; and the fit.

    laws: (k, 5) resamples of the fit, natural coordinates. lack_of_fit: of the law, see `trust`; 0
    where it is not known.
    """

    params: FloatArray
    tokens: FloatArray
    flops: FloatArray
    laws: FloatArray
    scatter: Scatter
    flops_model: FlopsModel
    lack_of_fit: float = 0.0

    @property
    def contradicted(self) -> bool:
        """Whether the runs contradict the law, so that it is asked near its optimum only."""
        return self.lack_of_fit > CONTRADICTED

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], *, prior: Scatter | None = None, seed: int = 0
    ) -> Learnt:
        """From observations (mappings with params, tokens, loss, flops), completed runs only.

        prior: what their scatter is drawn towards.

        Raises ScalingDataError where they cannot carry a law yet.
        """
        # A first wave is planned without a fit: importing the fitter takes longer than planning.
        from llem.scaling import fit_law

        columns = {
            name: np.array([float(row[name]) for row in rows])
            for name in ("params", "tokens", "loss", "flops")
        }
        fit = fit_law(
            columns["params"],
            columns["tokens"],
            columns["loss"],
            flops=columns["flops"],
            bootstrap=RESAMPLES,
            seed=seed,
        )
        samples = fit.ensemble.samples
        laws = samples if samples.size else fit.ensemble.natural[None, :]
        pairs = np.stack([columns["params"], columns["tokens"]], axis=1)
        cell = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
        log_loss = np.log(columns["loss"])
        fitted = np.log(CHINCHILLA.loss(fit.ensemble.natural, *np.log(pairs.T)))
        prior = prior or Scatter()
        scatter = prior.measured(
            log_loss, columns["tokens"], cell, fitted, parameters=len(CHINCHILLA.parameters)
        )
        # What cells may differ by is not asked of these, or no law would ever be contradicted.
        usual = replace(scatter, cells=prior.cells)
        return cls(
            params=columns["params"],
            tokens=columns["tokens"],
            flops=columns["flops"],
            laws=laws,
            scatter=scatter,
            flops_model=fit.flops_model,
            lack_of_fit=lack_of_fit(log_loss, columns["tokens"], cell, fitted, scatter=usual),
        )


@dataclass(frozen=True)
class NextWave:
    """Cells of the next wave with the seeds of each, and the design that chose them.

    tokens, counts (m,): of all cells that the fit will have, those of earlier waves among them, and
    how many runs each has.
    """

    cells: tuple[tuple[Cell, int], ...]
    design: Design
    question: Question
    tokens: FloatArray
    counts: FloatArray


def promise_of(runs: Runs, *, target_flops: float) -> dict[str, Any]:
    """What a first wave is expected to tell, from published laws and the usual scatter.

    Also for half and twice the budget: the same grid at that compute.
    """
    scatter = Scatter.expected(runs.replicates[0].run.data)
    question = Question(target_flops=target_flops, laws=prior_laws(), scatter=scatter)
    seeds: Counter[tuple[float, float]] = Counter()
    for some in runs.replicates:
        seeds[float(some.run.params), float(some.run.tokens)] += len(some)
    pairs, counts = np.array(sorted(seeds)), np.array([seeds[pair] for pair in sorted(seeds)])

    def expected(share: float) -> Expected:
        at = pairs * math.sqrt(share)
        cells = Cells(at[:, 0], at[:, 1], np.ones(len(at)))
        return expected_error(cells, counts, question=question)

    return {
        **told(expected(1.0)),
        **_scatter_told(question.scatter, pairs[:, 1], counts),
        "laws": "published fits, before anything is measured",
        "for_budget": {f"{share:g}": told(expected(share)) for share in BUDGETS},
    }


def wave_share(number: int, waves: int) -> float:
    """The share of what is left of the budget that wave `number` of `waves` spends, from 1 on.

    All of it for the last one, and for a wave that the campaign did not ask for.
    """
    if number >= waves:
        return 1.0
    if number == 1:
        return FIRST_SHARE
    weights = [GROWTH**later for later in range(waves - number + 1)]
    return weights[0] / sum(weights)


def promise_of_waves(
    bench: Bench, runs: Runs, *, target_flops: float, budget: float, unit: str
) -> dict[str, Any]:
    """What the first wave's `runs` and later ones for `budget` are expected to tell together.

    The later ones as they would be chosen if the published laws were all that is ever known; what
    the first wave tells makes them better.
    """
    assumed = Learnt(
        params=np.array([float(r.params) for r in runs]),
        tokens=np.array([float(r.tokens) for r in runs]),
        flops=np.array([r.flops for r in runs]),
        laws=prior_laws(),
        scatter=Scatter.expected(bench.data),
        flops_model=FlopsModel(),
    )
    try:
        wave = next_wave(
            bench, assumed, target_flops=target_flops, budget=budget, unit=unit,
            first_level=1 + max(r.level for r in runs),
        )  # fmt: skip
    except ValueError:
        return promise_of(runs, target_flops=target_flops)
    text = "published fits, before anything is measured; all waves"
    return {**promise_of_wave(wave), "laws": text}


def promise_of_wave(wave: NextWave) -> dict[str, Any]:
    """What a later wave is expected to tell, together with all runs before it."""
    design = wave.design
    return {
        **told(design.expected),
        **_scatter_told(wave.question.scatter, wave.tokens, wave.counts),
        "laws": "resamples of the fit so far",
        "for_budget": {f"{share:g}": told(design.for_budget[share]) for share in BUDGETS},
    }


def told(expected: Expected) -> dict[str, float]:
    """Expected errors as in plan.json: noise alone if the law is right, and the law's own error."""
    return {
        "predicted_se_log_params": expected.se_log_params,
        "predicted_se_loss": expected.se_loss,
        "law_error_log_params": expected.law_error_log_params,
        "law_error_loss": expected.law_error_loss,
    }


def _scatter_told(scatter: Scatter, tokens: FloatArray, counts: FloatArray) -> dict[str, float]:
    """By how much runs are taken to lie off the law, and the degrees of freedom of that."""
    return {"noise": scatter.typical(tokens, counts), "noise_degrees": scatter.degrees}


def next_wave(
    bench: Bench,
    learnt: Learnt,
    *,
    target_flops: float,
    budget: float,
    unit: str,
    first_level: int,
    runs: int | None = None,
    pending: Sequence[Run] = (),
) -> NextWave:
    """Spend `budget` (in `unit`) on the runs that tell most of log N* at the target.

    first_level: number of the lowest compute level of this wave. pending: runs that are paid for
    and not observed yet: they will be. Candidates are models of the campaign's family, or the
    values of the user's class, on no more tokens than the data have; near the optimum only, where
    the runs so far contradict the law.
    """
    candidates = _candidates(bench, learnt, budget=budget, unit=unit, first_level=first_level)
    if not candidates:
        raise ValueError("no run fits what is left of the budget")
    # What was observed, or will be, takes part in the fit; it is chosen again if it can be.
    seen = [*zip(learnt.params.tolist(), learnt.tokens.tolist(), strict=True)]
    seen += [(float(run.params), float(run.tokens)) for run in pending]
    runs_of = Counter(seen)
    cost = {(float(c.model.params), float(c.tokens)): bench.cost(c, unit) for c in candidates}
    pairs = list(cost) + [pair for pair in runs_of if pair not in cost]
    cells = Cells(
        np.array([pair[0] for pair in pairs]),
        np.array([pair[1] for pair in pairs]),
        np.array([cost.get(pair, np.inf) for pair in pairs]),
    )
    if learnt.contradicted:
        largest = float(learnt.flops.max())
        near = near_optimum(cells, learnt.laws, largest_flops=largest, model=learnt.flops_model)
        if near[: len(candidates)].any():
            cells = replace(cells, cost=np.where(near, cells.cost, np.inf))
    done = np.array([runs_of[pair] for pair in pairs], dtype=np.int64)
    question = Question(
        target_flops=target_flops,
        laws=spread_of_laws(learnt.laws, target_flops),
        scatter=learnt.scatter,
        flops_model=learnt.flops_model,
    )
    design = choose_runs(cells, question=question, budget=budget, done=done, max_runs=runs)
    chosen = [
        (cell, int(count))
        for cell, count in zip(candidates, design.counts[: len(candidates)], strict=True)
        if count
    ]
    counts = (design.counts + done).astype(np.float64)
    kept = counts > 0
    return NextWave(tuple(chosen), design, question, cells.tokens[kept], counts[kept])


def runs_of_wave(bench: Bench, wave: NextWave, *, number: int) -> Runs:
    """The runs of a later wave, their seeds apart from those of others."""
    first = SEED_STRIDE * number
    return Runs(
        some for cell, n in wave.cells for some in bench.runs(cell, range(first, first + n))
    )


def _candidates(
    bench: Bench, learnt: Learnt, *, budget: float, unit: str, first_level: int
) -> list[Cell]:
    """Cells near what was observed: a law is only as good there as where it was seen to hold.

    Upwards in compute the cost of a run is the limit.
    """
    smallest, largest = SMALLEST_SHARE * float(learnt.flops.min()), float(learnt.flops.max())
    ratio = learnt.tokens / learnt.params
    least, most = float(ratio.min()) / RATIO_MARGIN, float(ratio.max()) * RATIO_MARGIN
    steps = math.log(largest / smallest) / (COMPUTE_STEPS - 1)
    found: dict[tuple[int, int], Cell] = {}
    level, beyond = first_level, True
    while beyond:
        flops = smallest * math.exp(steps * (level - first_level))
        beyond = flops < largest
        for model in _models(bench, flops):
            cell = bench.cell(level, model, flops)
            if not isinstance(cell, Cell) or cell.tokens > bench.data.once_tokens:
                continue
            if not least <= cell.tokens / cell.model.params <= most or cell.steps < MIN_STEPS:
                continue
            if bench.cost(cell, unit) > LARGEST_SHARE * budget:
                continue
            beyond = True
            found.setdefault((cell.model.params, cell.tokens), cell)
        level += 1
    return list(found.values())


def _models(bench: Bench, flops: float) -> list[Any]:
    if bench.own is not None:
        return [bench.own_model(value) for value in bench.campaign.model.values]
    ratios = np.geomspace(*TOKENS_PER_PARAM, RATIO_STEPS)
    models = [bench.decoder(math.sqrt(flops / (6.0 * ratio))) for ratio in ratios]
    return [model for model in models if model is not None]
