"""How long fits take beside scipy's L-BFGS-B, on one core. See README.md in this folder.

    python tests/benchmarks/fit_speed.py [--data FILE.csv] [--quick]

The peer gets what helps it: the objective and its analytic gradient in vectorised numpy (never
finite differences), and centred logarithms (in raw ones the problem is ill conditioned). Its stop
rules are tight enough to end at the optimum; two more peers show what the usual choices cost it:
the raw coordinates of arXiv 2203.15556, and the stop rules that scipy has by default.

Wall-clock and processor seconds are both printed. Ratios are of processor seconds: where other work
takes turns on the core they are the fairer ones, alone they are the same, and threads would show.
"""

from __future__ import annotations

import os

# Before numpy is imported: the libraries below it read these once, when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["BLIS_NUM_THREADS"] = "1"
os.environ["VECLIB_MAXIMUM_THREADS"] = "1"

import argparse
import csv
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.optimize import minimize

from llem.scaling import Estimator, fit_law, get_law
from llem.scaling.fitting.bootstrap import Draws, Resamples, refit
from llem.scaling.fitting.solve import solve
from llem.scaling.observations import check_observations

FloatArray = NDArray[np.float64]
T = TypeVar("T")

LAW = get_law("chinchilla")
DELTA = 1e-3
SEED = 0
# The five highest losses of the digitised points are left out, as published (arXiv 2404.10102).
DROPPED = 5
# Two objectives within this share of each other are the same number.
SAME = 1e-12
TIGHT: dict[str, float] = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 15000, "maxfun": 15000}
TRUTH = {"E": 1.82, "A": 480.0, "B": 2100.0, "alpha": 0.348, "beta": 0.366}
LLEM_REPEATS = 15


@dataclass(frozen=True)
class Data:
    """Parameters (count), tokens (count), loss (nats per token), each (n,), and where from."""

    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    origin: str


@dataclass(frozen=True)
class Lap:
    """Wall-clock and processor seconds of a call."""

    wall: float
    cpu: float


def timed(call: Callable[[], T]) -> tuple[T, Lap]:
    """What a call answers, and how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    return answer, Lap(time.perf_counter() - wall, time.process_time() - cpu)


def warm_median(call: Callable[[], T], repeats: int) -> tuple[T, Lap]:
    """One call unmeasured, then the medians over `repeats` calls."""
    answer = call()
    laps = [timed(call)[1] for _ in range(repeats)]
    return answer, Lap(median(lap.wall for lap in laps), median(lap.cpu for lap in laps))


# -- data


def read_data(path: Path) -> Data:
    """A CSV with N, D, loss (or params, tokens, loss); the highest losses are dropped."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("N", "D", "loss") if "N" in rows[0] else ("params", "tokens", "loss")
    params, tokens, loss = (np.array([float(row[name]) for row in rows]) for name in names)
    keep = loss < np.sort(loss)[-DROPPED]
    origin = f"{path.parent.name}/{path.name}, the {DROPPED} highest losses dropped"
    return Data(params[keep], tokens[keep], loss[keep], origin)


def synthetic(rows: int) -> Data:
    """Runs spread like the digitised points of arXiv 2203.15556, noise .5 % and some outliers."""
    rng = np.random.default_rng(SEED)
    params = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), rows))
    tokens = 10 ** rng.uniform(18.8, 21.5, rows) / 6 / params
    noise = np.where(rng.random(rows) < 0.05, 0.04, 0.005) * rng.standard_normal(rows)
    loss = LAW.predict(TRUTH, params, tokens) * np.exp(noise)
    return Data(params, tokens, loss, "synthetic, of the shape of epoch_chinchilla")


def choose_data(given: Path | None) -> Data:
    """The file given, else the published set, else a synthetic one; its origin says which."""
    if given is not None:
        return read_data(given)
    root = os.environ.get("LLEM_SHARED_DATA")
    path = Path(root) / "epoch_chinchilla" / "data.csv" if root else None
    return read_data(path) if path is not None and path.is_file() else synthetic(240)


# -- the peer


