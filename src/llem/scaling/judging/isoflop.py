"""The isoFLOP method: at each compute level the size N* of the smallest loss, then N* against C.

Two ways to find N*: the vertex of a parabola of loss in log N (Hoffmann et al., arXiv 2203.15556,
approach 2), or the minimum of an Akima interpolant with a noise bootstrap (Porian et al., arXiv
2406.19146). Neither needs a law, which makes them a cross-check. Parabolas are biased even
without noise, by the width of the grid, by sampling off centre and by the asymmetry of the true
curve (arXiv 2603.22339), so this is never the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llem._numerals import format_flops
from llem.scaling.errors import OptionError
from llem.scaling.judging.akima import akima_minimum

FloatArray = NDArray[np.float64]
Method = Literal["quadratic", "akima"]

# Runs whose compute lies within this factor of the smallest of a level belong to it.
LEVEL_FACTOR = 1.25
MIN_SIZES = 3
CONFIDENCE = 0.95
# Of the noisy copies of a level, at least this share must have an interior minimum.
MIN_INTERIOR = 0.5
# N* is never known better than this share of the mean distance of log N in its level: the noise
# bootstrap does not see the error of the interpolation (the protocol of arXiv 2406.19146).
SPACING_SHARE = 0.33
# Replicated cells tell the noise where they give this many degrees of freedom.
MIN_REPLICATES = 5
NOTE = "a cross-check only: parabolas are biased even without noise (arXiv 2603.22339)"
BELOW = "the minimum lies below the smallest model tried"
ABOVE = "the minimum lies above the largest model tried"
DOWNWARD = "the curve has no minimum (it bends downward)"
SMALLER = "train smaller models at this compute"
LARGER = "train larger models at this compute"
BOTH = "train smaller and larger models at this compute"


@dataclass(frozen=True)
class IsoFlopLevel:
    """One compute level: `params` = N* (count) and `loss` (nats) at the minimum, NaN if refused.

    `flops` is the geometric mean of the level. curve = (c0, c1, c2) of loss = c0 + c1 t + c2 t^2
    with t = log N - log_centre: the parabola, which under Akima is shown but not used. `refusal`
    says why there is no minimum, empty when there is one; `remedy` what to train then.
    log_params_std: standard deviation of log N*, NaN where the noise is unknown.
    """

    flops: float
    rows: tuple[int, ...]
    params: float
    loss: float
    curve: tuple[float, float, float]
    log_centre: float
    refusal: str
    log_params_std: float = math.nan
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """One entry of `isoflop.levels` in fit.json; NaN as None."""
        return {
            "flops": _plain(self.flops),
            "rows": list(self.rows),
            "params": _plain(self.params),
            "loss": _plain(self.loss),
            "curve": [_plain(c) for c in self.curve],
            "log_centre": _plain(self.log_centre),
            "refusal": self.refusal,
            "log_params_std": _plain(self.log_params_std),
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent."""

    coefficient: float
    exponent: float

    def predict(self, x: FloatArray | float) -> FloatArray:
        """y at x."""
        return np.asarray(self.coefficient * np.asarray(x, dtype=np.float64) ** self.exponent)


@dataclass(frozen=True)
class _Level:
    """The rows of one level as the methods see them. t = log N - centre.

    t (ascending), loss, weight, sigma: (m,) over rows of positive weight; rows: all of them.
    """

    flops: float
    rows: tuple[int, ...]
    centre: float
    t: FloatArray
    loss: FloatArray
    weight: FloatArray
    sigma: FloatArray | None


def compute_levels(flops: FloatArray, *, factor: float = LEVEL_FACTOR) -> list[NDArray[np.intp]]:
    """Rows of each compute level, lowest first: those within `factor` of the level's smallest.

    Rows of unknown compute (NaN) belong to no level.
    """
    order = np.argsort(flops, kind="stable").astype(np.intp)
    ordered = np.asarray(flops, dtype=np.float64)[order]
    end = int(np.searchsorted(ordered, np.nan))  # NaN sorts last.
    levels = []
    begin = 0
    while begin < end:
        stop = int(np.searchsorted(ordered[:end], ordered[begin] * factor, side="right"))
        stop = max(stop, begin + 1)
        levels.append(order[begin:stop])
        begin = stop
    return levels


def isoflop_levels(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray | None = None,
    factor: float = LEVEL_FACTOR,
) -> list[IsoFlopLevel]:
    """Fit a parabola of loss in log N to every compute level. All inputs (n,)."""
    levels = _split(params, loss, flops, weight, factor, None)
    rng = np.random.default_rng(0)
    return [_parabola(level, 0, rng)[0] for level in levels]


