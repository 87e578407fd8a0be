"""Runs of one process: learning, records, divergence, stopping, resuming."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run, mixture_of
from llem.campaign.data.tokenfile import token_file, write_tokens
from llem.errors import InputError, LlemError
from llem.records import Phase, read_rank

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from llem.training import Callback, Progress, delete_checkpoints, find_checkpoint  # noqa: E402

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
    assert [row["code"] for row in record.events] == [b"stamps", b"memory", b"completed"]
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


def test_progress_is_told_about_once_a_second(make_run: MakeRun, train_alone: Train) -> None:
    class Told(Callback):
        def __init__(self) -> None:
            self.rows: list[Progress] = []

        def on_step(self, progress: Progress) -> None:
            self.rows.append(progress)

    told = Told()
    train_alone(make_run(steps=20), callbacks=[told])
    first, *_, last = told.rows
    assert 2 <= len(told.rows) <= 6
    assert (first.step, first.steps) == (1, 20)
    assert first.loss == pytest.approx(math.log(256), abs=0.5)
    # The last step is told whatever the clock says.
    assert (last.step, last.tokens, last.remaining_s) == (20, 20 * 512, 0.0)


@pytest.mark.slow
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

    def test_a_finished_runs_checkpoints_are_left_to_the_caller(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        """They may go only when the run's end is on disk, which is the caller's to write."""
        run = make_run(steps=6, checkpoint_steps=2)
        first = train_alone(run, "a")
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["step-000000002", "step-000000004"]
        again = train_alone(run, "b", final_checkpoint=True)
        assert (again.start_step, again.loss) == (4, first.loss)
        assert train_alone(run, "c").start_step == 6
        delete_checkpoints(tmp_path / "checkpoints")
        assert list((tmp_path / "checkpoints").iterdir()) == []

    def test_a_torn_checkpoint_is_skipped_and_named(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run()
        checkpoints = tmp_path / "checkpoints"
        whole = train_alone(run, "whole")
        train_alone(run, "cut", should_stop=stop_after(10))
        good = checkpoints / "step-000000010"
        for step in (12, 14, 16, 18, 20):
            shutil.copytree(good, checkpoints / f"step-{step:09d}")
        shutil.copytree(good, checkpoints / ".step-000000022.attempt-1.tmp")
        (checkpoints / "step-000000012" / "complete.json").unlink()
        (checkpoints / "step-000000014" / "state.pt").write_bytes(b"half of it")
        (checkpoints / "step-000000016" / "complete.json").write_text('{"run_id": "')
        (checkpoints / "step-000000018" / "state.pt").unlink()
        spoilt = checkpoints / "step-000000020" / "state.pt"
        content = bytearray(spoilt.read_bytes())
        content[len(content) // 2] ^= 1
        spoilt.write_bytes(content)
        rest = train_alone(run, "rest")
        assert rest.resumed_from == str(good)
        assert rest.loss == whole.loss
        events = read_rank(tmp_path / "rest" / "rank-00000.h5").events
        said = [e["text"].decode() for e in events if e["code"] == b"checkpoint-skipped"]
        assert len(said) == 6
        assert ".step-000000022.attempt-1.tmp: it was never finished" in said[0]
        assert "step-000000020: state.pt is not what was written" in said[1]
        assert "step-000000018: state.pt is missing" in said
        assert "step-000000012: complete.json is missing" in said
        assert any("step-000000014: state.pt has 10 bytes of" in text for text in said)
        assert not list(checkpoints.glob(".*"))

    @pytest.mark.parametrize("damage", ["half", "missing", "byte"])
    def test_where_the_newest_is_torn_the_one_before_it_is_taken(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path, damage: str
    ) -> None:
        run = make_run(checkpoint_steps=4)
        whole = train_alone(replace(run, checkpoint_steps=0), "whole")
        cut = train_alone(run, "cut", should_stop=stop_after(10))
        state = Path(cut.checkpoint, "state.pt")
        content = bytearray(state.read_bytes())
        if damage == "half":
            state.write_bytes(content[: len(content) // 2])
        elif damage == "missing":
            state.unlink()
        else:
            content[-100] ^= 0x40
            state.write_bytes(content)
        rest = train_alone(run, "rest")
        assert (rest.start_step, rest.loss) == (8, whole.loss)

    def test_a_checkpoint_of_another_run_is_not_taken(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        train_alone(make_run(seed=1), "other", should_stop=stop_after(10))
        found = find_checkpoint(tmp_path / "checkpoints", run_id=make_run().run_id)
        assert found.checkpoint is None
        assert "it is of run" in found.skipped[0]

    def test_the_last_two_checkpoints_are_kept(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        seen: list[list[str]] = []

        def look() -> None:
            seen.append(sorted(path.name[-1] for path in (tmp_path / "checkpoints").glob("*")))

        train_alone(make_run(steps=9, checkpoint_steps=2), should_stop=look)
        assert seen == [[], [], ["2"], ["2"], ["2", "4"], ["2", "4"], ["4", "6"], ["4", "6"],
                        ["6", "8"]]  # fmt: skip

    def test_an_attempt_that_was_given_up_but_lives_leaves_the_later_ones_checkpoints_alone(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        run = make_run(checkpoint_steps=4)
        stop = stop_after(10)

        def zombie() -> str | None:
            # A later attempt begins, resumes and gets further, while this one goes on.
            if stop() and not (tmp_path / "attempt-1").exists():
                (tmp_path / "checkpoints" / "step-000000025").mkdir()
                (tmp_path / "attempt-1").mkdir()
            return None

        outcome = train_alone(run, "attempt-0", should_stop=zombie)
        events = read_rank(tmp_path / "attempt-0" / "rank-00000.h5").events
        failed = [e["text"].decode() for e in events if e["code"] == b"checkpoint-failed"]
        assert len(failed) == 5
        assert "a later attempt has begun" in failed[0]
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["step-000000004", "step-000000008", "step-000000025"]
        assert outcome.status == "completed"

    def test_a_checkpoint_with_unreadable_weights_is_an_error_with_a_remedy(
        self, make_run: MakeRun, train_alone: Train, tmp_path: Path
    ) -> None:
        """Written so, by the word of its proof: starting anew is for a person to decide."""
        run = make_run()
        cut = train_alone(run, "cut", should_stop=stop_after(10))
        state, proof = Path(cut.checkpoint, "state.pt"), Path(cut.checkpoint, "complete.json")
        state.write_bytes(b"x" * state.stat().st_size)
        values = json.loads(proof.read_text())
        values["files"]["state.pt"]["crc32"] = zlib.crc32(state.read_bytes())
        proof.write_text(json.dumps(values))
        with pytest.raises(LlemError, match="cannot be read") as caught:
            train_alone(run, "rest")
        assert "delete the folder" in str(caught.value.remedy)

    @pytest.mark.slow
    def test_killed_at_any_moment_it_resumes_to_the_same_bits(
        self,
        make_run: MakeRun,
        train_alone: Train,
        spawn_rank: Callable[..., Any],
        tmp_path: Path,
    ) -> None:
        run = make_run(steps=400, checkpoint_steps=1)
        task = {
            "name": "killed",
            "run": run.to_dict(),
            "attempt": str(tmp_path / "killed"),
            "checkpoints": str(tmp_path / "checkpoints"),
        }
        process = spawn_rank([task], tmp_path / "job")
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


def test_a_mixture_is_evaluated_file_by_file_and_told_by_its_weights(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    """The second file is a byte again and again: learnt at once, and held out in few windows."""
    write_tokens(tmp_path / "same.bin", b"a" * 10_000)
    same = token_file(tmp_path / "same.bin", evaluation_tokens=8 * 32 + 1)
    run = make_run(steps=20)
    mixed = replace(run, data=mixture_of([(run.data, 1), (same, 3)]))
    outcome = train_alone(mixed)
    record = read_rank(tmp_path / "attempt-0" / "rank-00000.h5")
    told = next(e["text"].decode() for e in record.events if e["code"] == b"evaluation")
    losses = [float(part.partition("): ")[2].partition(" ")[0]) for part in told.split("; ")]
    assert losses[1] < 1 < losses[0]
    assert outcome.loss == pytest.approx(0.25 * losses[0] + 0.75 * losses[1], abs=1e-4)
    assert int(record.evals["tokens"][-1]) == (256 + 8) * 32
