"""FSDP2 on the CPU: the same training as without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run
from llem.planning.memory import memory_of
from llem.records import read_rank

pytest.importorskip("torch")
pytest.importorskip("accelerate")

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


def sharded_heavy(run: Run) -> Run:
    return run.with_layout(replace(run.layout, sharding="fsdp2"))


@pytest.fixture(scope="module")
def sharded(
    make_run: Callable[..., Run],
    make_heavy_run: Callable[..., Run],
    run_worlds: Callable[..., dict[int, Results]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[int, Results], Path]:
    folder = tmp_path_factory.mktemp("fsdp2")
    run = make_run(ranks=2, sharding="fsdp2")
    trunk = replace(run, branch_at=(18,))
    two = [
        task("whole", run, folder),
        task("accum", make_run(ranks=2, sharding="fsdp2", grad_accum=2), folder),
        task("twice", run, folder),
        task("cut", run, folder, checkpoints="shared", stop={"step": 11, "rank": 1}),
        task("rest", run, folder, checkpoints="shared"),
        task("left", run, folder, stop={"step": 11, "rank": 0}),
        task("orthogonal", make_run(ranks=2, sharding="fsdp2", optimiser="muon"), folder),
        task("asked", replace(run, evaluate_at=(11,)), folder),
        task("trunk", trunk, folder, forks={18: str(folder / "branch-checkpoints")}),
        task("branch", trunk.branch(18), folder),
        task("short", make_run(ranks=2, sharding="fsdp2", steps=18), folder),
        *(
            task(f"heavy-{again}", sharded_heavy(make_heavy_run(ranks=2, checkpointing=again)),
                 folder)
            for again in (False, True)
        ),
    ]  # fmt: skip
    four = [
        task("moved", make_run(ranks=4, sharding="fsdp2"), folder, checkpoints="left-checkpoints")
    ]
    return run_worlds({2: (two, folder / "2"), 4: (four, folder / "4")}), folder


def losses(folder: Path, name: str) -> Any:
    ranks = sorted((folder / name).glob("rank-*.h5"))
    return np.array([read_rank(path).steps["loss"] for path in ranks])


def test_it_trains_to_the_loss_of_one_process(
    sharded: tuple[dict[int, Results], Path],
    make_run: Callable[..., Run],
    train_alone: Callable[..., Any],
) -> None:
    results, _ = sharded
    one = train_alone(make_run())
    for name in ("whole", "accum"):
        assert results[2][name][0]["loss"] == pytest.approx(one.loss, rel=1e-4)


def test_it_resumes_to_the_same_bits(sharded: tuple[dict[int, Results], Path]) -> None:
    results, folder = sharded
    assert results[2]["rest"][0]["start_step"] == 11
    assert results[2]["rest"][0]["loss"] == results[2]["whole"][0]["loss"]
    joined = np.concatenate([losses(folder, "cut"), losses(folder, "rest")], axis=1)
    assert np.array_equal(joined, losses(folder, "whole"))


def test_the_same_run_twice_is_the_same_to_the_bit(
    sharded: tuple[dict[int, Results], Path],
) -> None:
    results, folder = sharded
    assert np.array_equal(losses(folder, "twice"), losses(folder, "whole"))
    assert results[2]["twice"][0]["loss"] == results[2]["whole"][0]["loss"]


def test_a_branch_is_to_the_bit_the_run_that_it_stands_for(
    sharded: tuple[dict[int, Results], Path],
) -> None:
    results, _ = sharded
    trunk, branch, short, whole = (
        results[2][name][0] for name in ("trunk", "branch", "short", "whole")
    )
    assert (branch["status"], branch["start_step"]) == ("completed", 13)
    assert branch["loss"] == short["loss"]
    assert trunk["loss"] == whole["loss"]


def test_an_evaluation_on_the_way_changes_nothing(
    sharded: tuple[dict[int, Results], Path],
) -> None:
    results, folder = sharded
    assert np.array_equal(losses(folder, "asked"), losses(folder, "whole"))
    assert [e["step"] for e in results[2]["asked"][0]["evaluations"]] == [11]


@pytest.mark.parametrize("again", [False, True])
def test_its_peak_memory_is_what_the_planner_expects(
    sharded: tuple[dict[int, Results], Path], make_heavy_run: Callable[..., Run], again: bool
) -> None:
    results, _ = sharded
    run = sharded_heavy(make_heavy_run(ranks=2, checkpointing=again))
    measured = results[2][f"heavy-{again}"][0]["peak_memory_bytes"]
    expected = memory_of(run.model, run.recipe, run.layout, cpu=True).of_run
    assert expected == pytest.approx(measured, rel=0.15)


def test_shards_of_two_ranks_are_resumed_by_four(sharded: tuple[dict[int, Results], Path]) -> None:
    results, _ = sharded
    moved = results[4]["moved"][0]
    assert (moved["status"], moved["start_step"]) == ("completed", 11)
    assert moved["loss"] == pytest.approx(results[2]["whole"][0]["loss"], rel=1e-4)


def test_muon_is_refused_where_matrices_are_sharded(
    sharded: tuple[dict[int, Results], Path],
) -> None:
    results, _ = sharded
    for outcome in results[2]["orthogonal"]:
        assert "muon needs each matrix whole" in outcome["error"]


def test_its_configuration_lies_beside_the_records(
    sharded: tuple[dict[int, Results], Path],
) -> None:
    _, folder = sharded
    config = json.loads((folder / "whole" / "fsdp2.json").read_text())
    assert config == {"reshard_after_forward": True}
