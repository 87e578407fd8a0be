"""A run that began from another's checkpoint: a point of the law, at the cost of its own steps."""

from __future__ import annotations

import pytest

from llem.planning import measured_from_observations
from llem.results import aggregate


@pytest.fixture
def rows(planted):
    """A trunk of 10 steps, and a run of 8 that the trunk trained up to its fifth: 3 of its own."""
    planted.site["device"] = {"peak_flops": 1e9}
    planted.complete("aaaa")
    planted.run("bbbb", steps=8)
    planted.rank("bbbb", steps=range(6, 9), eval_step=8, loss=(3.2, 0.01))
    planted.node("bbbb", devices=["GPU-1"])
    planted.end("bbbb", step=8, tokens=8000, window_s=(1.0, 4.0),
                trunk={"run_id": "aaaa", "steps": 5})  # fmt: skip
    return {row.run_id: row for row in aggregate(planted.folder).observations}


def test_its_tokens_and_flops_are_those_of_the_run_that_it_stands_for(rows):
    branch = rows["bbbb"]
    assert (branch.status, branch.reason, branch.loss) == ("completed", "", 3.2)
    assert (branch.tokens, branch.tokens_trunk, branch.tokens_seen) == (8000, 5000, 3000)
    assert branch.flops == 6.0 * 5000 * 8000
    assert (branch.unique_tokens, branch.epochs) == (8000, 1)
    assert branch.coverage == 1.0


def test_its_energy_and_time_are_of_its_own_steps(rows):
    trunk, branch = rows["aaaa"], rows["bbbb"]
    assert branch.energy_j == pytest.approx(300.0)
    assert branch.joules_per_token == pytest.approx(trunk.joules_per_token)
    assert branch.tokens_per_s == pytest.approx(trunk.tokens_per_s)
    assert branch.mfu == pytest.approx(trunk.mfu)
    assert trunk.tokens_trunk == 0


def test_what_it_cost_is_not_taken_for_the_cost_of_all_its_tokens(rows):
    dicts = [vars(rows[name]) for name in ("aaaa", "bbbb")]
    both = measured_from_observations(dicts, peak_flops=1e9)
    assert both == measured_from_observations(dicts[:1], peak_flops=1e9)
