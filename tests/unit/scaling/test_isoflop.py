"""The isoFLOP method: minima, refusals, intervals, and what Porian et al. published."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.optimize import minimize_scalar

from llem.scaling.errors import OptionError
from llem.scaling.judging.akima import akima_minimum, akima_slopes
from llem.scaling.judging.isoflop import (
    akima_levels,
    compute_levels,
    fit_power_law,
    isoflop_check,
    isoflop_levels,
    noise_level,
    refusals,
)

from .data_sets import shared_table

FloatArray = NDArray[np.float64]
Table = tuple[FloatArray, FloatArray, FloatArray]
KEY = ("file", "dataset", "hparams", "warmup", "decay", "param_count")
ALPHA, BETA = 0.35, 0.37


def campaign(
    *, levels: int = 4, sizes: int = 7, noise: float = 0.0, seed: int = 0, seeds: int = 1
) -> Table:
    """N, loss, C of runs around the optimum of E + A/N^alpha + B/D^beta with C = 6ND."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e17, 1e20, levels), sizes * seeds)
    grid = np.tile(np.repeat(np.geomspace(0.2, 5.0, sizes), seeds), levels)
    params = optimum(flops) * grid
    loss = 1.8 + 480 / params**ALPHA + 2100 / (flops / 6 / params) ** BETA
    return params, loss * np.exp(noise * rng.standard_normal(flops.size)), flops


def optimum(flops: FloatArray) -> FloatArray:
    """Closed form of arXiv 2203.15556, eq. 4."""
    scale = (ALPHA * 480 / (BETA * 2100)) ** (1 / (ALPHA + BETA))
    return np.asarray(scale * (flops / 6) ** (BETA / (ALPHA + BETA)))


@pytest.mark.parametrize("check", [isoflop_levels, akima_levels])
def test_minima_lie_near_the_true_optimum(check: object) -> None:
    params, loss, flops = campaign(sizes=11)
    levels = check(params, loss, flops)  # type: ignore[operator]
    assert [v.refusal for v in levels] == [""] * 4
    for v in levels:
        assert v.params == pytest.approx(float(optimum(np.array(v.flops))), rel=0.12)


@pytest.mark.parametrize("method", ["quadratic", "akima"])
def test_both_methods_find_the_true_exponent_without_noise(method: str) -> None:
    result = isoflop_check(*campaign(sizes=15), method=method)  # type: ignore[arg-type]
    assert result["exponent"] == pytest.approx(BETA / (ALPHA + BETA), abs=5e-4)
    assert result["minima"] == 4
    assert "biased" in result["note"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("method", ["quadratic", "akima"])
@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (slice(0, 2), "2 model sizes"),
        (slice(0, 4), "above the largest model"),
        (slice(5, 9), "below the smallest model"),
    ],
)
def test_a_level_without_an_interior_minimum_is_refused(
    method: str, keep: slice, words: str
) -> None:
    params, loss, flops = (c[keep] for c in campaign(levels=1, sizes=9))
    find = akima_levels if method == "akima" else isoflop_levels
    (level,) = find(params, loss, flops)
    assert words in level.refusal
    assert math.isnan(level.params)


@pytest.mark.parametrize("find", [isoflop_levels, akima_levels])
def test_a_level_that_bends_downward_is_refused(find: object) -> None:
    params = np.geomspace(1e6, 1e7, 5)
    loss = 3 - 0.1 * (np.log(params) - np.log(3e6)) ** 2
    (level,) = find(params, loss, np.full(5, 1e15))  # type: ignore[operator]
    assert "bends downward" in level.refusal


def test_refusals_say_where_why_and_what_to_train() -> None:
    params, loss, flops = campaign(levels=2, sizes=9)
    keep = np.r_[0:4, 14:18]
    low, high = refusals(isoflop_levels(params[keep], loss[keep], flops[keep]))
    assert low.startswith("At 1e17 FLOP: the minimum lies above the largest model tried;")
    assert low.endswith("train larger models at this compute.")
    assert high.startswith("At 1e20 FLOP: the minimum lies below the smallest model tried;")
    assert high.endswith("train smaller models at this compute.")
    assert refusals(isoflop_levels(params, loss, flops)) == []


