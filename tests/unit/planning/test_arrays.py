"""Runs into elements: first-fit decreasing, the same for many seeds at once as run by run."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import Budget, Replicates, Runs, campaign_from, site_of
from llem.planning import make_plan, pack

from .sites import DATA, campaign_at

RUN = make_plan(campaign_at("laptop", "bytes"), budget=Budget(1e14, "FLOP"), data=DATA).runs[0]


def one_by_one(runs, longest):
    """First-fit decreasing as its definition has it."""
    elements = []
    for run in sorted(runs, key=lambda run: (-run.predicted.duration_s, run.run_id)):
        for used in elements:
            if sum(r.predicted.duration_s for r in used) + run.predicted.duration_s <= longest:
                used.append(run)
                break
        else:
            elements.append([run])
    return [tuple(run.run_id for run in element) for element in elements]


CELLS = st.lists(st.tuples(st.sampled_from([1, 2, 3, 5, 8, 9, 30]), st.integers(1, 9)), min_size=1)


@given(CELLS, st.integers(0, 20))
def test_elements_are_those_of_first_fit_decreasing(cells, longest):
    runs = Runs(
        Replicates(
            replace(RUN, tokens=1024 * (i + 1), predicted=replace(RUN.predicted, duration_s=time)),
            range(seeds),
        )
        for i, (time, seeds) in enumerate(cells)
    )
    site = site_of(campaign_from({"name": "c", "target": "1e20", "site": {
        "name": "s", "gpu": {"name": "cpu"}, "pack_s": longest, "limits": {"array_size": 1001},
    }}))  # fmt: skip
    (array,) = pack(runs, site)
    assert array.elements == tuple(one_by_one(runs, longest))
    assert pack(reversed(list(runs)), site) == (array,)
