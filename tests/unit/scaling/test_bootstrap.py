"""The weights of resamples, and the fits under them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from llem.scaling import CHINCHILLA, Estimator, fit_law
from llem.scaling.fitting.bootstrap import Draws, refit, student_ratio, weight_variance
from llem.scaling.fitting.solve import solve
from llem.scaling.observations import check_observations

from .campaigns import campaign


def draws(count: int = 500, variance: float = 0.9, runs: int = 40) -> Draws:
    return Draws("runs", count, 3, np.arange(runs), np.ones(runs), variance)


def test_weights_have_the_wished_mean_and_variance() -> None:
    weight = draws(4000).take(np.arange(4000))
    assert weight.mean(axis=1) == pytest.approx(np.ones(4000))
    assert float(weight.var()) == pytest.approx(0.9 / (1 + 0.9 / 40), rel=0.05)


def test_a_draw_does_not_depend_on_how_it_is_asked_for() -> None:
    d = draws()
    whole = d.take(np.arange(500))
    some = np.array([499, 3, 64, 65, 128])
    assert np.array_equal(d.take(some), whole[some])
    parts = [weight for _, weight in d.slices(70)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_rows_of_a_run_share_its_weight_and_keep_their_own_count() -> None:
    run, count = np.repeat(np.arange(10), 3), np.tile([1.0, 2.0, 0.0], 10)
    weight = Draws("runs", 5, 0, run, count, 1.0).take(np.arange(5)).reshape(5, 10, 3)
    assert np.allclose(weight[..., 1], 2 * weight[..., 0])
    assert np.all(weight[..., 2] == 0)


def test_rows_are_counted_when_drawn_one_by_one() -> None:
    d = Draws("rows", 100, 0, np.zeros(30, dtype=int), np.ones(30))
    weight = d.take(np.arange(100))
    assert np.array_equal(weight, np.round(weight))
    assert np.all(weight.sum(axis=1) == 30)


@pytest.mark.parametrize("degrees", [5, 10, 15, 35, 195])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_series_for_student_is_close(degrees: int, level: float) -> None:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    exact = float(student.ppf(0.5 + level / 2, degrees)) / z
    assert student_ratio(degrees, z) == pytest.approx(exact, rel=2e-3)


def test_a_weight_of_two_is_a_row_twice_for_the_variance() -> None:
    rng = np.random.default_rng(0)
    residual, run = 0.01 * rng.standard_normal(20), np.arange(20)
    options = {"parameters": 5, "level": 0.95}
    double = weight_variance(residual, np.full(20, 2.0), run, Estimator(), **options)
    twice = weight_variance(
        np.repeat(residual, 2), np.ones(40), np.repeat(run, 2), Estimator(), **options
    )
    assert double == pytest.approx(twice)


def test_resamples_end_at_their_own_minimum() -> None:
    c = campaign(levels=4, sizes=6, noise=0.01, seed=5)
    data = check_observations(c.params, c.tokens, c.loss)
    problem = CHINCHILLA.bind(data)
    solution = solve(problem, data.weight, Estimator())
    d = Draws("rows", 40, 1, data.run, data.weight)
    found = refit(problem, d, Estimator(), solution.ends)
    weight = d.take(np.arange(40))
    for i in range(0, 40, 8):
        alone = solve(problem, weight[i], Estimator())
        assert found.objective[i] <= alone.objective * (1 + 1e-9)


def test_progress_is_told_to_the_end() -> None:
    c = campaign(noise=0.01)
    told: list[tuple[int, int]] = []
    fit_law(
        c.params,
        c.tokens,
        c.loss,
        bootstrap=2100,
        watch=lambda done, all_: told.append((done, all_)),
    )
    assert told[-1] == (2100, 2100)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 1