def test_a_minimum_that_noise_mostly_takes_to_the_edge_is_refused_by_akima() -> None:
    params, flops = np.geomspace(1e6, 1e7, 5), np.full(5, 1e15)
    loss = np.array([3.0, 3.2, 2.999, 3.2, 3.05])
    (clear,) = akima_levels(params, loss, flops, noise=1e-5)
    assert clear.params == pytest.approx(params[2], rel=0.02)
    (level,) = akima_levels(params, loss, flops, noise=0.1)
    assert "below the smallest model tried in most of its noisy copies" in level.refusal
    assert level.remedy == "train smaller models at this compute"


def test_levels_hold_rows_within_a_factor_of_their_smallest_and_no_row_of_unknown_compute() -> None:
    flops = np.array([1.3, 1.0, math.nan, 1.2, 1.25, 5.0, 0.0])
    assert [v.tolist() for v in compute_levels(flops)] == [[6], [1, 3, 4], [0], [5]]


def test_rows_of_weight_zero_do_not_count_and_order_does_not_matter() -> None:
    params, loss, flops = campaign(noise=0.003)
    weight = np.ones(params.size)
    weight[[2, 9]] = 0
    spoilt = np.where(weight == 0, 99.0, loss)
    order = np.random.default_rng(1).permutation(params.size)
    for method in ("quadratic", "akima"):
        kept = isoflop_check(
            params[weight > 0],
            loss[weight > 0],
            flops[weight > 0],
            method=method,  # type: ignore[arg-type]
        )
        other = isoflop_check(
            params[order],
            spoilt[order],
            flops[order],
            weight=weight[order],
            method=method,  # type: ignore[arg-type]
        )
        assert other["exponent"] == pytest.approx(kept["exponent"], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 12))
def test_akima_slopes_are_those_of_scipy(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(0.1 + rng.random(count)), rng.standard_normal((4, count))
    # Straight stretches, where the weights of the slopes vanish.
    y[0] = 2 * x
    expected = Akima1DInterpolator(x, y, axis=1).derivative()(x)
    assert akima_slopes(x, y) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 12))
def test_the_akima_minimum_is_at_or_below_a_fine_search(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(0.1 + rng.random(count)), rng.standard_normal((3, count))
    place, value = akima_minimum(x, y)
    for i in range(3):
        curve = Akima1DInterpolator(x, y[i])
        assert float(curve(place[i])) == pytest.approx(value[i], abs=1e-9)
        assert value[i] <= float(np.min(curve(np.linspace(x[0], x[-1], 2001)))) + 1e-12


def test_the_akima_minimum_agrees_with_a_search_of_the_curve() -> None:
    x = np.linspace(0, 1, 9)
    curve = Akima1DInterpolator(x, (x - 0.43) ** 2)
    found = minimize_scalar(curve, bounds=(0.3, 0.55), method="bounded", options={"xatol": 1e-12})
    place, _ = akima_minimum(x, ((x - 0.43) ** 2)[None])
    assert place[0] == pytest.approx(found.x, abs=1e-6)


@pytest.mark.parametrize(("seeds", "tolerance"), [(1, 0.35), (3, 0.2)])
def test_the_noise_is_told_from_scatter_or_from_seeds(seeds: int, tolerance: float) -> None:
    found = [
        noise_level(*campaign(levels=8, sizes=9, noise=0.004, seed=s, seeds=seeds))
        for s in range(10)
    ]
    assert np.mean(found) == pytest.approx(0.004, rel=0.1)
    assert np.std(found) < tolerance * 0.004


def test_repeated_rows_are_not_seeds() -> None:
    params, loss, flops = campaign(noise=0.004)
    twice = tuple(np.repeat(c, 2) for c in (params, loss, flops))
    assert noise_level(*twice) == pytest.approx(noise_level(params, loss, flops))


def test_three_sizes_a_level_leave_the_noise_unknown_and_give_no_interval() -> None:
    params, loss, flops = campaign(sizes=3, noise=0.001)
    assert math.isnan(noise_level(params, loss, flops))
    for method in ("quadratic", "akima"):
        result = isoflop_check(params, loss, flops, method=method)  # type: ignore[arg-type]
        assert result["ci"] is None and result["noise"] is None
        assert result["exponent"] is not None
        known = isoflop_check(params, loss, flops, noise=0.003)
        assert known["ci"]["exponent"][0] < known["exponent"] < known["ci"]["exponent"][1]


def test_the_interval_of_the_parabolas_covers_the_noise() -> None:
    truth = isoflop_check(*campaign(levels=6, sizes=9))["exponent"]
    hits = 0
    for seed in range(200):
        runs = campaign(levels=6, sizes=9, noise=0.003, seed=seed)
        low, high = isoflop_check(*runs, noise=0.003 * runs[1], seed=seed)["ci"]["exponent"]
        hits += low <= truth <= high
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    "option", [{"method": "cubic"}, {"bootstrap": -1}, {"noise": -1.0}, {"noise": math.nan}]
)
def test_an_option_out_of_range_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        isoflop_check(*campaign(), **option)  # type: ignore[arg-type]


