"""What slices without a minimum inside do to the optimum: of a truth that the law fits, and not.

    python tests/benchmarks/edge_minima.py [CAMPAIGNS]

Grids of four slices of five sizes with noise of .5 %, answered ten times beyond their largest
compute; some slices lie 20 times off their best size, to either side. Chinchilla is fitted to a
truth of its own form, and to one of arXiv 2001.08361's with a constant. Figures: docs/fitting.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from llem.pipeline.slices import edge_minima
from llem.scaling import fit_law

COMPUTE = np.geomspace(1e17, 1e19, 4)
TARGET = 1e20
NOISE = 0.005
OFF = (20.0, 0.05)
EDGES = ((), (3,), (0,), (2, 3), (1, 2, 3))
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


def chinchilla(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28


def another(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.2 + ((8.8e6 / n) ** (0.34 / 0.28) + 3e8 / d) ** 0.28


def best(truth: Truth, flops: float) -> float:
    sizes = np.geomspace(1e4, 1e13, 200_001)
    return float(sizes[np.argmin(truth(sizes, flops / 6 / sizes))])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rng = np.random.default_rng(3)
    for truth in (chinchilla, another):
        wanted = best(truth, TARGET)
        for off in OFF:
            for edges in EDGES:
                errors, held, widths, told = [], 0, [], 0
                for seed in range(count):
                    sizes = np.concatenate([
                        best(truth, c) * (off if i in edges else 1) * np.geomspace(0.25, 4, 5)
                        for i, c in enumerate(COMPUTE)
                    ])  # fmt: skip
                    flops = np.repeat(COMPUTE, 5)
                    tokens = flops / 6 / sizes
                    loss = truth(sizes, tokens) * np.exp(NOISE * rng.standard_normal(sizes.size))
                    told += len(edge_minima(sizes, loss, flops).edges)
                    fit = fit_law(
                        sizes, tokens, loss, flops=flops, bootstrap=200, seed=seed,
                        targets=((TARGET),),
                    )  # fmt: skip
                    optimum = fit.to_dict()["optima"][0]
                    low, high = optimum["ci"]["params"]
                    errors.append(math.log(optimum["params"] / wanted))
                    widths.append(math.log(high / low) / 2)
                    held += low <= wanted <= high
                error = np.array(errors)
                print(
                    f"{truth.__name__:10s} off x {off:<5g} slices {edges!s:10s} "
                    f"told {told / count:.1f}: N* x {np.exp(np.median(error)):.2f}, "
                    f"rms x/ {np.exp(np.sqrt((error**2).mean())):.2f}, "
                    f"interval x/ {np.exp(np.median(widths)):.2f} held {held / count:.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
