"""What Huber's loss heeds of residuals."""

import numpy as np
import pytest

from llem.scaling.laws.huber import huber, mean_loss, weights

CALM = np.random.default_rng(0).normal(0, 0.05, 501)


def test_residuals_that_scatter_alike_count_about_by_their_squares():
    assert mean_loss(CALM) == pytest.approx(np.mean(CALM**2), rel=0.1)
    assert weights(CALM).mean() > 0.95


def test_what_lies_far_off_is_heeded_by_its_distance_alone():
    far = np.append(CALM, [5.0, 10.0])
    *_, nearer, farther = weights(far)
    assert nearer == pytest.approx(2 * farther) and nearer < 0.02
    step = mean_loss(np.append(CALM, [5.0, 11.0])) - mean_loss(far)
    again = mean_loss(np.append(CALM, [5.0, 12.0])) - mean_loss(np.append(CALM, [5.0, 11.0]))
    assert step == pytest.approx(again) and step < 0.1 * (11.0**2 - 10.0**2) / far.size


def test_both_forms_are_one_loss():
    """The weights are the secants of the loss at the edge that the residuals tell."""
    far = np.append(CALM, [1.0, -2.0])
    edge = np.abs(far * weights(far))[-1]
    loss = huber(far[None].copy(), np.ones((1, far.size)), np.array([edge]))
    assert weights(far) == pytest.approx(loss.secant[0])
    assert mean_loss(far) == pytest.approx(2 * loss.value[0] / far.size)


def test_without_noise_nothing_counts_for_nothing():
    assert weights(np.zeros(5)) == pytest.approx(1.0)
    assert weights(np.array([0, 0, 0, 0, 0.005])) == pytest.approx(1.0)