class Peer:
    """L-BFGS-B on the sum of Huber(log L - logsumexp), in (e, a, b, alpha, beta)."""

    def __init__(
        self, name: str, data: Data, *, centred: bool = True, rules: Mapping[str, float] = TIGHT
    ) -> None:
        x, y = np.log(data.params), np.log(data.tokens)
        self.name, self.rules = name, rules
        self.centre = np.array([x.mean(), y.mean()]) if centred else np.zeros(2)
        self.x, self.y, self.z = x - self.centre[0], y - self.centre[1], np.log(data.loss)
        self.unit = np.ones_like(self.z)
        self.evaluations = 0

    def objective(self, theta: FloatArray, weight: FloatArray) -> tuple[float, FloatArray]:
        """Weighted Huber sum over rows, and its gradient (5,)."""
        self.evaluations += 1
        e, a, b, alpha, beta = theta
        u = np.exp(a - e - alpha * self.x)
        v = np.exp(b - e - beta * self.y)
        total = 1.0 + u + v
        r = self.z - e - np.log(total)
        psi = np.minimum(np.maximum(r, -DELTA), DELTA)
        force = weight * psi
        value = float(force @ (r - 0.5 * psi))
        force /= total
        u *= force
        v *= force
        return value, np.array([-force.sum(), -u.sum(), -v.sum(), u @ self.x, v @ self.y])

    def fit(self, start: FloatArray, weight: FloatArray) -> tuple[FloatArray, float]:
        """The end of one descent (5,) and its Huber sum."""
        # scipy's stubs know neither jac=True with arguments nor a plain mapping of options.
        settings: Any = {"jac": True, "method": "L-BFGS-B", "options": dict(self.rules)}
        end = minimize(self.objective, start, args=(weight,), **settings)
        return end.x, float(end.fun)

    def coordinates(self, natural: FloatArray) -> FloatArray:
        """(..., 5) of (log E, log A, log B, alpha, beta), as `Law.natural` has them, to its own."""
        out = np.array(natural, dtype=np.float64, copy=True)
        out[..., 1:3] -= out[..., 3:] * self.centre
        return out

    def natural(self, theta: FloatArray) -> FloatArray:
        """The inverse of `coordinates`."""
        out = np.array(theta, dtype=np.float64, copy=True)
        out[..., 1:3] += out[..., 3:] * self.centre
        return out

    def best_of(self, starts: FloatArray) -> FloatArray:
        """The best end (5,) over starts (k, 5)."""
        with np.errstate(all="ignore"):
            return min((self.fit(start, self.unit) for start in starts), key=lambda end: end[1])[0]

    def fit_each(self, start: FloatArray, weights: FloatArray) -> FloatArray:
        """Ends (k, 5) of one descent from `start` (5,) for each row of weights (k, n)."""
        return np.array([self.fit(start, weight)[0] for weight in weights])


def peers(data: Data) -> tuple[Peer, Peer, Peer]:
    """The helped one, by which llem is judged, and what the usual choices make of it."""
    return (
        Peer("centred logs, tight stop rules", data),
        Peer("raw coordinates, tight stop rules", data, centred=False),
        Peer("centred logs, scipy's default stop rules", data, rules={}),
    )


def hoffmann_starts() -> FloatArray:
    """The 4500 starts (log E, log A, log B, alpha, beta) of arXiv 2203.15556, appendix D.3."""
    a = b = np.arange(0.0, 26.0, 5.0)
    e = np.arange(-1.0, 1.01, 0.5)
    alpha = beta = np.arange(0.0, 2.01, 0.5)
    return np.array(list(itertools.product(e, a, b, alpha, beta)))


# -- llem's side


def llem_resamples(data: Data, count: int, repeats: int) -> tuple[FloatArray, FloatArray, Lap]:
    """Row weights (k, n), fits (k, 5; natural) of the bootstrap alone, and how long it took.

    The very resamples of `fit_law(..., bootstrap=count, resampling="rows", seed=SEED)`.
    """
    estimator = Estimator(delta=DELTA)
    unit = np.ones_like(data.loss)
    problem = LAW.bind(check_observations(data.params, data.tokens, data.loss))
    ends = solve(problem, unit, estimator).ends
    run = np.arange(unit.size)

    def bootstrap() -> Resamples:
        draws = Draws("rows", count, SEED, run, unit, problem.dimension)
        return refit(problem, draws, estimator, ends)

    fits, lap = warm_median(bootstrap, repeats)
    return fits.draws.take(np.arange(count)), problem.natural(fits.theta), lap


