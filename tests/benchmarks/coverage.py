"""Do the 95 % intervals hold the truth in 95 % of data sets? Prints a Markdown table.

    python tests/benchmarks/coverage.py --sets 1000 --resamples 1000 --jobs 2

Synthetic data from known laws: isoFLOP grids of 20 to 200 runs, one to three seeds a cell, noise of
.5 % and 2 % of the loss, and runs of eight checkpoints whose noise is half the run's own and half
autocorrelated (.8 from one to the next). For each data set the law is fitted and its resamples
drawn as `fit_law` does by default (Huber, delta 1e-3, Gamma weights by run, percentiles), and the
intervals of a = beta/(alpha + beta) and of log N* at ten times the largest compute are compared
with the truth. The parts of `fit_law` that do not bear on the intervals are left out.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llem.scaling import CHINCHILLA, Estimator, FlopsModel
from llem.scaling.fitting.bootstrap import Draws, percentile_interval, refit, weight_variance
from llem.scaling.fitting.solve import solve
from llem.scaling.observations import check_observations

FloatArray = NDArray[np.float64]

LEVEL = 0.95
BEYOND = 10.0
AUTOCORRELATION = 0.8
SMALLEST_FLOPS = 1e18
# The first as fitted to the digitised runs of arXiv 2203.15556, the second as published there.
TRUTHS = {
    "refitted": {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672},
    "published": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "steep": {"E": 1.9, "A": 3000.0, "B": 3000.0, "alpha": 0.5, "beta": 0.4},
}


@dataclass(frozen=True)
class Scenario:
    """`levels` amounts of compute over `decades`, each with `sizes` models up to a factor `side`
    from its best size, `seeds` runs a cell, `checkpoints` rows a run."""

    truth: str
    levels: int
    decades: float
    sizes: int
    side: float
    seeds: int
    noise: float
    checkpoints: int = 1
    loss: str = "huber"

    @property
    def runs(self) -> int:
        return self.levels * self.sizes * self.seeds

    @property
    def parameters(self) -> FloatArray:
        return CHINCHILLA.natural(TRUTHS[self.truth])

    def design(self) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
        """N, D and the number of the run of each row."""
        flops = np.geomspace(SMALLEST_FLOPS, SMALLEST_FLOPS * 10**self.decades, self.levels)
        log_best, _ = CHINCHILLA.optimum(self.parameters, flops, FlopsModel())
        shift = np.linspace(-1, 1, self.sizes) * math.log(self.side)
        sizes = np.repeat(np.exp(log_best[:, None] + shift).ravel(), self.seeds)
        tokens = np.repeat(flops, self.sizes * self.seeds) / (6 * sizes)
        share = np.arange(1, self.checkpoints + 1) / self.checkpoints
        return (
            np.repeat(sizes, self.checkpoints),
            (tokens[:, None] * share).ravel(),
            np.repeat(np.arange(self.runs), self.checkpoints),
        )

    def noises(self, rng: np.random.Generator) -> FloatArray:
        """Noise of log loss, one for each row."""
        if self.checkpoints == 1:
            return self.noise * rng.standard_normal(self.runs)
        own = rng.standard_normal((self.runs, 1))
        steps = rng.standard_normal((self.runs, self.checkpoints))
        for j in range(1, self.checkpoints):
            fresh = math.sqrt(1 - AUTOCORRELATION**2) * steps[:, j]
            steps[:, j] = AUTOCORRELATION * steps[:, j - 1] + fresh
        return np.asarray(self.noise * math.sqrt(0.5) * (own + steps)).ravel()


SCENARIOS = (
    Scenario("refitted", 5, 2.5, 4, 5, 1, 0.005),
    Scenario("refitted", 5, 2.5, 4, 5, 1, 0.02),
    Scenario("steep", 5, 2, 4, 4, 1, 0.02),
    Scenario("published", 5, 2.5, 4, 5, 2, 0.005),
    Scenario("published", 5, 2.5, 8, 6, 1, 0.02),
    Scenario("published", 5, 2.5, 4, 5, 3, 0.005),
    Scenario("steep", 5, 2.5, 8, 8, 2, 0.005),
    Scenario("steep", 4, 2.5, 10, 10, 2, 0.02),
    Scenario("refitted", 8, 3, 8, 6, 3, 0.005),
    Scenario("published", 8, 2, 25, 8, 1, 0.02),
    Scenario("refitted", 5, 2, 4, 4, 1, 0.005, checkpoints=8),
    Scenario("published", 5, 2.5, 4, 5, 1, 0.02, checkpoints=8),
    Scenario("steep", 8, 3, 5, 6, 1, 0.005, checkpoints=8),
    Scenario("refitted", 5, 2.5, 4, 5, 1, 0.02, loss="squares"),
    Scenario("published", 5, 2.5, 8, 6, 1, 0.02, loss="squares"),
)


def figures(natural: FloatArray, flops: float) -> FloatArray:
    """a and log N* at `flops`, last axis 2."""
    a, _ = CHINCHILLA.exponents(natural, FlopsModel(), flops=flops)
    log_n, _ = CHINCHILLA.optimum(natural, flops, FlopsModel())
    return np.stack([a, log_n], axis=-1)


def intervals(scenario: Scenario, number: int, *, resamples: int, seed: int) -> FloatArray:
    """Intervals of both figures for one data set: (2, 2) of low and high."""
    rng = np.random.default_rng([seed, number])
    params, tokens, run = scenario.design()
    loss = CHINCHILLA.predict(TRUTHS[scenario.truth], params, tokens)
    loss = loss * np.exp(scenario.noises(rng))
    data = check_observations(params, tokens, loss, run_id=run.astype(str))
    estimator = Estimator(scenario.loss)
    problem = CHINCHILLA.bind(data)
    solution = solve(problem, data.weight, estimator)
    variance = weight_variance(
        problem.residuals(solution.theta)[0],
        data.weight,
        data.run,
        estimator,
        parameters=problem.dimension,
        level=LEVEL,
    )
    draws = Draws("runs", resamples, number, data.run, data.weight, variance)
    drawn = refit(problem, draws, estimator, solution.ends)
    values = figures(problem.natural(drawn.theta), BEYOND * float(np.max(data.flops)))
    return np.array([percentile_interval(values[:, i], LEVEL) for i in range(2)])


def row(scenario: Scenario, found: FloatArray) -> str:
    """One line of the table from the intervals (sets, 2, 2)."""
    params, tokens, _ = scenario.design()
    truth = figures(scenario.parameters, BEYOND * float(np.max(6 * params * tokens)))
    below, above = truth < found[..., 0], truth > found[..., 1]
    width = np.median(found[..., 1] - found[..., 0], axis=0)
    cells = []
    for i in range(2):
        low, high = 100 * float(below[:, i].mean()), 100 * float(above[:, i].mean())
        cells.append(f"{100 - low - high:.1f} ({low:.1f} / {high:.1f}) | {width[i]:.3g}")
    rows = f"{scenario.runs}" + (f" x {scenario.checkpoints}" if scenario.checkpoints > 1 else "")
    law = scenario.truth + (", least squares" if scenario.loss == "squares" else "")
    return (
        f"| {law} | {rows} | {scenario.seeds} | {100 * scenario.noise:g} % | {' | '.join(cells)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000, help="data sets a scenario")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| law | runs | seeds a cell | noise | a: % covered (below / above) | width "
          "| log N*: % covered (below / above) | width |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    begun = time.perf_counter()
    kept = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for scenario in SCENARIOS:
            work = partial(intervals, scenario, resamples=args.resamples, seed=args.seed)
            found = np.array(list(pool.map(work, range(args.sets), chunksize=10)))
            kept.append(found)
            print(row(scenario, found), flush=True)
    error = 100 * math.sqrt(LEVEL * (1 - LEVEL) / args.sets)
    print(
        f"\n{args.sets} data sets a scenario, {args.resamples} resamples each, seed {args.seed}; "
        f"standard error of a percentage {error:.1f}; {time.perf_counter() - begun:.0f} s"
    )


if __name__ == "__main__":
    main()
