"""A mixture of a packed file and a stream, trained by one rank and by two."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llem
from llem.campaign import Run, TokenData, mixture_of
from llem.records import read_rank

pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = [pytest.mark.train, pytest.mark.slow]


def test_losses_tokens_and_evaluations_do_not_depend_on_the_number_of_ranks(
    make_run: Callable[..., Run],
    run_worlds: Callable[..., dict[int, Any]],
    token_data: TokenData,
    tmp_path: Path,
) -> None:
    sources = Path(sysconfig.get_path("stdlib")) / "json" / "*.py"
    made = llem.prepare_data(sources, out=tmp_path / "json.bin", held_out="10%", workers=1)
    packed = replace(made.token_data(tmp_path / "json.bin"), packing="documents")
    data = mixture_of([(token_data, 1), (packed, 3)])
    worlds = {}
    # 300 steps read the packed file more than once.
    for ranks in (1, 2):
        run = make_run(ranks=ranks, steps=300, data=data)
        folder = tmp_path / str(ranks)
        names = {"name": "mixed", "attempt": str(folder / "a"), "checkpoints": str(folder / "c")}
        worlds[ranks] = ([{**names, "run": run.to_dict()}], folder)
    outcomes = {ranks: found["mixed"][0] for ranks, found in run_worlds(worlds).items()}
    assert outcomes[2]["loss"] == pytest.approx(outcomes[1]["loss"], abs=1e-3)
    records = {
        ranks: [read_rank(tmp_path / str(ranks) / "a" / f"rank-{r:05d}.h5") for r in range(ranks)]
        for ranks in (1, 2)
    }
    unique = {
        ranks: sum(int(record.steps["tokens_unique"].sum()) for record in found)
        for ranks, found in records.items()
    }
    assert unique[1] == unique[2] < 300 * 16 * 32
    ours = sum(record.steps["loss"] for record in records[2]) / 2
    assert ours == pytest.approx(records[1][0].steps["loss"], rel=1e-3)
