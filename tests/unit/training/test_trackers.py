"""Callbacks and trackers: what they are told, and that no training ever depends on them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run
from llem.records import read_rank

pytest.importorskip("torch")

from llem.training import Callback, Evaluated, Outcome, Progress
from llem.training.trackers import Feed, close_all, start_trackers

from .conftest import MakeRun

pytestmark = pytest.mark.train

Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def _hostile_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    source = Path(sys.modules["llem"].__file__ or "").parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{source}:{Path(__file__).parent}")


def losses(tmp_path: Path, attempt: str) -> bytes:
    found: np.ndarray[Any, Any] = read_rank(tmp_path / attempt / "rank-00000.h5").steps["loss"]
    return found.tobytes()


def events(tmp_path: Path, attempt: str) -> list[str]:
    found = read_rank(tmp_path / attempt / "rank-00000.h5").events
    return [e["text"].decode() for e in found if e["code"] == b"callback"]


class Told(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_start(self, run: Run, meta: Any) -> None:
        self.calls.append(("start", meta))

    def on_step(self, progress: Progress) -> None:
        self.calls.append(("step", progress))

    def on_evaluation(self, evaluated: Evaluated) -> None:
        self.calls.append(("evaluation", evaluated))

    def on_end(self, outcome: Outcome) -> None:
        self.calls.append(("end", outcome))


def test_a_callback_hears_of_start_steps_evaluation_and_end(
    make_run: MakeRun, train_alone: Train
) -> None:
    told = Told()
    outcome = train_alone(make_run(steps=10), callbacks=[told])
    names = [name for name, _ in told.calls]
    assert (names[0], *names[-3:]) == ("start", "step", "evaluation", "end")
    assert told.calls[0][1]["steps_planned"] == 10
    assert told.calls[-2][1] == Evaluated(
        step=10, tokens=outcome.tokens, loss=outcome.loss, loss_se=outcome.loss_se, phase="decay"
    )
    assert told.calls[-1][1] == outcome


def test_a_callback_that_raises_changes_no_loss_and_is_one_event_and_one_line(
    make_run: MakeRun, train_alone: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Fails(Callback):
        def on_step(self, progress: Progress) -> None:
            raise OSError("nobody listens")

    told = Told()
    run = make_run(steps=10)
    train_alone(run, attempt="attempt-0")
    outcome = train_alone(run, attempt="attempt-1", callbacks=[Fails(), told])
    assert outcome.status == "completed"
    assert losses(tmp_path, "attempt-1") == losses(tmp_path, "attempt-0")
    assert events(tmp_path, "attempt-1") == ["Fails: nobody listens"]
    assert capfd.readouterr().err.count("nobody listens") == 1
    assert told.calls[-1][0] == "end"


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["Raises", "Hangs", "Crashes", "Absent"])
def test_a_hostile_tracker_changes_no_loss_and_is_not_waited_for(
    hostile: str, make_run: MakeRun, train_alone: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("llem.training.trackers.feed.HASTE_S", 0.5)
    monkeypatch.setattr("llem.training.trackers.feed.BEHIND_S", 0.0)
    run = make_run(steps=10)
    plain = train_alone(run, attempt="attempt-0")
    feeds = start_trackers([{"class": f"hostile:{hostile}"}], folder=tmp_path / "tracking")
    outcome = train_alone(run, attempt="attempt-1", callbacks=feeds)
    assert outcome.loss == plain.loss
    assert losses(tmp_path, "attempt-1") == losses(tmp_path, "attempt-0")
    began = time.monotonic()
    said = close_all(feeds, haste=True)
    assert time.monotonic() - began < 5.0
    told = " ".join(events(tmp_path, "attempt-1") + said)
    assert f"tracker hostile:{hostile}: " in told


def test_what_a_tracker_is_told_comes_whole_and_in_order(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    feed = Feed(
        {"class": "hostile:Keeps", "arguments": {"path": str(kept)}},
        folder=tmp_path / "tracking",
    )
    run = make_run(steps=10)
    outcome = train_alone(run, callbacks=[feed], peak_flops=1e9)
    assert close_all([feed]) == []
    calls = [json.loads(line) for line in kept.read_text().splitlines()]
    names = [call[0] for call in calls]
    assert (names[0], *names[-3:]) == ("on_start", "on_step", "on_evaluation", "on_end")
    assert Run.from_dict(calls[0][1]) == run
    assert calls[-3][1]["step"] == 10
    assert 0 < calls[-3][1]["mfu"] < 100
    assert calls[-2][1]["loss"] == outcome.loss
    assert events(tmp_path, "attempt-0") == []


def test_rows_for_a_tracker_that_takes_none_are_dropped_and_counted(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    row = Progress(step=1, steps=2, start_step=0, loss=1.0, tokens_per_s=1.0)

    def longest_s() -> float:
        feed = Feed({"class": "hostile:Hangs"}, folder=tmp_path)
        feed.on_start(run, {})
        took_s = []
        for _ in range(1000):
            began = time.perf_counter()
            feed.on_step(row)
            took_s.append(time.perf_counter() - began)
        assert feed.dropped > 500
        feed.close(by=time.monotonic())
        return max(took_s)

    # A tracker that is waited for is so each time; a busy machine holds this process up now and
    # then, between two lines.
    assert any(longest_s() < 0.25 for _ in range(4))


def needs(package: str) -> pytest.MarkDecorator:
    absent = find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


@pytest.fixture
def tracked(
    make_run: MakeRun, train_alone: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Run, Outcome]]:
    def track(spec: dict[str, Any]) -> tuple[Run, Outcome]:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setattr("llem.training.trackers.feed.LEAVE_S", 60.0)
        feeds = start_trackers([spec], folder=tmp_path)
        run = make_run(steps=10)
        outcome = train_alone(run, callbacks=feeds)
        assert close_all(feeds) == [], feeds[0].log.read_text()
        assert events(tmp_path, "attempt-0") == [], feeds[0].log.read_text()
        return run, outcome

    return track


@pytest.mark.slow
@needs("tensorboard")
def test_tensorboard_reads_what_was_written(tracked: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, outcome = tracked({"tensorboard": {}})
    seen = EventAccumulator(str(tmp_path / "tensorboard" / run.run_id))
    seen.Reload()
    assert seen.Scalars("train/loss")[-1].value == pytest.approx(outcome.train_loss_last)
    assert seen.Scalars("train/loss")[-1].step == 10
    assert seen.Scalars("eval/loss")[0].value == pytest.approx(outcome.loss)
    assert "run" in seen.Tags()["tensors"]


@pytest.mark.slow
@needs("wandb")
def test_wandb_is_offline_without_a_key(
    tracked: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = tracked({"wandb": {"project": "p"}})
    found = list((tmp_path / "wandb" / "wandb").glob(f"offline-run-*/run-llem-{run.run_id}.wandb"))
    assert len(found) == 1 and found[0].stat().st_size > 500
    assert "offline, since there is no WANDB_API_KEY" in capfd.readouterr().out


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_reads_what_was_written(
    tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, outcome = tracked({"mlflow": {"experiment": "e"}})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").absolute().as_uri())
    (seen,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert seen.info.status == "FINISHED"
    assert seen.data.tags["llem.run_id"] == run.run_id
    assert seen.data.metrics["eval/loss"] == outcome.loss
    assert seen.data.params["recipe.learning_rate"] == "0.01"
