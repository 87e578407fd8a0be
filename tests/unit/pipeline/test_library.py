"""`import llem` as a library: its names and their help."""

from __future__ import annotations

import inspect
import math

import pytest

import llem
from llem.campaign import Budget
from llem.pipeline.answers import Answer


def test_help_and_dir_tell_every_public_name():
    """They load on first use, so that `help(llem)` cannot list them by itself."""
    named = [name for name in llem.__all__ if not name.startswith("_")]
    assert all(name in str(llem.__doc__) for name in named)
    assert set(llem.__all__) <= set(dir(llem))
    assert all(inspect.getdoc(getattr(llem, name)) for name in named)


def test_a_name_that_llem_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'llem' has no attribute 'find_optimum'"):
        llem.find_optimum  # noqa: B018


def test_a_budget_that_has_no_answer_says_why():
    nan = math.nan
    answer = Answer(
        budget=Budget(1.0, "GPUh"), flops=nan, params=nan, tokens=nan, loss=nan, unit="sample",
        size="width", value=None, ci={}, extrapolation=nan, beyond_data=False,
        warnings=("the cost law gives size or tokens no price",), optimum=None,
    )  # fmt: skip
    assert str(answer) == "1 GPUh: no answer: the cost law gives size or tokens no price"
