"""How long a step takes: the two coefficients come back from times that were made from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.planning import StepTime, fit_steps

WORKS = (1e-4, 1e-3, 4e-3, 2e-2, 0.1)


def times(utilisation, overhead, *, works=WORKS, micro=(1, 1, 2, 1, 4), noise=None, error=0.0):
    noise = noise or [1.0] * len(works)
    return [
        StepTime(w, m, (w / utilisation + overhead * m) * e, error)
        for w, m, e in zip(works, micro, noise, strict=False)
    ]


@given(st.floats(0.02, 0.9), st.floats(1e-4, 0.05))
def test_exact_times_give_the_truth(utilisation, overhead):
    law = fit_steps(times(utilisation, overhead), utilisation=0.35)
    assert law.utilisation == pytest.approx(utilisation, rel=1e-6)
    assert law.step_overhead_s == pytest.approx(overhead, rel=1e-6)
    assert law.scatter < 1e-6


def test_the_stated_errors_are_those_of_repeated_calibrations():
    rng = np.random.default_rng(1)
    laws = [
        fit_steps(times(0.4, 2e-3, noise=list(1 + 0.05 * rng.standard_normal(5))), utilisation=0.35)
        for _ in range(2000)
    ]
    off = np.array([math.log(law.utilisation / 0.4) for law in laws])
    told = np.sqrt(np.mean([law.utilisation_error**2 for law in laws]))
    assert off.std() == pytest.approx(told, rel=0.1)
    overhead = np.array([law.step_overhead_s for law in laws])
    told = np.sqrt(np.mean([law.step_overhead_error_s**2 for law in laws]))
    assert overhead.std() == pytest.approx(told, rel=0.1)
    total = np.array([sum(law.step_s(w, 1) for w in WORKS) for law in laws])
    assert total.std() / total.mean() < 2 * np.mean([law.time_error for law in laws])


def test_what_it_predicts_in_all_is_neither_short_nor_long():
    """Scatter alone, however wide, must not make every plan look cheaper than it is."""
    rng = np.random.default_rng(4)
    told = []
    for _ in range(2000):
        noise = list(np.exp(0.25 * rng.standard_normal(5) - 0.25**2 / 2))
        law = fit_steps(times(0.4, 2e-3, noise=noise), utilisation=0.35)
        known = law.utilisation if law.utilisation > 0 else 0.35
        told.append(sum(w / known + law.step_overhead_s for w in WORKS[:4]))
    truth = sum(w / 0.4 + 2e-3 for w in WORKS[:4])
    assert np.mean(told) == pytest.approx(truth, rel=0.02)


def test_a_badly_measured_step_counts_less():
    good = times(0.4, 2e-3)
    bad = StepTime(1e-2, 1, 5 * (1e-2 / 0.4 + 2e-3), error=2.0)
    trusted = StepTime(bad.work_s, 1, bad.step_s)
    off = [
        abs(math.log(fit_steps([*good, item], utilisation=0.35).utilisation / 0.4))
        for item in (bad, trusted)
    ]
    assert off[0] < off[1] / 5


def test_no_coefficient_is_ever_negative():
    falling = [StepTime(w, 1, t) for w, t in ((1e-3, 5e-3), (1e-2, 4.9e-3), (1e-1, 4.8e-3))]
    hidden = fit_steps(falling, utilisation=0.5)
    assert math.isnan(hidden.utilisation)
    assert 0 <= hidden.step_overhead_s < 5e-3
    steep = [StepTime(w, 1, 3 * w**1.3) for w in WORKS]
    law = fit_steps(steep, utilisation=0.5)
    assert law.step_overhead_s == 0
    assert law.utilisation > 0


def test_one_shape_alone_gives_its_utilisation_and_no_overhead():
    law = fit_steps(times(0.4, 2e-3, works=(1e-2,)), utilisation=0.35)
    assert law.step_overhead_s == 0
    assert law.utilisation == pytest.approx(1e-2 / (1e-2 / 0.4 + 2e-3))
    assert law.utilisation_error == pytest.approx(0.15)
    alike = fit_steps(times(0.4, 2e-3, works=(1e-2,) * 4, micro=(1,) * 4), utilisation=0.35)
    assert alike.utilisation == pytest.approx(law.utilisation)


def test_nothing_is_made_of_nothing():
    with pytest.raises(ValueError, match="no step"):
        fit_steps([], utilisation=0.35)
