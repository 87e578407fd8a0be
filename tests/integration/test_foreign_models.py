"""Models that know nothing of llem, each through `find_optimal` to a law with intervals."""

from __future__ import annotations

import json
import math
import runpy
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

if find_spec("torch") is None or find_spec("accelerate") is None:
    pytest.skip("torch and accelerate are not installed", allow_module_level=True)


import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llem

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.train, pytest.mark.slow]


def holds_together(result: llem.Result, *, unit: str, least: int) -> None:
    """A law of sound numbers, each with an interval, whose loss falls with size and data."""
    assert result.unit == unit
    done = [row for row in result.observations if row["status"] == "completed"]
    assert len(done) == len(result.observations) >= least
    law = result.law
    assert law.params["E"] >= 0 and law.params["alpha"] > 0 and law.params["beta"] > 0
    assert all(low <= high for low, high in law.ci.values())
    best, later = result.optimum(), result.optimum(10 * result.optimum().flops)
    assert all(math.isfinite(x) for ci in best.ci.values() for x in ci)
    assert later.params > best.params and later.tokens > best.tokens and later.loss < best.loss
    assert best.value is not None
    worst = max(abs(math.log(row["loss"] / float(result.predict(row["params"], row["tokens"]))))
                for row in done)  # fmt: skip
    assert worst < 0.25


class Perceptron(nn.Module):
    """What a user has lying about: dropout, batch normalisation, its own loss in a method."""

    def __init__(self, hidden: int, layers: int = 1) -> None:
        super().__init__()
        sizes = [16, *[hidden] * layers]
        self.body = nn.Sequential(
            *(part for a, b in pairwise(sizes)
              for part in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.05)))
        )  # fmt: skip
        self.head = nn.Linear(hidden, 4)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Points(torch.utils.data.Dataset[Any]):
    """Map-style: a point and its class, made from the index alone."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(20_000, 16, generator=draw)
        mixed = torch.tanh(self.x @ torch.randn(16, 64, generator=draw))
        self.y = (mixed @ torch.randn(64, 4, generator=draw)).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 4).float())


def test_a_users_perceptron_with_a_loader_and_a_loss_of_its_own(tmp_path):
    loader = torch.utils.data.DataLoader(Points(), batch_size=64, shuffle=True)
    result = llem.find_optimal(
        model=Perceptron, size="hidden", sizes=[6, 10, 16, 26, 42], dataset=loader,
        loss_fn=squared, model_kwargs={"layers": 1}, budget="2.5e8 FLOP", ratio=2.0,
        evaluation=0.1, out=tmp_path / "c", progress=False,
    )  # fmt: skip
    holds_together(result, unit="sample", least=12)
    assert result.observations[0]["tokens"] % 64 == 0


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_hugging_face_gpt2_from_a_config_on_text(tmp_path):
    example = runpy.run_path(str(EXAMPLES / "find_optimal_huggingface.py"))
    result = llem.find_optimal(
        model=example["gpt2"], size="n_embd", sizes=[4, 8, 12, 20], dataset=example["text"],
        context=32, batch=8, budget="2.4e10 FLOP", ratio=2.0, evaluation=0.002,
        out=tmp_path / "c", progress=False,
    )  # fmt: skip
    holds_together(result, unit="token", least=10)
    assert result.fit.flops_model.coefficient > 0


class Patches(nn.Module):
    """A vision transformer of one block on images of 8 x 8."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.places = nn.Parameter(torch.zeros(1, 4, width))
        self.block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images[:, None]).flatten(2).transpose(1, 2) + self.places
        return self.head(self.block(x).mean(1))


def test_a_vision_transformer_on_images(tmp_path):
    """Where the brighter quarter lies, in noise."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (20_000,), generator=draw)
    images = torch.randn(20_000, 8, 8, generator=draw)
    for quarter in range(4):
        row, column = 4 * (quarter // 2), 4 * (quarter % 2)
        images[y == quarter, row : row + 4, column : column + 4] += 0.25
    result = llem.find_optimal(
        model=Patches, size="width", dataset={"images": images, "label": y},
        loss_fn=F.cross_entropy, sizes=[4, 6, 10, 16], budget="2.5e9 FLOP", ratio=2.0, batch=32,
        out=tmp_path / "c", progress=False,
    )  # fmt: skip
    holds_together(result, unit="sample", least=10)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_the_example_of_digits_plans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "find_optimal_vit.py"))
    preview = llem.find_optimal(
        model=example["ViT"], size="width", dataset=example["digits"], loss_fn=F.cross_entropy,
        evaluation=0.2, budget="6e10 FLOP", batch=32, plan_only=True, progress=False,
    )  # fmt: skip
    # Four heads divide neither 1, 2, 3 nor 6.
    assert [rung.value % 4 for rung in preview.ladder.rungs] == [0] * len(preview.ladder.rungs)
    assert any("divisible" in note for note in preview.notes)
    assert sys.modules.get("sklearn") is not None


def test_the_second_wave_is_chosen_from_what_the_first_one_showed(tmp_path):
    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4))

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=draw)
    mixed = torch.tanh(x @ torch.randn(8, 32, generator=draw))
    target = (mixed @ torch.randn(32, 4, generator=draw)).argmax(1)
    words: dict[str, Any] = {
        "model": mlp, "size": "width", "sizes": [4, 8, 16, 32], "dataset": (x, target),
        "loss_fn": F.cross_entropy, "budget": "6e7 FLOP", "batch": 32, "ratio": 2.0, "waves": 2,
        "out": tmp_path / "c", "progress": False,
    }  # fmt: skip
    result = llem.find_optimal(**words)
    first, second = json.loads((tmp_path / "c" / "plan.json").read_text())["waves"]
    assert (first["observed"], second["observed"]) == (0, first["runs"])
    assert first["value"] + second["value"] == pytest.approx(6e7, rel=0.02)
    done = [row for row in result.observations if row["status"] == "completed"]
    assert len(done) == first["runs"] + second["runs"]
    # It is no second grid: sizes and tokens are those that tell most of the law.
    cells = {(row["params"], row["tokens"]) for row in done}
    seeds = max(sum((r["params"], r["tokens"]) == cell for r in done) for cell in cells)
    assert second["kind"] == "designed" and seeds > 1
    low, high = result.optimum().ci["params"]
    assert low <= result.optimum().params <= high

    def attempts() -> int:
        return len(list((tmp_path / "c" / "runs").glob("*/attempt-*")))

    before = attempts()
    again = llem.find_optimal(**words)
    assert again.optimum().params == result.optimum().params and attempts() == before
