"""The ladder of a user's own model: which sizes are trained, and where it stands."""

import inspect
import math

import pytest

from llem.pipeline.optimal.arguments import Arguments
from llem.pipeline.optimal.find import find_optimal
from llem.pipeline.optimal.sizes import AROUND, SIZES, data_per_parameter, find_ladder
from llem.training.samples.probe import Probe

LOW, HIGH = 1e9, 9e9
MIDDLE = math.sqrt(LOW * HIGH)


def look(value):
    """A perceptron of that width: FLOPs of a sample 6 N."""
    params = 100 * value**2
    return Probe(value, params, 6.0 * params)


def ladder(**options):
    return find_ladder(
        look, largest_flops=HIGH, smallest_flops=LOW, batch=64, budget=3 * HIGH, **options
    ).rungs


def test_without_a_ratio_the_ladder_spans_what_the_budget_can_train():
    rungs = ladder()
    assert len(rungs) == SIZES
    ratios = [MIDDLE / r.flops / r.params for r in rungs]
    # No D/N is taken for best: it spans more than two decades of it.
    assert max(ratios) / min(ratios) > 100
    assert min(ratios) <= data_per_parameter(rungs, MIDDLE) <= max(ratios)


@pytest.mark.parametrize("wanted", [20.0, 200.0])
def test_a_ratio_centres_the_ladder(wanted):
    rungs = ladder(centre=wanted)
    assert len(rungs) == SIZES
    assert [r.params for r in rungs] == sorted({r.params for r in rungs})
    for rung in rungs:
        assert 1 / AROUND <= MIDDLE / rung.flops / rung.params / wanted <= AROUND


def test_a_larger_ratio_asks_for_smaller_models():
    sizes = [[r.params for r in ladder(centre=wanted)][-1] for wanted in (0.1, 200.0, 1e4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_a_ratio_beyond_what_can_be_trained_takes_what_is_nearest():
    everything = ladder(count=100)
    smallest = [r.params for r in everything[:SIZES]]
    assert [r.params for r in ladder(centre=1e9)] == smallest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data_per_parameter": 0}, "is no number above 0"),
        ({"data_per_parameter": "20"}, "is no number above 0"),
        ({"data_per_parameter": 20, "sizes": [1, 2, 3]}, "leave one of them out"),
    ],
)
def test_a_wrong_ratio_is_refused_before_anything_is_looked_at(options, words):
    with pytest.raises(Exception, match=words) as error:
        find_optimal(model=object, size="width", dataset=[], budget="1e9", **options)
    assert [fault.path for fault in error.value.faults] == ["data_per_parameter"]


def test_the_types_of_a_call_name_its_keywords_and_no_more():
    """What type checkers know of `find_optimal` is what it takes."""
    taken = inspect.signature(find_optimal).parameters
    keywords = {n: p for n, p in taken.items() if p.kind is p.KEYWORD_ONLY}
    assert set(Arguments.__annotations__) | {"plan_only"} == set(keywords)
    needed = {n for n, p in keywords.items() if p.default is p.empty}
    assert {n for n, a in Arguments.__annotations__.items() if "Required" in str(a)} == needed
