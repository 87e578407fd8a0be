"""The loss of a run on its way."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llem.rehearsal import planted
from llem.rehearsal.curve import initial_loss, make_curve
from llem.training.divergence import DivergenceWatch
from llem.training.schedule import learning_rate, phase

LAW = planted("chinchilla")


@pytest.fixture(scope="module")
def run(gpu_plan):
    return max(gpu_plan.runs, key=lambda r: r.steps)


@pytest.fixture(scope="module")
def curve(run):
    return make_curve(LAW, run, final=LAW.loss(run), seed=0)


def test_it_begins_at_a_guess_and_ends_at_the_law(run, curve):
    assert curve.loss[0] == pytest.approx(initial_loss(run), rel=0.02)
    assert curve.loss[-20:].mean() == pytest.approx(LAW.loss(run), rel=0.005)


def test_it_never_falls_below_what_no_size_removes(curve):
    assert curve.loss.min() > LAW.params["E"]


def test_rate_and_phase_are_those_that_training_would_use(run, curve):
    for step in (0, 1, run.recipe.warmup_steps, run.steps // 2, run.steps - 1):
        assert curve.learning_rate[step] == learning_rate(run.recipe, step=step, steps=run.steps)
        assert curve.phase[step] == phase(run.recipe, step=step, steps=run.steps)


def test_the_decay_gives_back_what_the_high_rate_cost(run, curve):
    start = run.recipe.decay_start(run.steps)
    before, after = np.median(curve.loss[start - 60 : start]), np.median(curve.loss[-60:])
    batch = run.recipe.batch_tokens
    by_law = LAW.at(run.params, run.tokens) - LAW.at(run.params, start * batch)
    assert after - before < 1.3 * by_law < 0


def test_a_larger_batch_has_less_noise(run):
    def noise(factor):
        recipe = replace(run.recipe, batch_tokens=factor * run.recipe.batch_tokens)
        large = replace(run, recipe=recipe)
        one, two = (make_curve(LAW, large, final=LAW.loss(run), seed=s).loss for s in (1, 2))
        return float(np.median(np.abs(one - two)))  # the way itself is the same for both

    assert noise(16) == pytest.approx(noise(1) / 4, rel=0.3)


def test_the_same_seed_gives_the_same_curve_and_another_another(run, curve):
    again = make_curve(LAW, run, final=LAW.loss(run), seed=0)
    other = make_curve(LAW, run, final=LAW.loss(run), seed=1)
    assert np.array_equal(again.loss, curve.loss)
    assert not np.array_equal(other.loss, curve.loss)


def test_spikes_rise_and_are_gone_before_the_end_of_a_long_run(run):
    long = replace(run, steps=20_000, tokens=20_000 * run.recipe.batch_tokens)
    found = make_curve(LAW, long, final=LAW.loss(long), seed=3)
    smooth = np.array([np.median(found.loss[max(0, i - 100) : i + 100]) for i in range(20_000)])
    high = np.flatnonzero(found.loss - smooth > 0.07)
    high = high[high > 1000]
    assert 2 <= len(set((high // 400).tolist())) <= 15
    assert found.grad_norm[high].min() > np.median(found.grad_norm)


def test_a_run_that_diverges_is_given_up_when_training_would(run):
    found = make_curve(LAW, run, final=LAW.loss(run), seed=0, diverges=True)
    assert found.diverged is not None
    steps, reason = found.diverged
    watch = DivergenceWatch(run.recipe)
    told = [watch.check(step, float(found.loss[step])) for step in range(steps)]
    assert told[:-1] == [None] * (steps - 1) and told[-1] == reason
    assert steps > run.recipe.warmup_steps and math.isfinite(found.loss[0])
