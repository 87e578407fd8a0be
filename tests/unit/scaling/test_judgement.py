"""How far a fit may be trusted: profiles, sandwich errors, refits to parts of the data."""

from __future__ import annotations

import numpy as np
import pytest

from llem.scaling import CHINCHILLA, Estimator, Fit, OptionError, compare_laws, fit_law

from .campaigns import TRUTH, campaign
from .data_sets import load

SQUARES = Estimator("squares")


@pytest.fixture(scope="module")
def noisy() -> Fit:
    c = campaign(levels=5, sizes=6, noise=0.004, seed=2)
    return fit_law(c.params, c.tokens, c.loss, estimator=SQUARES, bootstrap=800)


@pytest.mark.parametrize("name", CHINCHILLA.parameter_names)
def test_a_profile_is_lowest_at_the_estimate_and_rises_on_both_sides(noisy: Fit, name: str) -> None:
    profile = noisy.profiles[name]
    value, deviance = np.array(profile["value"]), np.array(profile["deviance"])
    at = int(np.argmin(deviance))
    assert value[at] == pytest.approx(noisy.params[name], rel=1e-9)
    assert np.all(np.diff(value) > 0)
    assert np.all(np.diff(deviance[at:]) > 0)
    assert np.all(np.diff(deviance[: at + 1]) < 0)


@pytest.mark.parametrize("name", CHINCHILLA.parameter_names)
def test_a_profile_is_that_of_fits_with_the_parameter_held(noisy: Fit, name: str) -> None:
    """Against a law in which the parameter is a number."""
    from llem.scaling import FormulaLaw

    c = campaign(levels=5, sizes=6, noise=0.004, seed=2)
    profile = noisy.profiles[name]
    places = [2, len(profile["value"]) - 3]
    rises = []
    for i in places:
        held = FormulaLaw.parse(
            "E + A/N^alpha + B/D^beta", fixed={name: profile["value"][i]}, name="held"
        )
        fit = fit_law(c.params, c.tokens, c.loss, law=held, estimator=SQUARES, bootstrap=0)
        rises.append(fit.objective - noisy.objective)
    ratio = np.array([profile["deviance"][i] for i in places]) / np.array(rises)
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-4)


def test_profile_sandwich_and_bootstrap_agree_where_the_data_are_good() -> None:
    c = campaign(levels=8, sizes=10, noise=0.003, seed=1)
    fit = fit_law(c.params, c.tokens, c.loss, estimator=SQUARES, bootstrap=1000)
    for name in ("E", "alpha", "beta"):
        low, high = fit.profiles[name]["interval"]
        sandwich = fit.standard_errors["sandwich"][name]
        drawn = fit.standard_errors["bootstrap"][name]
        assert sandwich == pytest.approx(drawn, rel=0.25)
        assert (high - low) / (2 * 1.96) == pytest.approx(sandwich, rel=0.2)


def test_sandwich_errors_grow_with_rows_that_share_a_run() -> None:
    rng = np.random.default_rng(3)
    c = campaign(levels=5, sizes=5)
    noise = np.exp(0.01 * rng.standard_normal(c.loss.size))
    params, tokens, loss = (np.repeat(v, 5) for v in (c.params, c.tokens, c.loss * noise))
    run = np.repeat([f"r{i}" for i in range(c.loss.size)], 5)
    by_run = fit_law(params, tokens, loss, run_id=run, estimator=SQUARES, bootstrap=0)
    by_row = fit_law(params, tokens, loss, estimator=SQUARES, bootstrap=0)
    ratio = (
        by_run.standard_errors["sandwich"]["alpha"] / by_row.standard_errors["sandwich"]["alpha"]
    )
    assert 2.0 < ratio < 3.0  # the root of 5, and the degrees of freedom