# -- the parts of the table


class Table:
    """Prints lines of name, values and what is wanted; remembers whether all of it was met."""

    def __init__(self) -> None:
        self.met = True

    def title(self, text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}")

    def time(self, name: str, lap: Lap, *, most: float | None = None) -> None:
        wanted = "" if most is None else f"at most {most:g} s"
        value = f"{lap.wall:.3f} s wall, {lap.cpu:.3f} s processor"
        self.line(name, value, wanted, most is None or lap.wall <= most)

    def line(self, name: str, value: str, wanted: str = "", met: bool = True) -> None:
        verdict = f"   wanted {wanted}: {'yes' if met else 'NO'}" if wanted else ""
        print(f"  {name:<48}{value:>38}{verdict}", flush=True)
        self.met = self.met and met


def one_fit(table: Table, data: Data, *, quick: bool) -> None:
    table.title("(a) one fit: llem's whole certified fit against 4500 starts of L-BFGS-B")
    fit, lap = warm_median(
        lambda: fit_law(data.params, data.tokens, data.loss, bootstrap=0),
        5 if quick else LLEM_REPEATS,
    )
    table.time("llem: everything that fit_law does (warm median)", lap, most=0.1)
    table.line("    starts that agree", f"{fit.starts['agreeing']} of {fit.starts['tried']}")
    judge = Peer("", data)
    ours = judge.objective(judge.coordinates(LAW.natural(fit.params)), judge.unit)[0]
    table.line("    objective", f"{ours:.13e}")
    starts = hoffmann_starts()
    share = 1.0
    if quick:
        share = 150 / len(starts)
        starts = starts[np.random.default_rng(SEED).choice(len(starts), 150, replace=False)]
        print("  --quick: 150 random ones of the 4500 starts, times scaled up to all of them")
    for i, peer in enumerate(peers(data)):
        end, measured = timed(partial(peer.best_of, peer.coordinates(starts)))
        found = Lap(measured.wall / share, measured.cpu / share)
        theirs = judge.objective(judge.coordinates(peer.natural(end)), judge.unit)[0]
        table.time(f"L-BFGS-B: {peer.name}", found)
        table.line("    evaluations per start", f"{peer.evaluations / len(starts):.0f}")
        table.line("    objective", f"{theirs:.13e}")
        table.line("    (llem - peer)/peer", f"{ours / theirs - 1:+.1e}",
                   f"at most {SAME:g}", ours <= theirs * (1 + SAME))  # fmt: skip
        ratio = found.cpu / lap.cpu
        table.line("    times llem's", f"{ratio:.0f}",
                   "" if i else "at least 250", bool(i) or ratio >= 250)  # fmt: skip


def many_fits(table: Table, data: Data, *, quick: bool) -> None:
    count, repeats = (400, 1) if quick else (4000, 3)
    table.title(f"(b) {count} bootstrap fits against as many warm-started fits of L-BFGS-B")
    fit, whole = warm_median(
        lambda: fit_law(
            data.params, data.tokens, data.loss, bootstrap=count, resampling="rows", seed=SEED
        ),
        repeats,
    )
    weights, natural, lap = llem_resamples(data, count, repeats)
    table.time("llem: the whole call of fit_law", whole)
    table.time("llem: the resamples alone, drawn and fitted", lap, most=count / 4000)
    judge = Peer("", data)
    start = LAW.natural(fit.params)

    def objectives(ends: FloatArray) -> FloatArray:
        pairs = zip(judge.coordinates(ends), weights, strict=True)
        return np.array([judge.objective(theta, weight)[0] for theta, weight in pairs])

    ours = objectives(natural)
    for i, peer in enumerate(peers(data)):
        ends, found = timed(partial(peer.fit_each, peer.coordinates(start), weights))
        excess = ours / objectives(peer.natural(ends)) - 1
        above = int(np.count_nonzero(excess > SAME))
        table.time(f"L-BFGS-B: {peer.name}", found)
        table.line("    evaluations per fit", f"{peer.evaluations / count:.0f}")
        table.line(f"    resamples with llem above by {SAME:g}", str(above), "0", above == 0)
        table.line("    largest (llem - peer)/peer", f"{excess.max():+.1e}")
        table.line(f"    resamples with the peer above by {SAME:g}",
                   str(int(np.count_nonzero(excess < -SAME))))  # fmt: skip
        table.line("    lowest (llem - peer)/peer", f"{excess.min():+.1e}")
        ratio = found.cpu / lap.cpu
        table.line("    times llem's resamples", f"{ratio:.0f}",
                   "" if i else "at least 30", bool(i) or ratio >= 30)  # fmt: skip
        table.line("    times llem's whole call", f"{found.cpu / whole.cpu:.0f}")


