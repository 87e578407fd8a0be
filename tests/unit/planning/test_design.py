"""Designs: what they promise is what fits then do, and the promise is what they are chosen by."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from llem.planning import design
from llem.planning.design import (
    Cells,
    LawError,
    Question,
    choose_runs,
    expected_error,
    huber_moments,
    in_common,
    prior_laws,
    spread_of_laws,
)
from llem.planning.scatter import Scatter
from llem.scaling import CHINCHILLA, Estimator, FlopsModel
from llem.scaling.fitting.solve import solve
from llem.scaling.observations import check_observations

LAW = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
TARGET = 1e22
START = 1e16
FloatArray = NDArray[np.float64]


def lattice(sizes: int = 9, levels: int = 7) -> Cells:
    params, flops = np.meshgrid(np.geomspace(1e7, 5e9, sizes), np.geomspace(1e17, 1e20, levels))
    return Cells(params.ravel(), (flops / (6 * params)).ravel(), flops.ravel() + START)


def spread_out(cells: Cells, *, every: int = 4) -> NDArray[np.int64]:
    counts = np.zeros(len(cells), dtype=np.int64)
    counts[::every] = 1
    return counts


def alike(noise: float, cells: float = 0.0) -> Scatter:
    """Seeds that scatter by as much however many tokens they see."""
    return Scatter(seeds=noise, decay=0.0, cells=cells)


def question(**changes: object) -> Question:
    changes = {"scatter": alike(0.005), **changes}
    return Question(TARGET, CHINCHILLA.natural(LAW)[None, :], **changes)  # type: ignore[arg-type]


# Seeds alone, cells alone, and both of them, the seeds' falling with tokens as they do.
SCATTERS = [alike(0.002), alike(0.01), alike(0.0, cells=0.005), Scatter(seeds=0.2, cells=0.003)]


@pytest.mark.slow
@pytest.mark.parametrize("scatter", SCATTERS)
def test_the_stated_error_is_what_repeated_campaigns_scatter_by(scatter: Scatter) -> None:
    cells = lattice()
    counts = spread_out(cells, every=2) * 2
    stated = expected_error(cells, counts, question=question(scatter=scatter))
    params, tokens = np.repeat(cells.params, counts), np.repeat(cells.tokens, counts)
    cell = np.repeat(np.arange(len(cells)), counts)
    rng = np.random.default_rng(1)
    log_n, loss = [], []
    for _ in range(50):
        drawn = scatter.of_seeds(tokens) * rng.standard_normal(params.size)
        drawn += scatter.cells * rng.standard_normal(len(cells))[cell]
        true = CHINCHILLA.predict(LAW, params, tokens)
        data = check_observations(params, tokens, true * np.exp(drawn))
        problem = CHINCHILLA.bind(data)
        natural = problem.natural(solve(problem, data.weight, Estimator()).theta)
        best = CHINCHILLA.optimum(natural, TARGET, FlopsModel())
        log_n.append(float(best[0]))
        loss.append(float(CHINCHILLA.loss(natural, *best)))
    # 50 campaigns tell their scatter within 20 % at two standard errors.
    assert np.std(log_n) == pytest.approx(stated.se_log_params, rel=0.25)
    assert np.std(loss) == pytest.approx(stated.se_loss, rel=0.25)


def test_the_law_error_is_what_wrong_truths_do_to_a_fit_without_noise() -> None:
    cells = lattice()
    asked = question(law_error=LawError(drift=1e-4, small=1e-4, smooth=1e-4, length=2.0))
    stakes = design._Stakes.of(cells, asked)
    x, y = np.log(cells.params), np.log(cells.tokens)
    natural = asked.laws[0]
    # Least squares by the linearised law: exact for errors this small.
    jacobian = stakes.jacobian[0]
    squares = []
    log_n, _ = CHINCHILLA.optimum(natural, TARGET, FlopsModel())
    along = float(log_n) + np.linspace(-0.5, 0.5, 20_001)
    across = math.log(TARGET / 6) - along
    corners = np.append(x, log_n), np.append(y, math.log(TARGET / 6) - log_n)
    smooth = design._Smooth.over(*corners, error=asked.law_error)
    for component in range(stakes.d.shape[2]):
        added = stakes.d[0, :, component]
        values = np.log(CHINCHILLA.loss(natural, along, across))
        if component < smooth.root.shape[1]:
            values = values + smooth(along, across)[:, component]
        elif component >= stakes.d.shape[2] - 2:
            of_alpha = stakes.d.shape[2] - 1 - component
            added = drifting(natural, x, y, of_alpha)
            values = values + drifting(natural, along, across, of_alpha)
        moved = np.linalg.lstsq(jacobian, added, rcond=None)[0] @ stakes.aim[0]
        fine = np.polynomial.Polynomial.fit(along - along[10_000], values, 6)
        roots = np.asarray(fine.deriv().roots(), dtype=np.complex128)
        inside = [float(r.real) for r in roots if abs(r) < 0.4]
        assert len(inside) == 1
        squares.append((moved - inside[0]) ** 2)
    stated = expected_error(cells, np.ones(len(cells)), question=asked).law_error_log_params
    assert stated == pytest.approx(math.sqrt(sum(squares)), rel=1e-2)
    # No part of it is so small that the sum would hide its absence.
    smooths = smooth.root.shape[1]
    for part in (squares[:smooths], squares[smooths:-2], squares[-2:-1], squares[-1:]):
        assert sum(part) > 0.03 * sum(squares)


def drifting(
    natural: FloatArray, log_params: FloatArray, log_tokens: FloatArray, of_alpha: int
) -> FloatArray:
    """What alpha (or else beta) growing by 1e-4 a decade adds to log loss."""
    e, a, b, alpha, beta = natural
    # From where it grows matters to nothing: the amplitude and the exponent absorb it.
    bend = 0.5e-4 / math.log(10) * (np.where(of_alpha, log_params, log_tokens) - 20.0) ** 2
    terms = np.exp(a - alpha * log_params - of_alpha * bend)
    terms = terms + np.exp(b - beta * log_tokens - (1 - of_alpha) * bend)
    law = np.exp(e) + np.exp(a - alpha * log_params) + np.exp(b - beta * log_tokens)
    return np.asarray(np.log((np.exp(e) + terms) / law))


def test_the_first_run_taken_is_the_best_by_trying_all() -> None:
    cells = lattice()
    done = spread_out(cells)
    asked = Question(TARGET, prior_laws()[:1])
    before = math.log(expected_error(cells, done, question=asked).total_log_params)
    gain = []
    for cell in range(len(cells)):
        tried = done.copy()
        tried[cell] += 1
        after = math.log(expected_error(cells, tried, question=asked).total_log_params)
        gain.append((before - after) / cells.cost[cell])
    best = int(np.argmax(gain))
    chosen = choose_runs(cells, question=asked, budget=float(cells.cost[best]), done=done)
    # What is left of the budget buys nothing more of the same price.
    assert chosen.counts[best] >= 1


def test_a_plan_keeps_to_the_budget_and_to_the_cap_on_seeds() -> None:
    cells = lattice()
    done = spread_out(cells)
    plan = choose_runs(cells, question=question(), budget=1e21, done=done, per_cell=3)
    assert plan.cost == pytest.approx(float(plan.counts @ cells.cost))
    assert 0.95e21 < plan.cost <= 1e21
    assert (plan.counts + done).max() <= 3
    assert plan.counts.min() >= 0


def test_a_plan_states_what_other_budgets_would_give() -> None:
    cells = lattice()
    asked = Question(TARGET, prior_laws())
    plan = choose_runs(cells, question=asked, budget=5e20, done=spread_out(cells))
    half, same, twice = (plan.for_budget[b].total_log_params for b in (0.5, 1.0, 2.0))
    assert half > same > twice
    assert plan.for_budget[1.0] == plan.expected
    # What is stated is what the same runs are worth when asked about afterwards.
    again = expected_error(cells, plan.counts + spread_out(cells), question=asked)
    assert again.se_log_params == pytest.approx(plan.expected.se_log_params, rel=1e-6)
    assert again.law_error_loss == pytest.approx(plan.expected.law_error_loss, rel=1e-6)


def test_the_same_question_gives_the_same_plan() -> None:
    cells = lattice()
    one, other = (choose_runs(cells, question=question(), budget=3e20) for _ in range(2))
    assert np.array_equal(one.counts, other.counts)


def test_as_many_runs_as_asked_for_are_planned_and_they_are_larger() -> None:
    cells = lattice()
    done = spread_out(cells)
    free = choose_runs(cells, question=question(), budget=1e21, done=done)
    few = choose_runs(cells, question=question(), budget=1e21, done=done, max_runs=25)
    assert free.counts.sum() > 40
    assert 20 <= few.counts.sum() <= 25
    assert few.cost > 0.8e21
    assert few.cost / few.counts.sum() > 1.5 * free.cost / free.counts.sum()
    assert few.expected.se_log_params > free.expected.se_log_params


def test_cells_that_were_observed_but_cannot_be_run_again_inform_and_are_not_chosen() -> None:
    cells = lattice()
    done = spread_out(cells)
    cost = np.where(done > 0, np.inf, cells.cost)
    kept = Cells(cells.params, cells.tokens, cost)
    plan = choose_runs(kept, question=question(), budget=1e20, done=done)
    assert plan.counts[done > 0].sum() == 0
    assert plan.counts.sum() > 0
    alone = choose_runs(kept, question=question(), budget=1e20)
    assert plan.expected.total_log_params < alone.expected.total_log_params


def test_fewer_cells_than_a_law_has_parameters_are_hopeless_however_many_their_runs() -> None:
    cells = lattice()
    counts = np.zeros(len(cells), dtype=np.int64)
    counts[[0, 20, 40, 62]] = 50
    assert expected_error(cells, counts, question=question()).se_log_params > 100
    assert expected_error(cells, 0 * counts, question=question()).se_log_params > 100


def test_a_budget_below_the_cheapest_run_plans_nothing() -> None:
    plan = choose_runs(lattice(), question=question(), budget=1e15)
    assert plan.counts.sum() == 0
    assert plan.cost == 0.0


def test_doubt_about_the_law_moves_money_to_larger_runs() -> None:
    cells = lattice()
    done = spread_out(cells)
    flops = 6 * cells.params * cells.tokens

    def share_of_small_runs(error: LawError) -> float:
        asked = question(law_error=error)
        plan = choose_runs(cells, question=asked, budget=5e20, done=done, per_cell=10_000)
        return float(plan.counts[flops < 1e19] @ cells.cost[flops < 1e19]) / plan.cost

    # Noise alone would have it all spent on runs as small as can be.
    nothing = {"drift": 0.0, "small": 0.0, "smooth": 0.0}
    assert share_of_small_runs(LawError(**nothing)) > 0.9
    # One kind of error alone is reason enough.
    for name, value in {"drift": 0.02, "smooth": 0.1}.items():
        assert share_of_small_runs(LawError(**{**nothing, name: value})) < 0.6
    assert share_of_small_runs(LawError()) < 0.5


def test_a_design_that_expects_drift_errs_less_where_exponents_drift() -> None:
    cells = lattice()
    done = spread_out(cells)
    judge = question(law_error=LawError(drift=0.02, small=0.0, smooth=0.0))

    def error(law_error: LawError) -> float:
        asked = question(law_error=law_error)
        plan = choose_runs(cells, question=asked, budget=1e21, done=done)
        return expected_error(cells, plan.counts + done, question=judge).law_error_log_params

    assert error(LawError()) < 0.9 * error(LawError(drift=0.0, small=0.0, smooth=0.0))
    assert error(LawError()) < 0.97 * error(LawError(drift=0.0))


def test_a_chosen_design_halves_the_error_of_an_isoflop_grid_of_the_same_cost() -> None:
    cells = lattice()
    ratio = cells.tokens / cells.params
    grid = np.where((ratio > 1) & (ratio < 400), 1, 0)
    done = spread_out(cells, every=9)
    budget = float(grid @ cells.cost - done @ cells.cost)
    plan = choose_runs(cells, question=question(), budget=budget, done=done)
    of_grid = expected_error(cells, grid, question=question())
    assert plan.expected.se_log_params < 0.5 * of_grid.se_log_params


def test_seeds_of_one_cell_lower_the_noise_but_not_the_error_of_the_law() -> None:
    cells = lattice()
    asked = question(scatter=alike(0.005))
    once = expected_error(cells, np.ones(len(cells)), question=asked)
    often = expected_error(cells, np.full(len(cells), 100), question=asked)
    assert often.se_log_params == pytest.approx(once.se_log_params / 10, rel=1e-3)
    assert often.law_error_log_params == pytest.approx(once.law_error_log_params, rel=1e-3)


def test_what_sets_cells_apart_is_not_averaged_away_by_seeds_but_by_cells() -> None:
    cells = lattice()
    asked = question(scatter=alike(1e-9, cells=0.005))
    once = expected_error(cells, np.ones(len(cells)), question=asked).se_log_params
    often = expected_error(cells, np.full(len(cells), 100), question=asked).se_log_params
    assert often == pytest.approx(once, rel=1e-3)
    twice = Cells(*(np.repeat(v, 2) for v in (cells.params, cells.tokens, cells.cost)))
    more = expected_error(twice, np.ones(len(twice)), question=asked).se_log_params
    assert more == pytest.approx(once / math.sqrt(2), rel=1e-3)


def test_hubers_function_costs_pi_halves_where_its_threshold_is_small() -> None:
    def cost(noise: float, threshold: float) -> float:
        slope, square = huber_moments(np.array([noise]), threshold)
        return float(square[0] / slope[0] ** 2) / noise**2

    assert cost(2.0, 1e-7) == pytest.approx(math.pi / 2, rel=1e-6)
    assert cost(2.0, math.inf) == 1.0
    # Huber 1964: 95 % efficient at 1.345 standard deviations.
    assert 1 / cost(2.0, 2 * 1.345) == pytest.approx(0.95, abs=2e-3)


def test_what_huber_makes_of_two_runs_that_share_something() -> None:
    rng = np.random.default_rng(0)
    shared, *own = rng.standard_normal((3, 400_000))
    for correlation in (0.3, 0.9, 1.0):
        for threshold in (0.01, 1.0, 20.0):
            one, other = (
                np.clip(
                    math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * x,
                    -threshold, threshold,
                )
                for x in own
            )  # fmt: skip
            slope, square = huber_moments(np.ones(1), threshold)
            told = in_common(np.array([correlation]), slope**2 / square)
            assert told[0] == pytest.approx(np.mean(one * other) / square[0], abs=0.04)


def test_few_laws_stand_for_many_and_lost_ones_are_left_out() -> None:
    rng = np.random.default_rng(0)
    laws = CHINCHILLA.natural(LAW) + 0.01 * rng.standard_normal((500, 5))
    laws[7] = np.nan
    kept = spread_of_laws(laws, TARGET, count=5)
    assert kept.shape == (5, 5)
    all_n = CHINCHILLA.optimum(np.delete(laws, 7, axis=0), TARGET, FlopsModel())[0]
    few_n = CHINCHILLA.optimum(kept, TARGET, FlopsModel())[0]
    assert np.all(np.diff(few_n) > 0)
    assert abs(np.mean(few_n) - np.mean(all_n)) < 0.3 * np.std(all_n)


def test_two_thousand_cells_and_two_hundred_runs_take_less_than_a_second() -> None:
    cells = lattice(sizes=50, levels=40)
    laws = np.repeat(prior_laws(), 2, axis=0)
    begun = time.process_time()
    plan = choose_runs(
        cells, question=Question(TARGET, laws), budget=2.5e20, done=spread_out(cells, every=80)
    )
    assert time.process_time() - begun < 1.0
    assert plan.counts.sum() >= 200
