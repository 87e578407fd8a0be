"""`import llem` as a library: its names and their help."""

from __future__ import annotations

import inspect

import pytest

import llem


def test_help_and_dir_tell_every_public_name():
    """They load on first use, so that `help(llem)` cannot list them by itself."""
    named = [name for name in llem.__all__ if not name.startswith("_")]
    assert all(name in str(llem.__doc__) for name in named)
    assert set(llem.__all__) <= set(dir(llem))
    assert all(inspect.getdoc(getattr(llem, name)) for name in named)


def test_a_name_that_llem_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'llem' has no attribute 'find_optimum'"):
        llem.find_optimum  # noqa: B018