def akima_levels(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray | None = None,
    factor: float = LEVEL_FACTOR,
    noise: FloatArray | float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[IsoFlopLevel]:
    """The minimum of an Akima interpolant of log loss over log N at every compute level.

    Source: arXiv 2406.19146. N* is the median over `bootstrap` copies of the level whose log
    losses carry Gaussian noise, such that the losses have the standard deviation `noise` (nats,
    one number or (n,); None: that of `noise_level`; the authors' is .002). log_params_std is that
    of the copies with an interior minimum, at least SPACING_SHARE of the mean distance in log N,
    times copies / copies with a minimum. Runs of one size are averaged in log loss. Unlike the
    authors, who search a grid of 25 points an interval, the minimum of each piece is exact.
    """
    sigma = _sigma(params, loss, flops, weight, factor, noise)
    levels = _split(params, loss, flops, weight, factor, sigma)
    rng = np.random.default_rng(seed)
    return [_akima(level, bootstrap, rng)[0] for level in levels]


def noise_level(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray | None = None,
    factor: float = LEVEL_FACTOR,
) -> float:
    """Relative standard deviation of a single run's loss, from the data alone; NaN if unknown.

    From runs of one size and compute level where there are enough of them (that is the noise of
    seeds). Otherwise from the scatter inside the levels: the divided differences of fourth order
    of log loss over log N in windows of five sizes, scaled to unit variance, vanish for every
    cubic, so that what is left is noise (the estimator of Gasser, Sroka and Jennen-Steinmetz,
    Biometrika 73, 1986, two orders higher); windows of four where a level has but four sizes.
    Only windows with the lowest loss of the level count: it is there that noise moves N*, and
    far from it curves have kinks, as that of models still in their warm-up.
    """
    squares, freedom = 0.0, 0
    scaled: list[FloatArray] = []
    for level in _split(params, loss, flops, weight, factor, None):
        level = _distinct(level)
        x, y, variance = _merge(level, np.ones_like(level.t))
        squares += float(np.sum((np.log(level.loss) - y[np.searchsorted(x, level.t)]) ** 2))
        freedom += level.t.size - x.size
        window = min(5, x.size)
        if window >= 4:
            lowest = int(np.argmin(y))
            near = slice(max(0, lowest - window + 1), lowest + 1)
            scaled.append(_divided_differences(x, y, variance, window)[near])
    if freedom >= MIN_REPLICATES:
        return math.sqrt(squares / freedom)
    if not scaled:
        return math.nan
    return float(np.sqrt(np.mean(np.concatenate(scaled) ** 2)))


def refusals(levels: Sequence[IsoFlopLevel]) -> list[str]:
    """One plain sentence for each level without an interior minimum: where, why, what to do."""
    return [
        f"At {format_flops(level.flops)} FLOP: {level.refusal}; {level.remedy}."
        for level in levels
        if level.refusal
    ]


def fit_power_law(x: FloatArray, y: FloatArray, *, weight: FloatArray | None = None) -> PowerLaw:
    """Weighted least squares of log y on log x; NaN with fewer than two distinct x."""
    log_x, log_y = np.log(x), np.log(y)
    w = np.ones_like(log_x) if weight is None else np.asarray(weight, dtype=np.float64)
    if np.unique(log_x).size < 2:
        return PowerLaw(math.nan, math.nan)
    slope, intercept = _lines(log_x, log_y[None], w)
    return PowerLaw(math.exp(float(intercept[0])), float(slope[0]))


def isoflop_check(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    *,
    weight: FloatArray | None = None,
    method: Method = "quadratic",
    noise: FloatArray | float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    factor: float = LEVEL_FACTOR,
) -> dict[str, Any]:
    """The law-free answer N* = coefficient C^exponent, its interval, and what was refused.

    All inputs (n,). The parabolas' N* are weighted equally, Akima's by 1/log_params_std^2. `ci`
    holds percentile intervals over `bootstrap` noisy copies of the losses (None with bootstrap 0,
    with unknown noise, or with fewer than two levels); they carry the noise, not the bias.
    """
    if method not in ("quadratic", "akima"):
        raise OptionError("method", method, "quadratic or akima")
    if bootstrap < 0:
        raise OptionError("bootstrap", bootstrap, "0 or more")
    sigma = _sigma(params, loss, flops, weight, factor, noise)
    rng = np.random.default_rng(seed)
    levels: list[IsoFlopLevel] = []
    copies: list[FloatArray] = []
    for level in _split(params, loss, flops, weight, factor, sigma):
        solve = _akima if method == "akima" else _parabola
        found, log_n = solve(level, bootstrap, rng)
        levels.append(found)
        if not found.refusal:
            copies.append(log_n)
    good = [v for v in levels if not v.refusal]
    x = np.array([v.flops for v in good])
    std = np.array([v.log_params_std for v in good])
    # With one and the same weight where the noise is unknown.
    w = 1 / std**2 if method == "akima" and np.all(std > 0) else np.ones_like(x)
    law = fit_power_law(x, np.array([v.params for v in good]), weight=w)
    used = None if sigma is None else float(np.median(sigma / loss))
    return {
        "method": method,
        "levels": [v.to_dict() for v in levels],
        "minima": len(good),
        "exponent": _plain(law.exponent),
        "coefficient": _plain(law.coefficient),
        "ci": _interval(np.log(x), copies, w),
        "noise": used,
        "refusals": refusals(levels),
        "note": NOTE,
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sigma(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    weight: FloatArray | None,
    factor: float,
    noise: FloatArray | float | None,
) -> FloatArray | None:
    """Standard deviation of each loss in nats (n,); None where it is unknown."""
    if noise is None:
        share = noise_level(params, loss, flops, weight=weight, factor=factor)
        return None if math.isnan(share) else share * loss
    sigma = np.asarray(noise, dtype=np.float64)
    if sigma.shape not in ((), loss.shape) or not np.all(np.isfinite(sigma) & (sigma >= 0)):
        raise OptionError("noise", noise, "a number of nats, 0 or more, or one for each row")
    return np.broadcast_to(sigma, loss.shape)


def _split(
    params: FloatArray,
    loss: FloatArray,
    flops: FloatArray,
    weight: FloatArray | None,
    factor: float,
    sigma: FloatArray | None,
) -> list[_Level]:
    log_n, log_c = np.log(params), np.log(flops)
    levels = []
    for rows in compute_levels(flops, factor=factor):
        used = rows if weight is None else rows[weight[rows] > 0]
        used = used[np.argsort(log_n[used], kind="stable")]
        centre = float(log_n[rows].mean())
        levels.append(
            _Level(
                flops=math.exp(float(log_c[rows].mean())),
                rows=tuple(rows.tolist()),
                centre=centre,
                t=log_n[used] - centre,
                loss=loss[used],
                weight=np.ones(used.size) if weight is None else weight[used],
                sigma=None if sigma is None else sigma[used],
            )
        )
    return levels


def _refused(
    level: _Level, reason: str, remedy: str, curve: tuple[float, float, float] | None = None
) -> IsoFlopLevel:
    nan = math.nan
    shape = (nan, nan, nan) if curve is None else curve
    return IsoFlopLevel(
        level.flops, level.rows, nan, nan, shape, level.centre, reason, remedy=remedy
    )


def _parabola(
    level: _Level, bootstrap: int, rng: np.random.Generator
) -> tuple[IsoFlopLevel, FloatArray]:
    """The parabola through a level, and log N* of each noisy copy (NaN: none).

    The coefficients are linear in the losses, so that the copies are drawn from their covariance.
    """
    count = 0 if level.sigma is None else bootstrap
    none = np.full(count, math.nan)
    t = level.t
    sizes = np.unique(t).size
    if sizes < MIN_SIZES:
        return _few(level, sizes), none
    root = np.sqrt(level.weight)
    operator = np.linalg.pinv(np.stack([root, root * t, root * t * t], axis=1)) * root
    c0, c1, c2 = (float(c) for c in operator @ level.loss)
    curve = (c0, c1, c2)
    if c2 <= 0:
        return _refused(level, DOWNWARD, BOTH, curve), none
    low, high = float(t[0]), float(t[-1])
    vertex = -c1 / (2 * c2)
    if vertex <= low:
        return _refused(level, BELOW, SMALLER, curve), none
    if vertex >= high:
        return _refused(level, ABOVE, LARGER, curve), none
    copies, std = none, math.nan
    if level.sigma is not None and count:
        spread = np.linalg.qr((operator * level.sigma).T, mode="r")
        drawn = np.array(curve) + rng.standard_normal((count, 3)) @ spread
        with np.errstate(divide="ignore", invalid="ignore"):
            places = -drawn[:, 1] / (2 * drawn[:, 2])
        inside = (drawn[:, 2] > 0) & (places > low) & (places < high)
        copies = np.where(inside, places, math.nan)
        std = float(np.std(places[inside])) if np.any(inside) else math.nan
    found = IsoFlopLevel(
        level.flops,
        level.rows,
        math.exp(level.centre + vertex),
        c0 + c1 * vertex + c2 * vertex**2,
        curve,
        level.centre,
        "",
        std,
    )
    return found, copies + level.centre


def _few(level: _Level, sizes: int) -> IsoFlopLevel:
    plural = "" if sizes == 1 else "s"
    reason = f"{sizes} model size{plural}; {MIN_SIZES} are needed"
    return _refused(level, reason, "train more sizes at this compute")


def _akima(
    level: _Level, bootstrap: int, rng: np.random.Generator
) -> tuple[IsoFlopLevel, FloatArray]:
    """The Akima minimum of a level, and log N* of each noisy copy (NaN: none)."""
    parabola = _parabola(level, 0, rng)[0]
    count = 0 if level.sigma is None else bootstrap
    none = np.full(count, math.nan)
    share = np.zeros_like(level.loss) if level.sigma is None else level.sigma / level.loss
    x, y, variance = _merge(level, share)
    if x.size < MIN_SIZES:
        return parabola, none
    place, value = akima_minimum(x, y[None])
    at, best = float(place[0]), float(value[0])
    if parabola.refusal == DOWNWARD and at in (x[0], x[-1]):
        return parabola, none
    if at == x[0]:
        return _refused(level, BELOW, SMALLER, parabola.curve), none
    if at == x[-1]:
        return _refused(level, ABOVE, LARGER, parabola.curve), none
    std = SPACING_SHARE * float(x[-1] - x[0]) / (x.size - 1)
    copies = none
    if count:
        noisy = y + np.sqrt(variance) * rng.standard_normal((count, x.size))
        place, value = akima_minimum(x, noisy)
        inside = (place > x[0]) & (place < x[-1])
        interior = float(np.mean(inside))
        if interior < MIN_INTERIOR:
            low = bool(np.sum(place == x[0]) >= np.sum(place == x[-1]))
            reason = f"{BELOW if low else ABOVE} in most of its noisy copies"
            return _refused(level, reason, SMALLER if low else LARGER, parabola.curve), none
        at, best = float(np.median(place[inside])), float(np.median(value[inside]))
        std = max(float(np.std(place[inside])), std) / interior
        copies = np.where(inside, place, math.nan)
    found = replace(
        parabola,
        params=math.exp(level.centre + at),
        loss=math.exp(best),
        refusal="",
        remedy="",
        log_params_std=std,
    )
    return found, copies + level.centre


def _merge(level: _Level, sigma: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct t (k,), the weighted mean of log loss there, and sigma^2 (m,) of that mean."""
    x, start = np.unique(level.t, return_index=True)
    if x.size == 0:
        return x, x, x
    w, add = level.weight, np.add.reduceat
    total = add(w, start)
    mean = add(w * np.log(level.loss), start) / total
    return x, mean, add((w * sigma) ** 2, start) / total**2


def _distinct(level: _Level) -> _Level:
    """The level with equal weights, and a row given twice taken once: that is no second seed."""
    order = np.lexsort((level.loss, level.t))
    t, loss = level.t[order], level.loss[order]
    new = np.ones(t.size, dtype=bool)
    new[1:] = (np.diff(t) > 0) | (np.diff(loss) > 0)
    return replace(level, t=t[new], loss=loss[new], weight=np.ones(int(new.sum())))


def _divided_differences(
    x: FloatArray, y: FloatArray, variance: FloatArray, window: int
) -> FloatArray:
    """Divided differences of y over windows of x, in units of their deviation under `variance`."""
    views = np.lib.stride_tricks.sliding_window_view
    xs, ys, v = views(x, window), views(y, window), views(variance, window)
    # In units of the window's width, which keeps the products in range.
    gap = (xs[:, :, None] - xs[:, None, :]) / (xs[:, -1:, None] - xs[:, :1, None])
    gap[:, np.arange(window), np.arange(window)] = 1.0
    w = 1 / np.prod(gap, axis=2)
    return np.asarray(np.sum(w * ys, axis=1) / np.sqrt(np.sum(w * w * v, axis=1)))


def _lines(x: FloatArray, y: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares lines y (b, n) on x (n,), NaN in y left out: slopes, intercepts (b,).

    NaN with fewer than two points.
    """
    known = np.isfinite(y)
    w = np.where(known, w, 0.0)
    y = np.where(known, y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = w / w.sum(axis=1, keepdims=True)
        mean_x, mean_y = w @ x, np.sum(w * y, axis=1)
        dx = x - mean_x[:, None]
        slope = np.sum(w * dx * (y - mean_y[:, None]), axis=1) / np.sum(w * dx * dx, axis=1)
    slope = np.where(known.sum(axis=1) >= 2, slope, math.nan)
    return slope, mean_y - slope * mean_x


def _interval(
    log_c: FloatArray, copies: Sequence[FloatArray], w: FloatArray
) -> dict[str, Any] | None:
    if len(copies) < 2 or copies[0].size == 0:
        return None
    slope, intercept = _lines(log_c, np.stack(copies, axis=1), w)
    good = np.isfinite(slope)
    if not np.any(good):
        return None
    ends = 50 * np.array([1 - CONFIDENCE, 1 + CONFIDENCE])
    return {
        "level": CONFIDENCE,
        "exponent": np.percentile(slope[good], ends).tolist(),
        "coefficient": np.exp(np.percentile(intercept[good], ends)).tolist(),
        "copies": int(good.sum()),
    }