def test_nothing_at_all_is_an_answer_too() -> None:
    result = isoflop_check(np.empty(0), np.empty(0), np.empty(0))
    assert result["levels"] == [] and result["exponent"] is None and result["ci"] is None


def test_thirty_levels_take_milliseconds() -> None:
    runs = campaign(levels=30, sizes=8, noise=0.005)
    isoflop_check(*runs)
    times = []
    for _ in range(10):
        begin = time.thread_time()
        isoflop_check(*runs)
        times.append(time.thread_time() - begin)
    # 6 ms on a quiet core; the bound leaves room for a busy one.
    assert min(times) < 0.03


def weighted_fits() -> list[dict[str, str]]:
    rows = shared_table("porian_isoflop/published_fits.csv")
    return [r for r in rows if r["kind"] == "weighted"]


def test_weighted_power_law_of_published_minima() -> None:
    pairs = shared_table("porian_isoflop/optimal_pairs.csv")
    published = weighted_fits()
    assert len(published) == 10
    for answer in published:
        rows = [
            r
            for r in pairs
            if all(r[k] == answer[k] for k in KEY)
            and r["val"] == answer["split"]
            and r["n_star_std"]
        ]
        flops, params, std = (
            np.array([float(r[c]) for r in rows]) for c in ("flops", "n", "n_star_std")
        )
        law = fit_power_law(flops, params, weight=1 / std**2)
        assert law.exponent == pytest.approx(float(answer["n_exponent"]), abs=1e-5)


def points(answer: dict[str, str]) -> Table:
    rows = [
        r
        for r in shared_table("porian_isoflop/data.csv")
        if all(r[k] == answer[k] for k in (*KEY, "split"))
    ]
    n, loss, flops = (np.array([float(r[c]) for r in rows]) for c in ("N", "loss", "C"))
    return n, loss, flops


def test_akima_gives_the_published_exponents_from_the_points() -> None:
    # The protocol: noise of .002 nats, 1000 copies; theirs on a grid, hence not to all digits.
    for answer in weighted_fits():
        ours = isoflop_check(*points(answer), method="akima", noise=0.002, bootstrap=1000)
        assert ours["exponent"] == pytest.approx(float(answer["n_exponent"]), abs=1e-3)
        interval = [float(answer["ci_lo"]), float(answer["ci_hi"])]
        assert ours["ci"]["exponent"] == pytest.approx(interval, abs=1.5e-3)


def test_akima_gives_the_published_minima_and_refusals_level_by_level() -> None:
    pairs = shared_table("porian_isoflop/optimal_pairs.csv")
    for answer in weighted_fits():
        rows = [
            r for r in pairs if all(r[k] == answer[k] for k in KEY) and r["val"] == answer["split"]
        ]
        levels = akima_levels(*points(answer), noise=0.002)
        # A level without a point of its own is not a level of ours.
        told = {round(math.log2(float(r["flops"]))): r for r in rows}
        for level in levels:
            theirs = told[round(math.log2(level.flops))]
            assert bool(level.refusal) == (theirs["n"] == "")
            if theirs["n"]:
                assert level.params == pytest.approx(float(theirs["n"]), rel=0.03)
                std = float(theirs["n_star_std"])
                assert level.log_params_std == pytest.approx(std, rel=0.05)
