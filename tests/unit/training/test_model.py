"""The reference decoder and users' own models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem.campaign import CustomModel, Decoder
from llem.errors import InputError

torch = pytest.importorskip("torch")

from llem.training.model import build_model, count_params  # noqa: E402

pytestmark = pytest.mark.train

SHAPE = Decoder(layers=2, width=16, heads=2, mlp_width=40, vocabulary=64, context=24)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 8, 1, 8, 16), (2, 16, 2, 40, 64), (3, 48, 3, 128, 256), (5, 96, 12, 250, 1000)]
)
def test_the_parameters_are_those_that_were_planned(
    tied: bool, sizes: tuple[int, int, int, int, int]
) -> None:
    layers, width, heads, mlp_width, vocabulary = sizes
    shape = Decoder(
        layers=layers, width=width, heads=heads, mlp_width=mlp_width, vocabulary=vocabulary,
        context=16, tied_embeddings=tied,
    )  # fmt: skip
    model = build_model(shape, seed=0)
    assert count_params(model) == shape.params
    tables = sum(
        p.numel() for n, p in model.named_parameters() if n.startswith(("embedding", "output"))
    )
    assert count_params(model) - tables == shape.params_nonembedding


def test_logits_have_the_shape_of_the_tokens_and_the_vocabulary() -> None:
    assert build_model(SHAPE, seed=0)(torch.zeros(3, 10, dtype=torch.long)).shape == (3, 10, 64)


def test_no_logit_depends_on_a_later_token() -> None:
    model = build_model(SHAPE, seed=0)
    tokens = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 64
    before, after = model(tokens), model(other)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-6)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-3)


def test_attention_knows_where_tokens_stand_only_relative_to_each_other() -> None:
    from llem.training.model import _rotary, _rotate

    cos, sin = _rotary(SHAPE)
    q, k = torch.randn(2, 1, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at: int, to: int) -> float:
        a = _rotate(q, cos[at : at + 1], sin[at : at + 1])
        b = _rotate(k, cos[to : to + 1], sin[to : to + 1])
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(20, 18), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-2)


def test_the_first_loss_is_that_of_a_guess() -> None:
    model = build_model(replace(SHAPE, width=64, heads=4, vocabulary=256), seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (8, 24), generator=generator)
    targets = torch.randint(0, 256, (8, 24), generator=generator)
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.3)


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> Any:
        return torch.cat([p.flatten() for p in build_model(SHAPE, seed=seed).parameters()])

    first = weights(1)
    torch.rand(10)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_residual_projections_start_smaller() -> None:
    shape = replace(SHAPE, width=64, heads=4, mlp_width=256)
    block = build_model(shape, seed=0).blocks[0]
    deviation = math.sqrt(2 / (5 * 64))
    assert block.attention.qkv.weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(deviation / 2, rel=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"heads": 3}, "width 16 is no multiple of 3 heads"), ({"heads": 16}, "head size 1 is odd")],
)
def test_shapes_that_cannot_be_built_are_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_model(replace(SHAPE, **change), seed=0)


OWN_MODEL = """
import torch

class Bigram(torch.nn.Module):
    def __init__(self, width, vocabulary, dropout=0.0):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.dropout = torch.nn.Dropout(dropout)
        self.output = torch.nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.output(self.dropout(self.embedding(tokens)))

def not_a_class():
    pass
"""

OWN = CustomModel(
    class_path="own_models_of_llem_tests:Bigram", size="width", value=8, params=256 * 17,
    vocabulary=256, context=32, arguments={"vocabulary": 256, "dropout": 0.1},
)  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        Decoder(layers=2, width=64, heads=2, mlp_width=176, vocabulary=512, context=64),
        Decoder(layers=5, width=48, heads=3, mlp_width=128, vocabulary=96, context=16),
        # Most of it the output layer; most of it attention.
        Decoder(layers=1, width=32, heads=2, mlp_width=80, vocabulary=8192, context=32),
        Decoder(layers=2, width=32, heads=1, mlp_width=64, vocabulary=64, context=1024),
    ],
)
def test_the_flops_are_those_that_torch_counts(
    shape: Decoder, tied: bool, checkpointing: bool
) -> None:
    """Forward and backward, attention as plain products: torch counts no fused one on the CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = replace(shape, tied_embeddings=tied)
    model = build_model(shape, seed=0, activation_checkpointing=checkpointing)
    tokens = torch.randint(shape.vocabulary, (2, shape.context))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    again = shape.recomputed_flops_per_token if checkpointing else 0
    planned = (shape.flops_per_token + again) * tokens.numel()
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.fixture
def campaign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_models_of_llem_tests.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("campaign_folder")
class TestCustomModel:
    def test_it_is_built_from_the_campaign_folder(self) -> None:
        assert count_params(build_model(OWN, seed=0)) == OWN.params

    def test_it_learns_and_resumes_to_the_same_bits_with_dropout(
        self, make_run: Callable[..., Any], train_alone: Callable[..., Any]
    ) -> None:
        run = make_run(model=OWN, steps=40)
        polls = iter(range(40))
        whole = train_alone(run, "attempt-0")
        cut = train_alone(run, "attempt-1", should_stop=lambda: "now" if next(polls) == 9 else None)
        rest = train_alone(run, "attempt-2")
        assert whole.loss < whole.train_loss_first - 0.5
        assert (cut.status, cut.step, rest.start_step) == ("interrupted", 10, 10)
        assert (rest.loss, rest.train_loss_last) == (whole.loss, whole.train_loss_last)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"class_path": "no_such_module_at_all:Bigram"}, "cannot be imported: ModuleNotFound"),
            ({"class_path": "own_models_of_llem_tests:Trigram"}, "has no 'Trigram'"),
            ({"class_path": "own_models_of_llem_tests:not_a_class"}, "other than a torch.nn.Modu"),
            ({"arguments": {"vocabulary": 256, "depth": 2}}, "unexpected keyword argument 'depth'"),
            ({"params": 1000}, "4352 parameters built, 1000 planned"),
        ],
    )
    def test_what_is_wrong_with_it_is_said(self, change: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            build_model(replace(OWN, **change), seed=0)
