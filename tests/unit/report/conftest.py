"""One fit and one page for all tests of the report: drawing takes seconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from llem.report import write_report

from .campaigns import PLAN, fit_json, observations


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return observations()


@pytest.fixture(scope="session")
def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """fit.json of the campaign; do not change it, take `fit` for that."""
    return fit_json(rows)


@pytest.fixture
def fit(fitted: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(fitted)


@pytest.fixture(scope="session")
def page(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], fitted: dict[str, Any]
) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, observations=rows, fit=fitted, plan=PLAN, title="<b>&")
