"""Variances by size, deployment and run, from the residuals of a fit that took some of them."""

import numpy as np
import pytest

from llem.scaling.answers.levels import Draws, Levels, variances

SIZES, EACH, CYCLES = 40, 8, 3


def planted(sds, *, seed=0):
    """Groups, and errors of so much by size, deployment and run."""
    random = np.random.default_rng(seed)
    deployment = np.repeat(np.arange(SIZES * EACH), CYCLES)
    size = deployment // EACH
    off = sum(
        random.normal(0, sd, group.max() + 1)[group]
        for sd, group in zip(sds, (size, deployment, np.arange(size.size)), strict=True)
    )
    return Levels.of(size, deployment, least_sizes=4), off


def residuals(columns, off):
    return off - columns @ np.linalg.lstsq(columns, off, rcond=None)[0]


@pytest.mark.parametrize("sds", [(0.1, 0.05, 0.02), (0.0, 0.1, 0.05), (0.2, 0.0, 0.1)])
def test_the_variance_of_each_level_comes_back(sds):
    levels, off = planted(sds)
    columns = np.random.default_rng(1).normal(size=(off.size, 6))
    drawn = variances(np.random.default_rng(2), 2000, levels, left=residuals(columns, off),
                      columns=columns)  # fmt: skip
    assert np.sqrt(np.median(drawn, axis=0)) == pytest.approx(sds, rel=0.25, abs=0.015)


def test_what_the_coefficients_took_of_a_level_is_given_back():
    """A third of the sizes has a coefficient of its own: nothing is left of their errors."""
    levels, off = planted((0.1, 0.03, 0.03), seed=3)
    size = levels.groups[0]
    columns = (size[:, None] == np.arange(SIZES // 3)).astype(float)
    drawn = variances(np.random.default_rng(2), 2000, levels, left=residuals(columns, off),
                      columns=columns)  # fmt: skip
    assert np.sqrt(np.median(drawn[:, 0])) == pytest.approx(0.1, rel=0.25)


def test_the_fewer_sizes_there_are_the_less_sure_is_their_variance():
    def spread(sizes):
        size = np.repeat(np.arange(sizes), 30)
        levels = Levels.of(size, np.arange(size.size), least_sizes=4)
        off = np.random.default_rng(4).normal(0, 0.1, sizes)[size]
        off += np.random.default_rng(5).normal(0, 0.02, size.size)
        columns = np.ones((size.size, 1))
        drawn = variances(np.random.default_rng(6), 2000, levels, left=residuals(columns, off),
                          columns=columns)[:, 0]  # fmt: skip
        low, high = np.quantile(np.sqrt(drawn), [0.1, 0.9])
        return high / low

    assert spread(5) > 2.0 * spread(50) - 1.0 > 1.0


def test_levels_that_say_nothing_of_their_own_are_none():
    size = np.repeat(np.arange(5), 4)
    assert len(Levels.of(size, np.arange(20), least_sizes=4).groups) == 2
    assert len(Levels.of(size, np.arange(20), least_sizes=6).groups) == 1
    # one deployment of each size, in four cycles
    once = Levels.of(size, size, least_sizes=4)
    assert len(once.groups) == 2 and once.lasting == 1


def test_phases_that_are_off_alike_are_drawn_alike():
    levels, off = planted((0.1, 0.05, 0.02))
    for other, wanted in ((off, 1.0), (np.random.default_rng(9).permutation(off), 0.0)):
        draws = Draws.of(np.random.default_rng(7), 1500, levels, [off, other])
        ones = np.ones((1500, 3))
        (one, a), (two, b) = draws.errors(ones), draws.errors(ones)
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(wanted, abs=0.1)
        assert np.corrcoef(one[:, 0], two[:, 0])[0, 1] == pytest.approx(wanted, abs=0.1)
        # of a size and a deployment, not of a run
        assert a.std() == pytest.approx(np.sqrt(2.0), rel=0.05)
