"""What a loss is, found by looking at the function."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llem.errors import InputError
from llem.training.samples.losses import loss_of

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])


def by_model(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (F.cross_entropy, "output"),
        (nn.CrossEntropyLoss(), "output"),
        (lambda a, b: (a - b).mean(), "output"),
        (lambda *args: args[0].mean(), "output"),
        (torch.add, "output"),
        (by_model, "model"),
        (lambda net, batch: net(batch).mean(), "model"),
        (None, "own"),
    ],
)
def test_a_function_of_a_model_is_told_by_the_name_of_its_first_parameter(function, kind):
    assert loss_of(function).kind == kind


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (nn.CrossEntropyLoss, r"give an instance: CrossEntropyLoss\(\)"),
        (lambda output: output.mean(), r"it takes \(output\)"),
        (lambda a, b, c: a, r"it takes \(a, b, c\)"),
        (lambda a, b, *, weight: a, r"weight"),
        (3, "cannot be called"),
    ],
)
def test_what_is_no_loss_is_told_with_what_to_give(function, words):
    with pytest.raises(InputError, match=words):
        loss_of(function)


def test_both_conventions_give_the_same_loss():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    losses = [
        loss_of(f)(model, (X, Y), autocast=nullcontext)
        for f in (F.cross_entropy, nn.CrossEntropyLoss(), by_model)
    ]
    assert losses[0] == losses[1] == losses[2] == F.cross_entropy(model(X), Y)


def test_all_but_the_last_part_of_a_batch_are_inputs():
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    found = loss_of(F.mse_loss)(Sum(), (X, X, 2 * X), autocast=nullcontext)
    assert found == 0


def test_a_mapping_is_given_by_keywords_and_its_target_by_name():
    class Named(nn.Module):
        def forward(self, *, pixels: Tensor) -> Tensor:
            return pixels

    found = loss_of(F.mse_loss)(Named(), {"pixels": X, "target": X}, autocast=nullcontext)
    assert found == 0
    with pytest.raises(ValueError, match="has no labels"):
        loss_of(F.mse_loss)(Named(), {"pixels": X}, autocast=nullcontext)


@dataclass
class Output:
    loss: Tensor | None = None
    logits: Tensor | None = None


class Own(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.answer


def test_a_model_may_return_its_loss():
    loss = torch.tensor(2.5)
    for answer in (loss, Output(loss=loss), {"loss": loss}, (loss, X)):
        assert loss_of(None)(Own(answer), {"pixels": X}, autocast=nullcontext) == 2.5
    with pytest.raises(ValueError, match="must return its loss"):
        loss_of(None)(Own(X), (X, Y), autocast=nullcontext)


def test_pairs_of_token_ids_need_no_loss():
    ids = torch.randint(0, 7, (2, 5))
    logits = torch.randn(2, 5, 7)
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    for answer in (logits, Output(logits=logits), {"logits": logits}):
        assert loss_of(None)(Own(answer), (ids, ids), autocast=nullcontext) == expected


def test_a_loss_that_is_not_reduced_is_told():
    with pytest.raises(ValueError, match="reduce it to its mean"):
        loss_of(lambda a, b: a - b)(nn.Linear(3, 3), (X, X), autocast=nullcontext)
