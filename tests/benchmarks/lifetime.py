#!/usr/bin/env python3
"""Train and serve: how often the intervals of the best size hold it, in pretended campaigns.

    python tests/benchmarks/lifetime.py                 # 200 campaigns, some minutes
    python tests/benchmarks/lifetime.py --campaigns 50

Each campaign has a training of 36 runs (six sizes, six numbers of tokens) and a study of six models
served at five batches and three lengths of prompts, twice each. What they come from is known: a
Chinchilla law, a law of energy, the law of serving of `serving_ground.csv` in joules of a larger
device. Losses are off by run; joules by size, by run or deployment and by cycle, as they are
in real studies. Asked are the best size over a life, its tokens and its joules, at lives of several
lengths; the truth is what the known laws answer to the same question.

Exit status 1 where an interval of a size, of all lives together, holds the truth in less than 95 %
by more than two standard errors of the count.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from serving_law import GROUND, best_of, columns_of, fit, read

from llem.scaling import ServingLaw, Use, fit_law, fit_serving, train_and_serve

USE = Use(16, 64, 32)
LOSS = 3.2
LIVES = (0.0, 1e10, 1e11, 1e12)
# Of a second of the core that was measured, in joules.
WATTS = 20.0
FIGURES = ("params", "tokens", "training_j", "serving_j", "total_j")
# Standard deviations of logarithms: of a loss by run; of joules by size, by deployment or run, by
# cycle.
OFF_LOSS = 0.003
OFF = ((0.05, 0.05, 0.03), (0.10, 0.05, 0.03), (0.0, 0.05, 0.03))


def training(random: np.random.Generator, off: tuple[float, ...], *, bootstrap: int) -> Any:
    """A fit of the planted laws of loss and energy, off by chance."""
    n = np.repeat(np.geomspace(1e6, 1e8, 6), 6)
    d = np.tile(np.geomspace(2e7, 2e9, 6), 6)
    loss = 1.8 + 400 / n**0.34 + 900 / d**0.31
    energy = 500 + 2e-6 * d + 3e-11 * 6 * n * d
    if any(off):
        loss = loss * np.exp(random.normal(0, OFF_LOSS, n.size))
        size = np.repeat(np.arange(6), 6)
        energy = energy * np.exp(random.normal(0, off[0], 6)[size]
                                 + random.normal(0, off[1], n.size))  # fmt: skip
    return fit_law(n, d, loss, energy_j=energy, bootstrap=bootstrap)


def serving(law: ServingLaw, rows: Any, random: np.random.Generator, off: tuple[float, ...], *,
            bootstrap: int) -> ServingLaw:  # fmt: skip
    columns = columns_of([row for row in rows for _ in range(2)])
    features = law.features(columns["models"], columns["counts"])
    size = np.unique(columns["models"].params, return_inverse=True)[1]
    unit = np.unique(columns["deployment"], return_inverse=True)[1]
    phases = {}
    for part in law.parts:
        lies = (random.normal(0, off[0], size.max() + 1)[size]
                + random.normal(0, off[1], unit.max() + 1)[unit]
                + random.normal(0, off[2], unit.size))  # fmt: skip
        phases[part.phase] = features[:, part.at] @ law.coefficients[part.at] * np.exp(lies)
    return fit_serving(sum(phases.values()), **columns, **phases, bootstrap=bootstrap,
                       seed=int(random.integers(2**31)), judged=False)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=200)
    parser.add_argument("--bootstrap", type=int, default=300)
    args = parser.parse_args()
    rows = best_of(read(GROUND))
    seconds = fit(rows, judged=False)
    law = replace(seconds, coefficients=WATTS * seconds.coefficients)
    exact = np.random.default_rng(0)
    trained = training(exact, (0.0, 0.0), bootstrap=0)
    served = serving(law, rows, exact, (0.0, 0.0, 0.0), bootstrap=0)
    good = True
    for off in OFF:
        held = {name: np.full((args.campaigns, len(LIVES)), np.nan) for name in FIGURES}
        wide: list[float] = []
        truths = [train_and_serve(trained.ensemble, served, loss=LOSS, served_tokens=t, use=USE)
                  for t in LIVES]  # fmt: skip
        for seed in range(args.campaigns):
            random = np.random.default_rng(seed)
            found = training(random, off, bootstrap=args.bootstrap)
            own = serving(law, rows, random, off, bootstrap=args.bootstrap)
            for k, (life, truth) in enumerate(zip(LIVES, truths, strict=True)):
                answer = train_and_serve(
                    found.ensemble, own, loss=LOSS, served_tokens=life, use=USE
                )
                for name in FIGURES:
                    low, high = answer.ci[name]
                    if math.isfinite(getattr(truth, name)) and getattr(truth, name) > 0:
                        held[name][seed, k] = low <= getattr(truth, name) <= high
                low, high = answer.ci["params"]
                wide.append(math.log(high / low) / 2 if low > 0 else math.nan)
        print(f"joules off by size {off[0]:.0%}, deployment {off[1]:.0%}, cycle {off[2]:.0%}; best "
              f"sizes {', '.join(f'{t.params:.3g}' for t in truths)}; intervals of them "
              f"+- {np.nanmedian(wide):.0%}")  # fmt: skip
        for name in FIGURES:
            by_life = [np.mean(life) for life in held[name].T if np.isfinite(life).all()]
            each = np.nanmean(held[name], axis=1)
            error = float(np.nanstd(each, ddof=1)) / math.sqrt(args.campaigns)
            print(f"    {name:<11} {np.nanmean(each):.3f} +- {error:.3f}; by life "
                  + " ".join(f"{share:.3f}" for share in by_life), flush=True)  # fmt: skip
            if name == "params":
                good &= bool(np.nanmean(each) > 0.95 - 2 * error)
    print("as wanted" if good else "NOT as wanted")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
