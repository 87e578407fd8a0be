"""ZeRO on the CPU, through accelerate: the same training as without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem.campaign import Run
from llem.planning.memory import memory_of

pytest.importorskip("torch")
pytest.importorskip("deepspeed")

pytestmark = pytest.mark.train

SETTINGS = {"zero_optimization": {"reduce_bucket_size": 2000}, "steps_per_print": 7}
Results = dict[str, list[dict[str, Any]]]


def task(name: str, run: Run, folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "name": name,
        "run": run.to_dict(),
        "attempt": str(folder / name),
        "checkpoints": str(folder / options.pop("checkpoints", f"{name}-checkpoints")),
        **options,
    }


@pytest.fixture(scope="module", params=[1, 2, 3])
def sharded(
    request: pytest.FixtureRequest,
    make_run: Callable[..., Run],
    make_heavy_run: Callable[..., Run],
    run_ranks: Callable[..., Results],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Results, Path]:
    stage = request.param
    folder = tmp_path_factory.mktemp(f"zero-{stage}")
    run = make_run(ranks=2, zero_stage=stage)
    trunk = replace(run, branch_at=(18,))
    tasks = [
        task("whole", run, folder),
        task("accum", make_run(ranks=2, zero_stage=stage, grad_accum=2), folder),
        task("cut", run, folder, checkpoints="shared", stop={"step": 11, "rank": 1}),
        task("rest", run, folder, checkpoints="shared"),
        task("wild", make_run(ranks=2, zero_stage=stage, steps=200, learning_rate=30.0), folder),
        task("again", run, folder),
        task("own-settings", replace(run, deepspeed=SETTINGS), folder),
        task("asked", replace(run, evaluate_at=(11,)), folder),
        task("trunk", trunk, folder, forks={18: str(folder / "branch-checkpoints")}),
        task("branch", trunk.branch(18), folder),
        task("short", make_run(ranks=2, zero_stage=stage, steps=18), folder),
        *(
            task(f"heavy-{word}", make_heavy_run(ranks=2, zero_stage=stage, checkpointing=again),
                 folder)
            for word, again in (("kept", False), ("computed-again", True))
        ),
    ]  # fmt: skip
    return run_ranks(tasks, ranks=2, folder=folder, zero_stage=stage), folder


def test_it_trains_to_the_loss_of_one_process(
    sharded: tuple[Results, Path], make_run: Callable[..., Run], train_alone: Callable[..., Any]
) -> None:
    results, _ = sharded
    one = train_alone(make_run())
    for name in ("whole", "accum"):
        assert results[name][0]["loss"] == pytest.approx(one.loss, abs=1e-3)
        assert results[name][0]["train_loss_first"] == pytest.approx(one.train_loss_first, abs=1e-5)


def test_it_resumes_where_it_was_stopped(sharded: tuple[Results, Path]) -> None:
    results, _ = sharded
    assert results["cut"][0]["status"] == "interrupted"
    assert results["rest"][0]["start_step"] == 11
    assert results["rest"][0]["loss"] == results["whole"][0]["loss"]


def test_divergence_stops_all_ranks_and_the_next_run_starts_afresh(
    sharded: tuple[Results, Path],
) -> None:
    results, _ = sharded
    assert [outcome["status"] for outcome in results["wild"]] == ["diverged"] * 2
    assert results["again"][0]["loss"] == results["whole"][0]["loss"]


def test_its_configuration_lies_beside_the_records(sharded: tuple[Results, Path]) -> None:
    _, folder = sharded
    config = json.loads((folder / "accum" / "deepspeed.json").read_text())
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_micro_batch_size_per_gpu"] == 4


def test_the_users_settings_lie_over_what_llem_makes(sharded: tuple[Results, Path]) -> None:
    results, folder = sharded
    plain = json.loads((folder / "whole" / "deepspeed.json").read_text())
    found = json.loads((folder / "own-settings" / "deepspeed.json").read_text())
    assert found["zero_optimization"].pop("reduce_bucket_size") == 2000
    assert found.pop("steps_per_print") == 7
    del plain["zero_optimization"]["reduce_bucket_size"], plain["steps_per_print"]
    assert found == plain
    assert results["own-settings"][0]["loss"] == pytest.approx(
        results["whole"][0]["loss"], rel=1e-4
    )


def test_what_accelerate_is_told_lies_beside_it(sharded: tuple[Results, Path]) -> None:
    _, folder = sharded
    told = json.loads((folder / "accum" / "accelerate.json").read_text())
    assert told == {"mixed_precision": "no", "gradient_accumulation_steps": 2}


def test_a_branch_is_to_the_bit_the_run_that_it_stands_for(
    sharded: tuple[Results, Path],
) -> None:
    results, _ = sharded
    trunk, branch, short, whole = (
        results[name][0] for name in ("trunk", "branch", "short", "whole")
    )
    assert (branch["status"], branch["start_step"]) == ("completed", 13)
    assert branch["loss"] == short["loss"]
    assert trunk["loss"] == whole["loss"]


def test_an_evaluation_on_the_way_changes_nothing(sharded: tuple[Results, Path]) -> None:
    results, _ = sharded
    assert results["asked"][0]["loss"] == results["whole"][0]["loss"]
    assert [e["step"] for e in results["asked"][0]["evaluations"]] == [11]


@pytest.mark.parametrize("again", [False, True])
def test_its_peak_memory_is_what_the_planner_expects(
    sharded: tuple[Results, Path], make_heavy_run: Callable[..., Run], again: bool
) -> None:
    results, folder = sharded
    config = json.loads((folder / "whole" / "deepspeed.json").read_text())
    stage = config["zero_optimization"]["stage"]
    run = make_heavy_run(ranks=2, zero_stage=stage, checkpointing=again)
    measured = results["heavy-computed-again" if again else "heavy-kept"][0]["peak_memory_bytes"]
    expected = memory_of(run.model, run.recipe, run.layout, cpu=True).of_run
    assert expected == pytest.approx(measured, rel=0.15)