def test_a_held_out_run_is_predicted_by_the_law_of_the_others() -> None:
    c = campaign(levels=4, sizes=5, noise=0.002, seed=4)
    fit = fit_law(c.params, c.tokens, c.loss, bootstrap=0)
    rest = c.flops < 0.9 * c.flops.max()
    alone = fit_law(c.params[rest], c.tokens[rest], c.loss[rest], bootstrap=0)
    error = alone.predict(c.params[~rest], c.tokens[~rest]) / c.loss[~rest] - 1
    assert fit.held_out["mean_abs_relative_error"] == pytest.approx(
        float(np.mean(np.abs(error))), rel=1e-5
    )
    assert fit.leave_one_out["levels"][-1]["mean_abs_relative_error"] == pytest.approx(
        fit.held_out["mean_abs_relative_error"], rel=1e-6
    )
    assert len(fit.leave_one_out["levels"]) == 4


def test_a_law_of_the_wrong_form_shows_in_the_held_out_error() -> None:
    c = campaign(levels=5, sizes=6, noise=0.001, seed=0)
    bent = c.loss * (1 + 0.02 * (np.log10(c.flops / c.flops.min())) ** 2)
    right = fit_law(c.params, c.tokens, c.loss, bootstrap=0)
    wrong = fit_law(c.params, c.tokens, bent, bootstrap=0)
    for name in ("held_out", "leave_one_out"):
        good = getattr(right, name)["mean_abs_relative_error"]
        bad = getattr(wrong, name)["mean_abs_relative_error"]
        assert bad > 3 * good


def test_each_choice_of_the_sensitivity_is_the_fit_under_that_choice() -> None:
    data = load("epoch")
    fit = fit_law(data.params, data.tokens, data.loss, bootstrap=0)
    by_choice = {row["choice"]: row for row in fit.sensitivity}
    limit = np.quantile(data.loss, 0.95)
    keep = data.loss <= limit
    alone = fit_law(data.params[keep], data.tokens[keep], data.loss[keep], bootstrap=0)
    told = by_choice["without the 5 % highest losses"]
    assert told["rows"] == keep.sum()
    assert told["params"]["E"] == pytest.approx(alone.params["E"], rel=1e-6)
    squares = fit_law(data.params, data.tokens, data.loss, estimator=SQUARES, bootstrap=0)
    assert by_choice["least squares"]["params"]["B"] == pytest.approx(squares.params["B"], rel=1e-5)


def test_the_answer_is_told_for_parameters_without_embeddings_too() -> None:
    c = campaign(noise=0.002)
    smaller = c.params - 0.6 * c.params.min()
    flops = 5.0 * c.params * c.tokens
    fit = fit_law(
        c.params,
        c.tokens,
        c.loss,
        flops=flops,
        params_nonembedding=smaller,
        bootstrap=0,
        targets=[1e18],
    )
    told = {(d["params"], d["flops"]): d for d in fit.definitions}
    assert len(told) == 4
    assert told["total", "as measured"]["optimum"]["params"] == pytest.approx(fit.optima[0].params)
    alone = fit_law(smaller, c.tokens, c.loss, flops=flops, bootstrap=0, targets=[1e18])
    other = told["non-embedding", "as measured"]
    assert other["optimum"]["params"] == pytest.approx(alone.optima[0].params, rel=1e-5)
    assert other["exponents"]["a"] != pytest.approx(fit.exponents["a"], abs=1e-3)


def test_repeated_rows_are_told() -> None:
    c = campaign(noise=0.002)
    again = np.r_[np.arange(c.loss.size), 3, 4]
    fit = fit_law(c.params[again], c.tokens[again], c.loss[again], bootstrap=0)
    assert any(text.startswith("2 rows repeat another") for text in fit.warnings)


def test_laws_are_ranked_by_what_they_predict() -> None:
    c = campaign(levels=5, sizes=6, noise=0.001, seed=7)
    told = compare_laws(c.params, c.tokens, c.loss, laws=["chinchilla_tied", "chinchilla"])
    assert told["best"] == "chinchilla"
    assert [row["parameters"] for row in told["laws"]] == [4, 5]
    assert abs(TRUTH["alpha"] - TRUTH["beta"]) > 0.01  # else the tied law would be right
    with pytest.raises(OptionError, match="two laws"):
        compare_laws(c.params, c.tokens, c.loss, laws=["chinchilla", "chinchilla"])
