"""Several ranks in processes of their own, over gloo: the result is that of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run
from llem.records import read_rank

pytest.importorskip("torch")
pytest.importorskip("accelerate")

# All of one module's ranks start together: eight seconds of a processor.
pytestmark = [pytest.mark.train, pytest.mark.slow]

Results = dict[str, list[dict[str, Any]]]


def task(name: str, run: Run, folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "name": name,
        "run": run.to_dict(),
        "attempt": str(folder / name),
        "checkpoints": str(folder / options.pop("checkpoints", f"{name}-checkpoints")),
        **options,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(
    make_run: Callable[..., Run], run_worlds: Callable[..., dict[int, Results]], folder: Path
) -> dict[int, Results]:
    """All that these tests look at, one start of processes for each number of ranks."""
    worlds = {}
    for ranks in (1, 2, 4):
        here = folder / str(ranks)
        tasks = [
            task(f"accum-{accum}", make_run(ranks=ranks, grad_accum=accum), here)
            for accum in (1, 2)
        ]
        run, last = make_run(ranks=ranks), {"step": 11, "rank": 1}
        if ranks > 1:
            tasks += [
                task("cut", run, here, checkpoints="shared", stop=last),
                task("rest", run, here, checkpoints="shared"),
            ]
        if ranks == 2:
            wild = make_run(ranks=2, steps=200, learning_rate=30.0)
            tasks += [
                task("wild", wild, here),
                task("wrong", make_run(ranks=4), here),
                task("left", run, here, stop=last),
            ]
        if ranks == 4:
            # Written by two ranks above, read by four.
            moved = {"checkpoints": str(folder / "2" / "left-checkpoints")}
            tasks.append({**task("moved", run, here), **moved})
        worlds[ranks] = (tasks, here)
    return run_worlds(worlds)


def records(folder: Path, name: str, ranks: int) -> list[Any]:
    return [read_rank(folder / str(ranks) / name / f"rank-{r:05d}.h5") for r in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accum", [1, 2])
def test_the_evaluation_loss_does_not_depend_on_ranks_or_accumulation(
    results: dict[int, Results], ranks: int, accum: int
) -> None:
    one = results[1]["accum-1"][0]
    for outcome in results[ranks][f"accum-{accum}"]:
        assert outcome["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert outcome["loss_se"] == pytest.approx(one["loss_se"], abs=1e-4)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_end_with_the_same_outcome(results: dict[int, Results], ranks: int) -> None:
    for outcomes in results[ranks].values():
        for key in ("status", "reason", "step", "loss", "loss_se", "train_loss_last", "error"):
            told = {str(outcome.get(key)) for outcome in outcomes}
            assert len(told) == 1, (key, told)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_unique_tokens_of_all_ranks_sum_to_the_runs_tokens(
    results: dict[int, Results], folder: Path, ranks: int
) -> None:
    for accum in (1, 2):
        steps = [record.steps for record in records(folder, f"accum-{accum}", ranks)]
        assert sum(int(table["tokens_unique"].sum()) for table in steps) == 30 * 16 * 32
        assert results[ranks][f"accum-{accum}"][0]["tokens"] == 30 * 16 * 32


def test_the_mean_of_the_ranks_losses_is_that_of_one_rank(
    results: dict[int, Results], folder: Path
) -> None:
    assert results
    (one,) = records(folder, "accum-1", 1)
    for ranks in (2, 4):
        each = [record.steps["loss"] for record in records(folder, "accum-1", ranks)]
        assert np.mean(each, axis=0) == pytest.approx(one.steps["loss"], abs=1e-4)
        assert not np.array_equal(each[0], each[1])


def test_only_rank_0_records_the_evaluation(results: dict[int, Results], folder: Path) -> None:
    assert results
    assert [len(record.evals) for record in records(folder, "accum-1", 4)] == [1, 0, 0, 0]


def test_one_rank_that_must_stop_stops_all_at_the_same_step(results: dict[int, Results]) -> None:
    for outcome in results[2]["cut"]:
        assert outcome["status"] == "interrupted"
        assert outcome["reason"] == "rank 1 was told to"
        assert outcome["step"] == 11


@pytest.mark.parametrize("ranks", [2, 4])
def test_resumed_is_bitwise_the_same_as_uninterrupted(
    results: dict[int, Results], folder: Path, ranks: int
) -> None:
    assert results[ranks]["rest"][0]["start_step"] == 11
    assert results[ranks]["rest"][0]["loss"] == results[ranks]["accum-1"][0]["loss"]
    for cut, rest, whole in zip(
        *(records(folder, name, ranks) for name in ("cut", "rest", "accum-1")), strict=True
    ):
        joined = np.concatenate([cut.steps["loss"], rest.steps["loss"]])
        assert np.array_equal(joined, whole.steps["loss"])


def test_a_checkpoint_of_two_ranks_is_resumed_by_four(results: dict[int, Results]) -> None:
    moved = results[4]["moved"][0]
    assert (moved["status"], moved["start_step"]) == ("completed", 11)
    assert moved["loss"] == pytest.approx(results[1]["accum-1"][0]["loss"], abs=1e-4)


def test_divergence_stops_all_ranks_at_the_same_step(results: dict[int, Results]) -> None:
    for outcome in results[2]["wild"]:
        assert outcome["status"] == "diverged"
        assert outcome["step"] < 100
        assert math.isnan(outcome["loss"])


def test_a_run_that_does_not_fit_is_refused_by_all_ranks_and_the_next_one_goes_on(
    results: dict[int, Results],
) -> None:
    for outcome in results[2]["wrong"]:
        assert "2 ranks x micro_batch 4 x grad_accum 1" in outcome["error"]
    assert results[2]["left"][0]["status"] == "interrupted"
