"""What a fit promises whatever the data: invariances, intervals, honesty, a stable file."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem.scaling import (
    CHINCHILLA,
    Estimator,
    Fit,
    FlopsModel,
    OptionError,
    ScalingDataError,
    Target,
    UnknownLawError,
    fit_law,
)

from .campaigns import TRUTH, campaign

FAST = settings(max_examples=8, deadline=None)


def params_of(fit: Fit) -> list[float]:
    return [fit.params[name] for name in CHINCHILLA.parameter_names]


def test_exact_data_give_back_the_law() -> None:
    c = campaign()
    fit = fit_law(c.params, c.tokens, c.loss, bootstrap=200)
    assert params_of(fit) == pytest.approx([TRUTH[n] for n in CHINCHILLA.parameter_names], rel=1e-6)
    assert all(fit.identified.values())
    assert fit.held_out["mean_abs_relative_error"] < 1e-9


@FAST
@given(scale_n=st.floats(1e-6, 1e6), scale_d=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_units_of_n_and_d_change_a_and_b_and_nothing_else(
    scale_n: float, scale_d: float, seed: int
) -> None:
    c = campaign(noise=0.003, seed=seed)
    one = fit_law(c.params, c.tokens, c.loss, bootstrap=0)
    two = fit_law(c.params * scale_n, c.tokens * scale_d, c.loss, bootstrap=0)
    assert two.objective == pytest.approx(one.objective, rel=1e-8)
    assert two.params["alpha"] == pytest.approx(one.params["alpha"], rel=1e-4)
    assert two.params["beta"] == pytest.approx(one.params["beta"], rel=1e-4)
    expected = one.params["A"] * scale_n ** one.params["alpha"]
    assert two.params["A"] == pytest.approx(expected, rel=1e-2)


@FAST
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    c = campaign(noise=0.003, seed=seed)
    order = np.random.default_rng(seed).permutation(c.loss.size)
    one = fit_law(c.params, c.tokens, c.loss, bootstrap=0)
    two = fit_law(c.params[order], c.tokens[order], c.loss[order], bootstrap=0)
    assert two.objective == pytest.approx(one.objective, rel=1e-9)
    assert params_of(two) == pytest.approx(params_of(one), rel=1e-4)


@FAST
@given(counts=st.lists(st.integers(1, 4), min_size=20, max_size=20))
def test_a_weight_is_a_repeated_row(counts: list[int]) -> None:
    c = campaign(noise=0.003, seed=5)
    weighted = fit_law(c.params, c.tokens, c.loss, weight=counts, bootstrap=0)
    repeated = fit_law(
        np.repeat(c.params, counts),
        np.repeat(c.tokens, counts),
        np.repeat(c.loss, counts),
        bootstrap=0,
    )
    assert repeated.objective == pytest.approx(weighted.objective, rel=1e-9)
    assert params_of(repeated) == pytest.approx(params_of(weighted), rel=1e-4)


def test_the_same_seed_gives_the_same_file_and_another_seed_other_intervals() -> None:
    c = campaign(noise=0.01)

    def run(seed: int) -> str:
        fit = fit_law(c.params, c.tokens, c.loss, bootstrap=200, seed=seed, targets=[1e16])
        return json.dumps(fit.to_dict(), allow_nan=False)

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.slow
def test_intervals_contain_the_truth_most_of_the_time() -> None:
    inside = 0
    for seed in range(12):
        c = campaign(levels=5, sizes=6, noise=0.01, seed=seed)
        fit = fit_law(c.params, c.tokens, c.loss, bootstrap=200, targets=[1e16])
        log_n, _ = CHINCHILLA.optimum(CHINCHILLA.natural(TRUTH), 1e16, FlopsModel())
        low, high = fit.optima[0].ci["params"]
        inside += low <= float(np.exp(log_n)) <= high
    assert inside >= 9


def test_rows_of_one_run_widen_the_interval_they_would_shrink_as_rows() -> None:
    rng = np.random.default_rng(3)
    c = campaign(levels=5, sizes=5)
    run_noise = np.exp(0.01 * rng.standard_normal(c.loss.size))
    copies = 6
    params, tokens, loss = (np.repeat(v, copies) for v in (c.params, c.tokens, c.loss * run_noise))
    runs = np.repeat([f"r{i}" for i in range(c.loss.size)], copies)
    by_run = fit_law(params, tokens, loss, run_id=runs, bootstrap=400)
    by_row = fit_law(params, tokens, loss, bootstrap=400)
    assert by_run.n_runs == 25
    assert by_row.n_runs == 150

    def width(fit: Fit) -> float:
        low, high = fit.ci["exponents"]["a"]
        return float(high - low)

    assert width(by_run) > 1.7 * width(by_row)


@pytest.mark.parametrize("noise", [0.005, 0.02])
@pytest.mark.parametrize("shape", [(3, 4), (4, 6)])
def test_small_noisy_campaigns_end_in_finite_numbers(noise: float, shape: tuple[int, int]) -> None:
    for seed in range(4):
        c = campaign(levels=shape[0], sizes=shape[1], noise=noise, seed=seed, low=1e11)
        fit = fit_law(c.params, c.tokens, c.loss, bootstrap=200, targets=[1e14, 1e20])
        for name, value in fit.params.items():
            assert 0 < value < 1e30, name
        near, far = fit.optima
        assert 0 < near.ci["params"][0] <= near.params <= near.ci["params"][1] * 1.0001 < 1e12
        assert far.ci["params"][1] < 1e18
        json.dumps(fit.to_dict(), allow_nan=False)


def test_loss_without_a_visible_floor_leaves_e_unidentified_and_says_so() -> None:
    truth = TRUTH | {"E": 1e-6}
    c = campaign()
    loss = CHINCHILLA.predict(truth, c.params, c.tokens)
    loss *= np.exp(0.02 * np.random.default_rng(0).standard_normal(loss.size))
    fit = fit_law(c.params, c.tokens, loss, bootstrap=200)
    assert not fit.identified["E"]
    assert any(text.startswith("E is not identified") for text in fit.warnings)


def test_a_far_target_is_answered_with_a_warning() -> None:
    c = campaign(noise=0.003)
    fit = fit_law(c.params, c.tokens, c.loss, bootstrap=100, targets=[9e15, 1e19])
    near, far = fit.optima
    assert not any("times the largest compute" in text for text in near.warnings)
    assert far.extrapolation_ratio == pytest.approx(1e4)
    assert any("times the largest compute" in text for text in far.warnings)
    assert any(text.startswith("at 1e19 FLOP") for text in fit.warnings)


def test_all_faults_of_the_data_are_named_at_once() -> None:
    c = campaign()
    params, loss = c.params.copy(), c.loss.copy()
    params[3], loss[7], loss[8] = -1.0, np.nan, np.inf
    weight = np.ones(c.loss.size)
    weight[2] = -1
    with pytest.raises(ScalingDataError) as caught:
        fit_law(params, c.tokens, loss, weight=weight)
    assert [str(f.path) for f in caught.value.faults] == [
        "params[3]",
        "loss[7]",
        "loss[8]",
        "weight[2]",
    ]


def test_too_few_sizes_and_points_are_refused_together() -> None:
    with pytest.raises(ScalingDataError) as caught:
        fit_law([1e6] * 4, [1e9, 2e9, 3e9, 4e9], [3.0, 2.9, 2.8, 2.7])
    text = str(caught.value)
    assert "distinct model sizes" in text
    assert "distinct points" in text


def test_few_runs_get_no_interval_rather_than_a_wrong_one() -> None:
    c = campaign()
    some = [0, 4, 7, 12, 19]
    fit = fit_law(c.params[some], c.tokens[some], c.loss[some], targets=[1e16])
    assert fit.ci["method"] == "none"
    assert np.isnan(fit.optima[0].ci["params"][0])
    assert any("no intervals" in text for text in fit.warnings)


def test_energy_and_gpu_hours_come_with_the_optimum() -> None:
    c = campaign(levels=4, sizes=6, noise=0.003)
    energy = 50 + 1e-6 * c.tokens + 2e-11 * c.flops
    energy[0] = np.nan
    fit = fit_law(
        c.params,
        c.tokens,
        c.loss,
        flops=c.flops,
        energy_j=energy,
        gpu_seconds=c.flops / 1e13,
        targets=[1e16],
        bootstrap=100,
    )
    optimum = fit.optima[0]
    assert optimum.energy_j == pytest.approx(50 + 1e-6 * optimum.tokens + 2e-11 * 1e16, rel=1e-6)
    assert optimum.gpu_hours == pytest.approx(1e16 / 1e13 / 3600, rel=1e-6)
    assert fit.costs["energy_j"].left_out == (0,)


def test_energy_that_was_not_measured_is_nan_with_the_reason() -> None:
    c = campaign()
    fit = fit_law(
        c.params,
        c.tokens,
        c.loss,
        energy_j=np.full(c.loss.size, np.nan),
        targets=[1e16, Target(5, "kWh")],
        bootstrap=50,
    )
    by_flops, by_energy = fit.optima
    assert np.isnan(by_flops.energy_j)
    assert any("energy_j was measured in 0" in text for text in by_flops.warnings)
    assert np.isnan(by_energy.params)
    assert fit.to_dict()["optima"][0]["energy_j"] is None


def test_an_energy_target_spends_exactly_that_energy() -> None:
    c = campaign()
    energy = 50 + 1e-6 * c.tokens + 2e-11 * c.flops
    target = Target(0.05, "kWh")
    fit = fit_law(c.params, c.tokens, c.loss, energy_j=energy, targets=[target], bootstrap=50)
    assert fit.optima[0].energy_j == pytest.approx(0.05 * 3.6e6, rel=1e-9)


def test_the_file_reads_back_as_it_was_written() -> None:
    c = campaign(noise=0.01)
    fit = fit_law(
        c.params,
        c.tokens,
        c.loss,
        bootstrap=50,
        targets=[1e16],
        excluded=[{"run_id": "x", "reason": "diverged"}],
    )
    text = json.dumps(fit.to_dict(), allow_nan=False)
    again = Fit.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert again.optimum(1e16).params == pytest.approx(fit.optima[0].params, rel=1e-12)
    assert again.excluded == [{"run_id": "x", "reason": "diverged"}]


def test_least_squares_is_the_limit_of_a_large_delta() -> None:
    c = campaign(noise=0.01)
    squares = fit_law(c.params, c.tokens, c.loss, estimator=Estimator(loss="squares"), bootstrap=0)
    huber = fit_law(c.params, c.tokens, c.loss, estimator=Estimator(delta=10.0), bootstrap=0)
    assert squares.objective == pytest.approx(huber.objective, rel=1e-10)


def test_wrong_options_are_named() -> None:
    c = campaign()
    with pytest.raises(UnknownLawError, match="chinchilla"):
        fit_law(c.params, c.tokens, c.loss, law="chinchila")
    with pytest.raises(OptionError, match="level"):
        fit_law(c.params, c.tokens, c.loss, level=95)
    with pytest.raises(OptionError, match=r"target\.value"):
        fit_law(c.params, c.tokens, c.loss, targets=[-1.0])
    with pytest.raises(OptionError, match=r"estimator\.delta"):
        Estimator(delta=0)


def test_importing_the_package_loads_neither_scipy_nor_numpy() -> None:
    code = "import sys, llem.scaling; print([m for m in ('scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_rows_at_all_are_refused_like_too_few() -> None:
    with pytest.raises(ScalingDataError, match="distinct model sizes"):
        fit_law([], [], [], run_id=[])


def test_epochs_that_the_law_does_not_know_are_told() -> None:
    c = campaign(noise=0.003, seed=1)
    once = np.where(c.tokens > np.median(c.tokens), c.tokens / 4, c.tokens)
    once[0] = np.nan
    fit = fit_law(c.params, c.tokens, c.loss, unique_tokens=once, bootstrap=0)
    told = [text for text in fit.warnings if "more than once, in up to 4 epochs" in text]
    assert len(told) == 1 and "see repeated_tokens" in told[0]
    fresh = fit_law(c.params, c.tokens, c.loss, unique_tokens=c.tokens, bootstrap=0)
    assert not any("more than once" in text for text in fresh.warnings)
    knowing = fit_law(c.params, c.tokens, c.loss, unique_tokens=once, law="repeated_tokens",
                      bootstrap=0)  # fmt: skip
    assert not any("more than once" in text for text in knowing.warnings)
