"""What a recipe names: optimisers, z-loss, muP; and compiled blocks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Decoder, Recipe, Run
from llem.errors import InputError
from llem.records import read_rank

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from llem.training.model import build_model  # noqa: E402
from llem.training.optimiser import optimisers, set_rate  # noqa: E402
from llem.training.task import token_loss  # noqa: E402

pytestmark = pytest.mark.train

RECIPE = Recipe(batch_tokens=512, learning_rate=3e-3, warmup_steps=0)
MakeRun = Callable[..., Run]
Train = Callable[..., Any]


def shape(width: int, *, tied: bool = True) -> Decoder:
    return Decoder(
        layers=2, width=width, heads=4, mlp_width=2 * width, vocabulary=256, context=32,
        tied_embeddings=tied,
    )  # fmt: skip


class TestMuon:
    def test_a_torch_without_it_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(torch.optim, "Muon")
        with pytest.raises(InputError, match=r"torch 2.9 or newer"):
            optimisers(build_model(shape(32), seed=0), replace(RECIPE, optimiser="muon"))

    def test_matrices_of_the_blocks_are_its_all_else_is_adamws(self) -> None:
        model = build_model(shape(32, tied=False), seed=0)
        muon, adamw = optimisers(model, replace(RECIPE, optimiser="muon"))
        names = {id(p): name for name, p in model.named_parameters()}
        hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
        others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
        matrices = ("attention.qkv", "attention.out", "mlp.gate", "mlp.up", "mlp.down")
        assert hidden == {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in matrices}
        assert others == set(names.values()) - hidden
        assert {"embedding.weight", "output.weight", "norm.weight"} <= others

    def test_norms_do_not_decay(self) -> None:
        model = build_model(shape(32), seed=0)
        for optimiser in optimisers(model, replace(RECIPE, optimiser="muon", weight_decay=0.3)):
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0.0)

    def test_a_step_of_a_matrix_has_the_size_of_one_of_adamws(self) -> None:
        """Moonlight's scale: a root mean square of about .2 rates, so that one rate serves both."""
        model = build_model(shape(64), seed=0)
        muon, _ = optimisers(model, replace(RECIPE, optimiser="muon", weight_decay=0.0))
        before = {p: p.detach().clone() for g in muon.param_groups for p in g["params"]}
        tokens = torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(0))
        token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        muon.step()
        for parameter, old in before.items():
            size = (parameter.detach() - old).pow(2).mean().sqrt().item() / RECIPE.learning_rate
            assert size == pytest.approx(0.2, rel=0.35)

    def test_it_learns_and_resumes_to_the_same_bits(
        self, make_run: MakeRun, train_alone: Train
    ) -> None:
        run = make_run(optimiser="muon")
        whole = train_alone(run, "whole")
        assert whole.loss < math.log(256) - 1.5
        polls = iter(range(100))
        train_alone(run, "cut", should_stop=lambda: "told to" if next(polls) == 12 else None)
        rest = train_alone(run, "rest")
        assert (rest.start_step, rest.loss) == (13, whole.loss)

    def test_of_a_class_of_the_users_own_it_is_refused(self) -> None:
        for recipe in (
            replace(RECIPE, optimiser="muon"),
            replace(RECIPE, parametrisation="mup", base_width=32),
        ):
            with pytest.raises(InputError, match="made for the llama family"):
                optimisers(torch.nn.Linear(4, 4), recipe)

    @pytest.mark.parametrize("sharding", [{"zero_stage": 1}, {"sharding": "fsdp2"}])
    def test_where_matrices_are_sharded_it_is_refused(
        self, make_run: MakeRun, train_alone: Train, sharding: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="muon needs each matrix whole"):
            train_alone(make_run(optimiser="muon", **sharding))


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_a_loss_in_parts_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, z_loss: float
) -> None:
    whole = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(21).view(3, 7)
    found = []
    for cache_bytes in (1 << 20, 4 * 50 * 4, 1):
        monkeypatch.setattr("llem.training.task.CACHE_BYTES", cache_bytes)
        logits = whole.clone().requires_grad_()
        loss = token_loss(logits, targets, z_loss=z_loss)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    for loss, gradient in found:
        assert torch.allclose(loss, found[0][0], rtol=1e-6)
        assert torch.allclose(gradient, found[0][1], atol=1e-8)


class TestZLoss:
    logits = 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(10).view(2, 5) % 7

    def test_what_is_told_is_the_cross_entropy(self) -> None:
        plain = token_loss(self.logits, self.targets)
        assert token_loss(self.logits, self.targets, z_loss=1e-2) == plain

    def test_its_gradient_is_that_of_palms_sum(self) -> None:
        a, b = self.logits.clone().requires_grad_(), self.logits.clone().requires_grad_()
        token_loss(a, self.targets, z_loss=1e-2).backward()
        log_z = b.exp().sum(-1).log()
        chosen = b.gather(-1, self.targets[..., None]).squeeze(-1)
        ((log_z - chosen).mean() + 1e-2 * (log_z**2).mean()).backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-7)

    def test_a_run_tells_the_cross_entropy(self, make_run: MakeRun, train_alone: Train) -> None:
        first = train_alone(make_run(steps=1), "plain").train_loss_first
        assert train_alone(make_run(steps=1, z_loss=1.0), "z").train_loss_first == first