def cold_process(table: Table, data: Data, *, quick: bool) -> None:
    count, repeats = (400, 2) if quick else (4000, 3)
    table.title(
        f"(c) llem fit FILE --bootstrap {count} --json: a process from its start to its end"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observations.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("params", "tokens", "loss"))
            columns = (data.params, data.tokens, data.loss)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
        words = [sys.executable, "-m", "llem", "fit", str(path), "--bootstrap", str(count)]
        walls = []
        for _ in range(repeats):
            done, lap = timed(
                lambda: subprocess.run([*words, "--json"], capture_output=True, check=False)
            )
            if done.returncode:
                raise SystemExit(f"llem fit failed:\n{done.stderr.decode()}")
            assert json.loads(done.stdout)["n_observations"] == data.loss.size
            walls.append(lap.wall)
    table.line("first", f"{walls[0]:.2f} s wall")
    table.line("best", f"{min(walls):.2f} s wall")
    middle = median(walls)
    table.line(f"median of {repeats}", f"{middle:.2f} s wall", "under 3 s", middle < 3.0)


def row_scaling(table: Table, *, quick: bool) -> None:
    sizes = (100, 1000, 10_000) if quick else (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
    table.title("(d) cost against rows (synthetic; every row a run; processor seconds)")
    print(f"  {'rows':>8}{'fit, s':>12}{'us per row':>12}{'20 resamples too, s':>22}"
          f"{'us per row':>12}{'objective/row':>16}")  # fmt: skip
    found: dict[int, list[float]] = {0: [], 20: []}
    for rows in sizes:
        data = synthetic(rows)
        for resamples, seconds in found.items():
            call = partial(fit_law, data.params, data.tokens, data.loss, seed=SEED)
            fit, lap = timed(partial(call, bootstrap=resamples, resampling="rows"))
            seconds.append(lap.cpu)
        plain, drawn = found[0][-1], found[20][-1]
        print(f"  {rows:>8}{plain:>12.3f}{plain / rows * 1e6:>12.1f}{drawn:>22.3f}"
              f"{drawn / rows * 1e6:>12.1f}{fit.objective / rows:>16.3e}", flush=True)  # fmt: skip
    for resamples, seconds in found.items():
        tail = [(n, s) for n, s in zip(sizes, seconds, strict=True) if n >= 1000]
        log_rows, log_seconds = np.log(np.array(tail)).T
        slope = float(np.polyfit(log_rows, log_seconds, 1)[0])
        table.line(f"slope in logs from 1000 rows, {resamples} resamples", f"{slope:.2f}",
                   "at most 1.1", slope <= 1.1)  # fmt: skip


PARTS = {"a": one_fit, "b": many_fits, "c": cold_process}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of llem's fits beside scipy's L-BFGS-B.")
    parser.add_argument("--data", type=Path, metavar="FILE.csv",
                        help="epoch_chinchilla/data.csv (default: LLEM_SHARED_DATA's)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer starts, resamples and rows")
    parser.add_argument("--only", default="abcd", metavar="PARTS", help="some of a, b, c, d")
    args = parser.parse_args(arguments)
    data = choose_data(args.data)
    print(f"data: {data.origin}; {data.loss.size} rows. Huber on log loss, delta {DELTA:g}, sum.")
    print(f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
          f"{platform.machine()}; one thread")  # fmt: skip
    print("peer: scipy's L-BFGS-B; objective and analytic gradient in vectorised numpy, no finite\n"
          f"differences; tight stop rules: {TIGHT}. Ratios: processor seconds.")  # fmt: skip
    table = Table()
    for letter, part in PARTS.items():
        if letter in args.only:
            part(table, data, quick=args.quick)
    if "d" in args.only:
        row_scaling(table, quick=args.quick)
    print(f"\neverything wanted was met: {'yes' if table.met else 'NO'}")
    return 0 if table.met or args.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
