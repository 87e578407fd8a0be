"""Runs of one process: learning, records, divergence, stopping, resuming."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run
from llem.errors import InputError, LlemError
from llem.records import Phase, read_rank

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from llem.training import Progress, find_checkpoint  # noqa: E402

pytestmark = pytest.mark.train

MakeRun = Callable[..., Run]
Train = Callable[..., Any]


def stop_after(steps: int) -> Callable[[], str | None]:
    polls = iter(range(1, 10**9))
    return lambda: "told to" if next(polls) == steps else None


def losses(folder: Path) -> Any:
    return read_rank(folder / "rank-00000.h5").steps["loss"]


def test_a_model_learns_python_sources(make_run: MakeRun, train_alone: Train) -> None:
    outcome = train_alone(make_run(steps=150))
    assert (outcome.status, outcome.step) == ("completed", 150)
    assert outcome.loss < math.log(256) - 2.5
    assert 0 < outcome.loss_se < 0.1
    assert outcome.train_loss_last < outcome.train_loss_first


def test_the_record_tells_every_step(make_run: MakeRun, train_alone: Train, tmp_path: Path) -> None:
    run = make_run(steps=20, decay_fraction=0.25)
    outcome = train_alone(run)
    record = read_rank(tmp_path / "attempt-0" / "rank-00000.h5")
    steps = record.steps
    assert record.closed
    assert record.meta["run_id"] == run.run_id
    assert {"torch", "accelerate", "python", "llem"} <= set(record.meta["versions"])
    assert {"rank", "world_size", "host", "boot_id", "attempt", "image_digest"} <= set(record.meta)
    assert steps["step"].tolist() == list(range(20))
    assert steps["tokens_rank"].sum() == steps["tokens_unique"].sum() == run.tokens
    assert (steps["t1_ns"] > steps["t0_ns"]).all()
    assert (steps["t0_ns"][1:] >= steps["t1_ns"][:-1]).all()
    assert np.isfinite(steps["loss"]).all() and (steps["grad_norm"] > 0).all()
    assert steps["lr"].max() == run.recipe.learning_rate
    expected = [Phase.WARMUP] * 5 + [Phase.TRAIN] * 10 + [Phase.DECAY] * 5
    assert steps["phase"].tolist() == expected
    assert np.isnan(steps["e0_mj"]).all()
    assert [row["code"] for row in record.events] == [b"energy", b"memory", b"completed"]
    (evaluation,) = record.evals
    assert evaluation["loss"] == outcome.loss
    assert evaluation["tokens"] == 256 * 32
    seconds = (steps["t1_ns"][-1] - steps["t0_ns"][0]) / 1e9
    assert outcome.tokens_per_s == pytest.approx(run.tokens / seconds)


def test_the_same_run_has_the_same_losses_and_another_seed_has_not(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_alone(make_run(seed=seed), name)
    assert np.array_equal(losses(tmp_path / "a"), losses(tmp_path / "b"))
    assert not np.array_equal(losses(tmp_path / "a"), losses(tmp_path / "c"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_accumulation_changes_nothing_but_rounding(
    make_run: MakeRun, alone: Any, tmp_path: Path, precision: str
) -> None:
    from llem.training import train

    found = [
        train(
            make_run(grad_accum=accum, precision=precision),
            attempt_dir=tmp_path / str(accum),
            checkpoints_dir=tmp_path / "checkpoints",
            world=replace(alone, precision=precision),
            meta={},
        ).loss
        for accum in (1, 2, 4)
    ]
    assert found == pytest.approx([found[0]] * 3, abs=1e-4 if precision == "fp32" else 2e-2)


def test_a_learning_rate_that_is_absurd_ends_as_diverged(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    outcome = train_alone(make_run(steps=200, learning_rate=30.0, checkpoint_steps=3))
    assert outcome.status == "diverged"
    assert "training loss of step" in outcome.reason
    assert outcome.step < 100
    assert math.isnan(outcome.loss)
    record = read_rank(tmp_path / "attempt-0" / "rank-00000.h5")
    assert record.closed
    assert record.events["code"][-1] == b"diverged"
    assert len(record.steps) == outcome.step
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_progress_is_told_about_once_a_second(make_run: MakeRun, train_alone: Train) -> None:
    told: list[Progress] = []
    train_alone(make_run(steps=20), progress=told.append)
    assert 1 <= len(told) <= 5
    assert (told[0].step, told[0].steps) == (1, 20)
    assert told[0].loss == pytest.approx(math.log(256), abs=0.5)


def test_many_runs_in_one_process_leave_nothing_behind(
    make_run: MakeRun, train_alone: Train
) -> None:
    """Twenty runs, one after another: no tensor stays, and memory grows by less than one model."""
    import gc

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def resident_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    for i in range(3):
        train_alone(make_run(steps=2), f"warm-{i}")
    before, before_kb = tensors(), resident_kb()
    for i in range(20):
        train_alone(make_run(steps=2, seed=i), f"attempt-{i}")
    assert tensors() <= before
    assert resident_kb() - before_kb < 20_000


class TestResume:
    def test_resumed_is_bitwise_the_same_as_uninterrupted(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run()
        whole = train_alone(run, "whole")
        cut = train_alone(run, "cut", should_stop=stop_after(13))
        rest = train_alone(run, "rest")
        assert (cut.status, cut.reason, cut.step) == ("interrupted", "told to", 13)
        assert rest.resumed_from == cut.checkpoint
        assert (rest.status, rest.start_step, rest.tokens) == ("completed", 13, run.tokens)
        joined = np.concatenate([losses(tmp_path / "cut"), losses(tmp_path / "rest")])
        assert np.array_equal(joined, losses(tmp_path / "whole"))
        assert (rest.loss, rest.loss_se) == (whole.loss, whole.loss_se)
        assert rest.train_loss_first == whole.train_loss_first

    def test_a_finished_run_keeps_no_checkpoint_unless_told(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run(steps=6, checkpoint_steps=2)
        assert train_alone(run, "a").checkpoint is None
        assert list((tmp_path / "checkpoints").iterdir()) == []
        kept = train_alone(run, "b", keep_checkpoints=True)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000006"]
        again = train_alone(run, "c")
        assert (again.start_step, again.loss) == (6, kept.loss)

    def test_a_torn_checkpoint_is_skipped_and_named(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run()
        checkpoints = tmp_path / "checkpoints"
        whole = train_alone(run, "whole")
        train_alone(run, "cut", should_stop=stop_after(10))
        good = checkpoints / "step-000000010"
        for name in ("step-000000012", "step-000000014", "step-000000016", ".step-000000018.tmp"):
            shutil.copytree(good, checkpoints / name)
        (checkpoints / "step-000000012" / "complete.json").unlink()
        (checkpoints / "step-000000014" / "state.pt").write_bytes(b"half of it")
        (checkpoints / "step-000000016" / "complete.json").write_text('{"run_id": "')
        rest = train_alone(run, "rest")
        assert rest.resumed_from == str(good)
        assert rest.loss == whole.loss
        events = read_rank(tmp_path / "rest" / "rank-00000.h5").events
        said = [e["text"].decode() for e in events if e["code"] == b"checkpoint-skipped"]
        assert len(said) == 4
        assert ".step-000000018.tmp: it was never finished" in said[0]
        assert "step-000000012: complete.json is missing" in said
        assert any("step-000000014: state.pt has 10 bytes of" in text for text in said)

    def test_a_checkpoint_of_another_run_is_not_taken(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        train_alone(make_run(seed=1), "other", should_stop=stop_after(10))
        found = find_checkpoint(tmp_path / "checkpoints", run_id=make_run().run_id)
        assert found.checkpoint is None
        assert "it is of run" in found.skipped[0]

    def test_only_the_last_checkpoint_is_kept(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        seen: list[list[str]] = []

        def look() -> None:
            seen.append(sorted(path.name for path in (tmp_path / "checkpoints").glob("*")))

        train_alone(make_run(steps=9, checkpoint_steps=3), should_stop=look)
        assert seen[4] == ["step-000000003"]
        assert seen[7] == ["step-000000006"]

    def test_a_checkpoint_with_unreadable_weights_is_an_error_with_a_remedy(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run()
        cut = train_alone(run, "cut", should_stop=stop_after(10))
        state = Path(cut.checkpoint, "state.pt")
        state.write_bytes(b"x" * state.stat().st_size)
        with pytest.raises(LlemError, match="cannot be read") as caught:
            train_alone(run, "rest")
        assert "delete the folder" in str(caught.value.remedy)

    def test_killed_at_any_moment_it_resumes_to_the_same_bits(
        self,
        make_run: MakeRun,
        train_alone: Train,
        spawn_ranks: Callable[..., Any],
        tmp_path: Path,
    ) -> None:
        run = make_run(steps=400, checkpoint_steps=1)
        task = {
            "name": "killed",
            "run": run.to_dict(),
            "attempt": str(tmp_path / "killed"),
            "checkpoints": str(tmp_path / "checkpoints"),
        }
        (process,) = spawn_ranks([task], ranks=1, folder=tmp_path / "job")
        deadline = time.monotonic() + 60
        while not list((tmp_path / "checkpoints").glob("step-*2?")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rest = train_alone(run, "rest")
        assert 0 < rest.start_step < 400
        shutil.rmtree(tmp_path / "checkpoints")
        whole = train_alone(replace(run, checkpoint_steps=0), "whole")
        assert rest.loss == whole.loss
        assert not read_rank(tmp_path / "killed" / "rank-00000.h5").closed


class TestRefusals:
    def test_a_run_that_does_not_fit_its_ranks_names_every_fault(
        self, make_run: MakeRun, train_alone: Train
    ) -> None:
        run = make_run(zero_stage=2, precision="bf16")
        with pytest.raises(InputError) as caught:
            train_alone(run)
        assert [fault.path for fault in caught.value.faults] == [
            "layout.zero_stage",
            "recipe.precision",
        ]

    def test_a_record_is_never_overwritten(self, make_run: MakeRun, train_alone: Train) -> None:
        train_alone(make_run(steps=2))
        with pytest.raises(OSError, match="exists"):
            train_alone(make_run(steps=2))

    def test_importing_llem_training_does_not_import_torch(self) -> None:
        import subprocess
        import sys

        source = str(Path(sys.modules["llem"].__file__ or "").parents[1])
        code = "import sys, llem.training; print(json.dumps(sorted(sys.modules)))"
        ran = subprocess.run(
            [sys.executable, "-c", "import json; " + code],
            env={"PYTHONPATH": source}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not {"torch", "accelerate", "deepspeed"} & set(json.loads(ran.stdout))