def changes(width: int, recipe: Recipe, *, steps: int = 4) -> dict[str, float]:
    """How far activations moved in some steps at a constant rate: their root mean square."""
    model = build_model(shape(width), seed=0, base_width=recipe.base_width)
    seen: dict[str, Any] = {}
    for name, module in (
        ("attention", model.blocks[-1].attention), ("block", model.blocks[-1]),
    ):  # fmt: skip
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()[:8000]))
    probe = text[: 8 * 32].view(8, 32)

    def look() -> dict[str, Any]:
        with torch.no_grad():
            model(probe)
        return dict(seen)

    before = look()
    (adamw,) = optimisers(model, recipe)
    for step in range(steps):
        batch = text[step * 528 : (step + 1) * 528].view(16, 33)
        adamw.zero_grad()
        token_loss(model(batch[:, :-1]), batch[:, 1:]).backward()
        set_rate(adamw, recipe.learning_rate)
        adamw.step()
    after = look()
    return {name: (after[name] - before[name]).pow(2).mean().sqrt().item() for name in seen}


class TestMup:
    mup = replace(RECIPE, parametrisation="mup", base_width=32)

    def test_at_its_base_width_it_is_the_standard_one(self) -> None:
        """But for the scale of attention, which is that of heads of 64."""
        wide = replace(shape(256), heads=4)
        standard, mup = (build_model(wide, seed=0, base_width=base) for base in (0, 256))
        tokens = torch.arange(64).view(2, 32)
        assert torch.equal(standard(tokens), mup(tokens))
        (a,), (b,) = (
            optimisers(model, recipe)
            for model, recipe in (
                (standard, RECIPE), (mup, replace(self.mup, base_width=256)),
            )
        )  # fmt: skip
        set_rate(a, 0.1)
        set_rate(b, 0.1)
        assert {g["lr"] for g in b.param_groups} == {g["lr"] for g in a.param_groups} == {0.1}

    def test_steps_move_activations_as_far_at_every_width(self) -> None:
        """The coordinate check (arXiv 2203.03466, appendix D.1)."""
        widths = (32, 128, 256)
        mup = [changes(width, self.mup) for width in widths]
        standard = [changes(width, RECIPE) for width in widths]
        for name in ("attention", "block"):
            moved = [found[name] for found in mup]
            assert max(moved) / min(moved) < 1.3
        assert standard[-1]["block"] / standard[0]["block"] > 4

    def test_rates_fall_with_the_width_and_rate_times_decay_does_not(self) -> None:
        model = build_model(shape(128), seed=0, base_width=32)
        (adamw,) = optimisers(model, self.mup)
        set_rate(adamw, 1.0)
        told = {}
        names = {id(p): name for name, p in model.named_parameters()}
        for group in adamw.param_groups:
            for parameter in group["params"]:
                told[names[id(parameter)]] = (group["lr"], group["lr"] * group["weight_decay"])
        assert told["blocks.0.mlp.down.weight"] == (0.25, pytest.approx(0.1))
        assert told["embedding.weight"] == (1.0, pytest.approx(0.1))
        assert told["norm.weight"] == (1.0, 0.0)

    def test_a_run_trains_by_it(self, make_run: MakeRun, train_alone: Train) -> None:
        outcome = train_alone(make_run(parametrisation="mup", base_width=8))
        assert outcome.loss < math.log(256) - 1.5


def test_options_are_part_of_a_runs_name_where_they_are_not_the_defaults(
    make_run: MakeRun,
) -> None:
    options: list[dict[str, Any]] = [
        {"optimiser": "muon"}, {"z_loss": 1e-4}, {"parametrisation": "mup", "base_width": 8},
    ]  # fmt: skip
    assert len({make_run().run_id, *(make_run(**option).run_id for option in options)}) == 4


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_but_for_rounding(
    make_run: MakeRun, train_alone: Train, tmp_path: Path
) -> None:
    plain = train_alone(make_run(steps=10), "plain")
    run = make_run(steps=10)
    compiled = run.with_layout(replace(run.layout, compile=True))
    outcome = train_alone(compiled, "compiled")
    assert compiled.run_id == run.run_id
    assert outcome.loss == pytest.approx(plain.loss, rel=1e-4)
    both = [read_rank(tmp_path / n / "rank-00000.h5").steps["loss"] for n in ("plain", "compiled")]
    assert np.allclose(*both, rtol=1e-4)


def test_a_custom_class_is_compiled_and_sharded_whole_or_by_its_lists() -> None:
    from llem.training.engines.engine import units

    model = build_model(shape(32), seed=0)
    assert units(model) == list(model.blocks)
    lone = torch.nn.Linear(4, 4)
    assert units(lone) == [lone]
    nested = torch.nn.Module()
    nested.outer = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Linear(2, 2)])])
    assert units(nested) == list(nested.outer)
