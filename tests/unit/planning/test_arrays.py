"""Runs into elements: first-fit decreasing, the same for many seeds at once as run by run."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import (
    Decoder,
    Layout,
    Predicted,
    Recipe,
    Replicates,
    Run,
    Runs,
    TokenData,
    campaign_from,
    site_of,
)
from llem.planning import pack

RUN = Run(
    model=Decoder(layers=2, width=32, heads=2, mlp_width=88, vocabulary=256, context=64),
    tokens=64 * 1024,
    steps=64,
    seed=0,
    recipe=Recipe(batch_tokens=1024, learning_rate=0.01, warmup_steps=6),
    data=TokenData(path="a.bin", dtype="uint8", tokens=10**6, evaluation_tokens=4096,
                   fingerprint="ab"),
    layout=Layout(),
    predicted=Predicted(duration_s=1, gpu_hours=1, energy_j=1, memory_bytes=1),
)  # fmt: skip


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
