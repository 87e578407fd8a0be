"""A hash of the code that a result depends on."""

from __future__ import annotations

import functools
import linecache
from typing import Any

import torch.nn.functional as F
from torch import nn

from llem.training.samples.sourcecode import source_hash

COMMON = """
from torch import nn
SCALE = 2
def helper(x):
    return SCALE * x
class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(1, width)
    def forward(self, x):
        return helper(self.layer(x))
def unrelated():
    return 1
"""


def cell(text: str, name: str) -> dict[str, Any]:
    """What a notebook does: compile a cell, and let its source be found."""
    file = f"<cell {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), space)
    return space


def hash_of(text: str, name: str = "a") -> str:
    return source_hash(cell(text, name)["Model"])


def test_it_changes_with_all_that_a_class_refers_to_and_with_nothing_else():
    base = hash_of(COMMON)
    assert hash_of(COMMON, "another cell") == base
    assert hash_of(COMMON.replace("return 1", "return 2")) == base
    assert hash_of(COMMON.replace("Linear(1, width)", "Linear(1, width, bias=False)")) != base
    assert hash_of(COMMON.replace("SCALE * x", "SCALE + x")) != base
    assert hash_of(COMMON.replace("SCALE = 2", "SCALE = 3")) != base


def test_a_class_whose_source_is_lost_is_told_by_what_it_compiles_to():
    def compiled(text: str) -> str:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(text, "<typed>", "exec"), space)
        return source_hash(space["Model"])

    assert compiled(COMMON) == compiled(COMMON)
    assert compiled(COMMON) != compiled(COMMON.replace("SCALE * x", "SCALE + x"))


def test_a_counter_on_a_class_does_not_change_it():
    class Counted(nn.Module):
        calls = 0

    before = source_hash(Counted)
    Counted.calls += 1
    assert source_hash(Counted) == before


def test_closures_partials_and_loss_objects_count_with_what_they_hold():
    def smoothed(amount: float) -> Any:
        return lambda output, target: F.cross_entropy(output, target, label_smoothing=amount)

    assert source_hash(smoothed(0.1)) != source_hash(smoothed(0.2))
    assert source_hash(functools.partial(F.mse_loss, reduction="sum")) != source_hash(F.mse_loss)
    assert source_hash(nn.CrossEntropyLoss()) == source_hash(nn.CrossEntropyLoss())
    assert source_hash(nn.CrossEntropyLoss()) != source_hash(nn.CrossEntropyLoss(label_smoothing=1))
