"""The text of `plan.json`, and of every run in it: made once a cell, however many seeds it has."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llem.campaign import Replicates, Runs
from llem.cluster.disk.files import finite_or_none, json_line
from llem.planning import AnyPlan


def render_plan(plan: AnyPlan) -> Iterator[str]:
    """`plan.json`, piece by piece: indented, with each array and each run on a line of its own.

    A file of many equal things reads better so, and is written ten times faster.
    """
    yield json.dumps(finite_or_none(plan.head()), indent=1, allow_nan=False)[:-2]
    yield ',\n "arrays": [\n'
    yield ",\n".join(json_line(vars(array)) for array in plan.arrays)
    yield '\n ],\n "runs": [\n'
    for number, some in enumerate(plan.runs.replicates):
        if number:
            yield ",\n"
        yield ",\n".join(_lines(some))
    yield "\n ]\n}\n"


def run_texts(runs: Runs) -> dict[str, str]:
    """Each run on one line of JSON, by its name."""
    return {
        run_id: line
        for some in runs.replicates
        for run_id, line in zip(some.run_ids, _lines(some), strict=True)
    }


def _lines(some: Replicates) -> Iterator[str]:
    """`json_line(run.to_dict())` of each run. Only name and seed differ: the rest is made once."""
    values = some.run.to_dict()
    keys = list(values)
    assert keys[0] == "run_id"
    seed_at = keys.index("seed")
    middle = json_line({key: values[key] for key in keys[1:seed_at]})[1:-1]
    rest = json_line({key: values[key] for key in keys[seed_at + 1 :]})[1:-1]
    for run_id, seed in zip(some.run_ids, some.seeds, strict=True):
        yield f'{{"run_id":"{run_id}",{middle},"seed":{seed},{rest}}}'
