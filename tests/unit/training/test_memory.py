"""Peak memory of real trainings, and the planner's expectation of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llem.campaign import Run
from llem.planning.memory import memory_of

torch = pytest.importorskip("torch")

from llem.training.memory import PeakMemory, read_status  # noqa: E402

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_planner_expects_the_peak_of_a_real_training(
    ranks: int,
    make_heavy_run: Callable[..., Run],
    run_ranks: Callable[..., Any],
    tmp_path: Path,
) -> None:
    runs = {
        name: make_heavy_run(ranks=ranks, checkpointing=again)
        for name, again in (("kept", False), ("computed-again", True))
    }
    tasks = [
        {
            "name": name,
            "run": run.to_dict(),
            "attempt": str(tmp_path / name),
            "checkpoints": str(tmp_path / f"{name}-checkpoints"),
        }
        for name, run in runs.items()
    ]
    results = run_ranks(tasks, ranks=ranks, folder=tmp_path)
    for name, run in runs.items():
        told = {outcome["peak_memory_bytes"] for outcome in results[name]}
        assert len(told) == 1
        expected = memory_of(run.model, run.recipe, run.layout, cpu=True).of_run
        assert expected == pytest.approx(told.pop(), rel=0.15)
    peaks = {name: results[name][0]["peak_memory_bytes"] for name in runs}
    assert peaks["computed-again"] < 0.9 * peaks["kept"]


def test_a_peak_is_seen_after_its_memory_is_freed_and_what_stood_before_is_not() -> None:
    stood = torch.ones(20_000_000)
    memory = PeakMemory(CPU)
    passing = torch.ones(50_000_000)
    del passing
    assert memory.read().bytes == pytest.approx(200e6, rel=0.05)
    assert stood.sum() == 20_000_000


def test_pages_of_a_mapped_file_are_no_memory_of_the_run(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "tokens.bin"
    path.write_bytes(bytes(50_000_000))
    memory = PeakMemory(CPU)
    tokens = np.memmap(path, dtype=np.uint8, mode="r")
    assert int(tokens.max()) == 0
    assert memory.read().bytes < 10e6


def test_a_peak_that_cannot_be_measured_is_nan_with_the_reason(tmp_path: Path) -> None:
    peak = PeakMemory(CPU, process=tmp_path / "nothing").read()
    assert math.isnan(peak.bytes)
    assert "cannot be reset" in peak.reason
    assert "unknown" in peak.told()
    (tmp_path / "status").write_text("VmRSS:\t 10 kB\n")
    with pytest.raises(KeyError, match="VmHWM"):
        read_status(tmp_path)
