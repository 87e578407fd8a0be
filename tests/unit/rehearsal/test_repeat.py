"""What the plan's answer would be worth, before it is paid for."""

import numpy as np
import pytest

from llem.pipeline import repeat_rehearsal
from llem.rehearsal import Failures, World, planted

LAW = planted("chinchilla")


@pytest.fixture(scope="module")
def found(gpu_plan):
    return repeat_rehearsal(lambda k: World(plan=gpu_plan, planted=LAW, seed=k), 10, bootstrap=20)


def test_the_answers_scatter_about_the_planted_optimum(found):
    row = found.figures["params"]
    assert abs(row["bias"]) < 4 * row["sd"] / np.sqrt(found.repeats)
    spread = row["sd"] ** 2 * (found.repeats - 1) / found.repeats
    assert row["rmse"] ** 2 == pytest.approx(row["bias"] ** 2 + spread)


def test_the_planted_optimum_is_told(found):
    truth = found.truth
    at = LAW.at(truth["params"], truth["target_flops"] / 6 / truth["params"])
    assert truth["loss"] == pytest.approx(float(at), rel=0.02)


@pytest.mark.slow
def test_less_noise_gives_a_better_answer_in_proportion(gpu_plan, found):
    def quiet(seed):
        return World(plan=gpu_plan, planted=LAW, seed=seed, noise=0.0005)

    better = repeat_rehearsal(quiet, 20, bootstrap=100).figures["params"]
    assert better["sd"] == pytest.approx(found.figures["params"]["sd"] / 10, rel=0.6)


@pytest.mark.slow
def test_a_plan_that_cannot_tell_says_how_often(gpu_plan):
    def hopeless(seed):
        return World(plan=gpu_plan, planted=LAW, seed=seed, noise=0.3)

    found = repeat_rehearsal(hopeless, 4, bootstrap=20)
    assert sum(found.failed.values()) + sum(found.unidentified.values()) > 2


def test_failures_cost_runs_and_hours(gpu_plan):
    def of(failures):
        return repeat_rehearsal(
            lambda k: World(plan=gpu_plan, planted=LAW, seed=k, failures=failures), 5, bootstrap=0
        )

    calm = of(Failures.none())
    troubled = of(Failures(preemption=0.2, node_failure=0.2, exception=0.2, divergence=0.1))
    assert calm.completed_runs == len(gpu_plan.runs) > troubled.completed_runs
    assert calm.gpu_hours[0] < troubled.gpu_hours[0]
