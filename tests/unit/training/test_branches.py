"""Several points of one run: evaluations on the way, and branches that decay on their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run
from llem.records import read_rank

pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.train

MakeRun = Callable[..., Run]
Train = Callable[..., Any]


def losses(folder: Path) -> Any:
    return read_rank(folder / "rank-00000.h5").steps["loss"]


def stop_after(steps: int) -> Callable[[], str | None]:
    polls = iter(range(1, 10**9))
    return lambda: "told to" if next(polls) == steps else None


def test_evaluations_on_the_way_are_told_with_their_phase_and_change_nothing(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    plain = train_alone(make_run(steps=20), "plain")
    run = replace(make_run(steps=20), evaluate_at=(3, 10, 17))
    outcome = train_alone(run, "asked")
    assert run.run_id == make_run(steps=20).run_id
    assert np.array_equal(losses(tmp_path / "asked"), losses(tmp_path / "plain"))
    assert outcome.loss == plain.loss
    told = outcome.evaluations
    assert [(e["step"], e["phase"]) for e in told] == [(3, "warmup"), (10, "train"), (17, "decay")]
    assert [e["tokens"] for e in told] == [3 * 512, 10 * 512, 17 * 512]
    evals = read_rank(tmp_path / "asked" / "rank-00000.h5").evals
    assert evals["step"].tolist() == [3, 10, 17, 20]
    assert evals["loss"].tolist() == [*(e["loss"] for e in told), outcome.loss]


def test_the_loss_after_so_many_steps_is_that_of_a_constant_run_which_ends_there(
    make_run: MakeRun, train_alone: Train
) -> None:
    """Of a constant rate, where a point on the way is an end."""
    short = train_alone(make_run(steps=12, schedule="constant"), "short")
    long = replace(make_run(steps=20, schedule="constant"), evaluate_at=(12,))
    assert train_alone(long, "long").evaluations[0]["loss"] == short.loss


def test_a_resumed_run_tells_of_every_evaluation_once(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    run = replace(make_run(steps=20), evaluate_at=(4, 8, 12))
    whole = train_alone(run, "whole")
    train_alone(run, "cut", should_stop=stop_after(8))
    rest = train_alone(run, "rest")
    assert rest.start_step == 8
    assert rest.evaluations == whole.evaluations
    assert read_rank(tmp_path / "rest" / "rank-00000.h5").evals["step"].tolist() == [8, 12, 20]


@pytest.fixture
def branched(make_run: MakeRun, alone: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trains a run in a folder of its own, its branches' checkpoints in those of the branches."""
    from llem.training import train

    def run(run: Run, attempt: str = "attempt-0", **options: Any) -> Any:
        return train(
            run,
            attempt_dir=tmp_path / run.run_id / attempt,
            checkpoints_dir=tmp_path / run.run_id / "checkpoints",
            world=alone,
            meta={},
            forks={n: tmp_path / run.branch(n).run_id / "checkpoints" for n in run.branch_at},
            **options,
        )

    return run


class TestBranches:
    def test_a_branch_is_to_the_bit_the_run_that_it_stands_for(
        self, make_run: MakeRun, branched: Callable[..., Any], train_alone: Train, tmp_path: Path
    ) -> None:
        trunk = replace(make_run(steps=40), branch_at=(20,))
        branch, alone = trunk.branch(20), make_run(steps=20)
        assert branch.run_id == alone.run_id
        assert trunk.run_id == make_run(steps=40).run_id
        branched(trunk)
        short = branched(branch)
        whole = train_alone(alone, "alone")
        assert (short.status, short.start_step) == ("completed", 14)
        assert short.trunk == {"run_id": trunk.run_id, "steps": 14}
        assert short.loss == whole.loss
        assert short.tokens == 20 * 512
        own = read_rank(tmp_path / branch.run_id / "attempt-0" / "rank-00000.h5")
        assert own.steps["step"].tolist() == list(range(14, 20))
        assert np.array_equal(own.steps["loss"], losses(tmp_path / "alone")[14:])

    def test_the_trunk_goes_on_as_without_branches(
        self, make_run: MakeRun, branched: Callable[..., Any], train_alone: Train
    ) -> None:
        trunk = replace(make_run(steps=40), branch_at=(12, 20, 28))
        assert branched(trunk).loss == train_alone(make_run(steps=40), "plain").loss

    def test_without_its_checkpoint_a_branch_trains_all_its_steps_to_the_same_loss(
        self, make_run: MakeRun, branched: Callable[..., Any], tmp_path: Path
    ) -> None:
        trunk = replace(make_run(steps=40), branch_at=(20,))
        branch = trunk.branch(20)
        branched(trunk)
        short = branched(branch)
        shutil.rmtree(tmp_path / branch.run_id / "checkpoints")
        again = branched(branch, "attempt-1")
        assert (again.start_step, again.trunk) == (0, None)
        assert again.loss == short.loss

    def test_an_interrupted_branch_remembers_its_trunk(
        self, make_run: MakeRun, branched: Callable[..., Any]
    ) -> None:
        trunk = replace(make_run(steps=40), branch_at=(20,))
        branched(trunk)
        whole = branched(trunk.branch(20), "whole")
        branched(trunk.branch(20), "cut", should_stop=stop_after(3))
        rest = branched(trunk.branch(20), "rest")
        assert (rest.start_step, rest.loss) == (17, whole.loss)
        assert rest.trunk == {"run_id": trunk.run_id, "steps": 14}

    def test_a_trunk_that_resumes_leaves_what_it_had_not_left(
        self, make_run: MakeRun, branched: Callable[..., Any]
    ) -> None:
        trunk = replace(make_run(steps=40), branch_at=(20, 30))
        branched(trunk, "cut", should_stop=stop_after(16))
        branched(trunk, "rest")
        assert branched(trunk.branch(20)).start_step == 14
        assert branched(trunk.branch(30)).start_step == 21


def test_mfu_is_the_models_flops_over_those_of_the_device(
    make_run: MakeRun, train_alone: Train
) -> None:
    run = make_run(steps=5)
    outcome = train_alone(run, peak_flops=1e9)
    assert outcome.mfu == pytest.approx(outcome.tokens_per_s * run.model.flops_per_token / 1e9)
    assert np.isnan(train_alone(run, "unknown").mfu)
